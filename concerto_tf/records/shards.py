"""One shard as a file: whether it is as it was written, and which cells of a damaged one are."""

from __future__ import annotations

import atexit
import hashlib
import logging
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.manifest import Manifest, ShardInfo
from concerto_tf.records.tfrecord import checksum, write_tfrecord

_log = logging.getLogger("concerto_tf")
# Around the data of a record: its length and a checksum of that before, a checksum behind.
_HEAD_BYTES, _TAIL_BYTES = 12, 4
_BLOCK_BYTES = 1 << 20
# No cell takes as much, whatever its modalities.
_MOST_RECORD_BYTES = 1 << 26
# What follows the place of damage in a gzip file is lost, and what was decompressed with it.
_GZIP_STEP_BYTES = 256


def problem_of(folder: Path, shard: ShardInfo, compression: str) -> str | None:
    """What is wrong with a shard, or None: whether it is there, its size, its bytes.

    Args:
        folder: Where it lies.
        shard: What the manifest says of it.
        compression: "none" or "gzip".
    """
    try:
        return size_problem(folder, shard) or _content_problem(folder, shard, compression)
    except OSError as error:
        return f"{shard.file} cannot be read ({error.strerror})"


def size_problem(folder: Path, shard: ShardInfo) -> str | None:
    """What is wrong with a shard as far as its name and size tell, or None."""
    try:
        size = (folder / shard.file).stat().st_size
    except FileNotFoundError:
        return f"{shard.file} is missing"
    except OSError as error:
        return f"{shard.file} cannot be read ({error.strerror})"
    if size != shard.bytes:
        return f"{shard.file} has {size} bytes instead of {shard.bytes}"
    return None


def reading_errors() -> tuple[type[Exception], ...]:
    """What TensorFlow raises on a shard that is damaged, and for other causes too."""
    import tensorflow as tf

    return (
        tf.errors.DataLossError,
        tf.errors.NotFoundError,
        tf.errors.OutOfRangeError,
        tf.errors.InvalidArgumentError,
        tf.errors.FailedPreconditionError,
    )


def count_problem(folder: Path, shard: ShardInfo, manifest: Manifest) -> str | None:
    """What is wrong with the cells of a shard that is whole, or None.

    Args:
        folder: Where it lies.
        shard: What the manifest says of it.
        manifest: The manifest.
    """
    from concerto_tf.records.pipeline import count_sources

    counts = count_sources(folder, manifest, shard)
    if counts != list(shard.cells_per_source):
        return (
            f"{shard.file} has {counts} cells per source instead of {list(shard.cells_per_source)}"
        )
    return None


def _content_problem(folder: Path, shard: ShardInfo, compression: str) -> str | None:
    """What the bytes of a shard say.

    Beside the checksum, the lengths of the records are looked at: TensorFlow takes as much memory
    as a record says it needs, and a forged file may come with a checksum that fits.
    """
    digest, longest = hashlib.sha256(), 0
    unpack = zlib.decompressobj(wbits=31) if compression == "gzip" else None
    held, start, record = b"", 0, 0  # positions: of what is held, of the next record
    with (folder / shard.file).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            for piece in _unpacked(block, unpack):
                held, start = held[record - start :] + piece, min(record, start + len(held))
                while record + _HEAD_BYTES <= start + len(held):
                    at = record - start
                    length = int.from_bytes(held[at : at + 8], "little")
                    longest = max(longest, length)
                    record += _HEAD_BYTES + length + _TAIL_BYTES
    if digest.hexdigest() != shard.sha256:
        return f"{shard.file} is damaged (its checksum differs)"
    if longest > (_MOST_RECORD_BYTES if unpack else shard.bytes):
        return f"{shard.file} is forged (it tells of a record of {longest} bytes)"
    return None


def _unpacked(block: bytes, unpack: Any) -> Iterator[bytes]:
    """A block of a file as it is, or decompressed, some at a time."""
    if unpack is None:
        yield block
        return
    with suppress(zlib.error):  # damage; the checksum tells
        while block:
            yield unpack.decompress(block, _BLOCK_BYTES)
            block = unpack.unconsumed_tail


def intact(folder: Path, manifest: Manifest) -> tuple[Manifest, dict[str, int]]:
    """Finds the cells of records that are intact, and says how many are lost.

    Args:
        folder: The records.
        manifest: What they should be.

    Returns:
        The manifest of the cells that are intact, and the name of each damaged shard with the
        number of its cells that are lost. The intact cells of damaged shards are copied to a
        temporary folder, which is there until the process ends.

    Raises:
        InputError: No cell is left.
    """
    kept: list[ShardInfo] = []
    lost: dict[str, int] = {}
    for shard in manifest.shards:
        problem = problem_of(folder, shard, manifest.compression)
        if problem is None:
            kept.append(shard)
            continue
        if not lost:
            copies = Path(tempfile.mkdtemp(prefix="concerto-"))
            atexit.register(shutil.rmtree, copies, True)
        left = _save_intact(folder / shard.file, shard, manifest, copies / shard.file)
        if left is not None:
            kept.append(left)
        lost[shard.file] = shard.n_cells - (left.n_cells if left else 0)
        _log.warning(
            "%s: %s; %d of its %d cells are lost", folder, problem, lost[shard.file], shard.n_cells
        )
    n_cells = sum(shard.n_cells for shard in kept)
    if not n_cells:
        raise InputError(f"{folder}: no cell in it is intact; convert again")
    if lost:
        _log.warning("%s: continues with %d of %d cells", folder, n_cells, manifest.n_cells)
    return replace(manifest, shards=tuple(kept), n_cells=n_cells), lost


def _save_intact(path: Path, shard: ShardInfo, manifest: Manifest, out: Path) -> ShardInfo | None:
    """Copies the cells of a damaged shard that are intact.

    Args:
        path: The damaged file; need not be there.
        shard: What the manifest says of it.
        manifest: The manifest.
        out: File to write, compressed as the shard was.

    Returns:
        The copy's entry in a manifest, or None if no cell is left. A file in which no damage is to
        be found is another one than it should be, and none of its cells belongs here.
    """
    from concerto_tf.records.pipeline import count_sources

    try:
        content = path.read_bytes()
    except OSError:
        return None
    whole = True
    if manifest.compression == "gzip":
        content, whole = _gunzipped(content)
    cells = list(_intact_records(content))
    whole &= len(content) == sum(_HEAD_BYTES + len(cell) + _TAIL_BYTES for cell in cells)
    if whole or not cells:
        return None
    size, digest = write_tfrecord(out, cells, manifest.compression)
    copy = replace(shard, file=str(out), n_cells=len(cells), bytes=size, sha256=digest)
    counts = count_sources(out.parent, manifest, copy)
    if sum(counts) != len(cells) or np.any(np.array(counts) > shard.cells_per_source):
        return None
    return replace(copy, cells_per_source=tuple(counts))


def _intact_records(content: bytes) -> Iterator[bytes]:
    """The data of all records whose checksums are right; continues behind damage."""
    at = 0
    while (start := at + _HEAD_BYTES) + _TAIL_BYTES < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        stop = start + length
        known = 0 < length <= len(content) - start - _TAIL_BYTES
        if not known or checksum(content[at : at + 8]) != content[at + 8 : start]:
            at += 1  # the length is not to be trusted: look for the next one that is
            continue
        if checksum(content[start:stop]) == content[stop : stop + _TAIL_BYTES]:
            yield content[start:stop]
        at = stop + _TAIL_BYTES


def _gunzipped(content: bytes) -> tuple[bytes, bool]:
    """What can be decompressed of a gzip file, and whether that is all of it."""
    stream, found = zlib.decompressobj(wbits=31), []
    try:
        for at in range(0, len(content), _GZIP_STEP_BYTES):
            found.append(stream.decompress(content[at : at + _GZIP_STEP_BYTES]))
    except zlib.error:
        return b"".join(found), False
    return b"".join(found), stream.eof
