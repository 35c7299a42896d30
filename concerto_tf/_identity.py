"""What tells inputs, records and models apart, so that unfinished work is gone on with or not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._files import sha256
from concerto_tf._lazy import held, row_blocks
from concerto_tf._paths import as_path, is_remote
from concerto_tf.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

#: Places of a file that are looked at, their size, and in how many files of a folder.
_BLOCKS, _BLOCK_BYTES, _SAMPLED_FILES = 33, 64 * 2**10, 256


def json_checksum(asked: Any) -> str:
    """A checksum of anything that JSON holds.

    Example:
        >>> json_checksum({"seed": 0, "genes": None}) == json_checksum({"genes": None, "seed": 0})
        True
    """
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def identity_of_cells(cells: str | Path | AnnData, without: Path | None = None) -> str:
    """What tells cells apart: files by names, sizes, times and samples, an AnnData by its content.

    Args:
        cells: Path of a file or a folder, or an AnnData.
        without: A folder for results, which may lie in the one that the cells are in.

    Returns:
        A checksum.

    Raises:
        InputError: There is no such file.
    """
    if isinstance(cells, str | Path):
        path = as_path(cells).expanduser()
        if not path.exists():
            raise InputError(f"{cells}: there is no such file or folder; check the path")
        return json_checksum(_marks(path, without))
    if hasattr(cells, "mod"):  # a MuData
        return json_checksum([identity_of_cells(one) for one in cells.mod.values()])
    import joblib

    x = _marks(Path(cells.filename), None) if cells.isbacked else cells.X
    raw = None if cells.raw is None else (cells.raw.X, cells.raw.var)
    parts = [cells.obs, cells.var, x, dict(cells.layers), dict(cells.obsm), raw]
    return str(joblib.hash(_content(parts), hash_name="sha1"))


def _content(part: Any) -> Any:
    """The same with what is lazy replaced by checksums of its values, some rows at a time."""
    import joblib

    if isinstance(part, dict):
        return {key: _content(of) for key, of in part.items()}
    if isinstance(part, list | tuple):
        return [_content(of) for of in part]
    if hasattr(part, "compute"):
        return [joblib.hash(block, hash_name="sha1") for block in row_blocks(part)]
    return held(part)


def identity_of_file(path: str | Path) -> str:
    """What tells a small file apart that may change: its name and a checksum of its content."""
    return f"{as_path(path).name} {sha256(path)}"


def identity_of_records(records: Any) -> str:
    """What tells records apart: the checksums of their shards."""
    return json_checksum([shard.sha256 for shard in records.manifest.shards])


def identity_of_model(model: Any) -> str:
    """What tells a model in memory apart: its configuration and its weights."""
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True).encode())
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _marks(path: Path, without: Path | None) -> list[list[Any]]:
    """Name, size, time and a sample of a file, or of each file in a folder."""
    own = path.absolute()
    place = None if without is None else without.absolute()
    # Results that lie in the folder itself lie in one of its entries.
    results = own / place.relative_to(own).parts[0] if place and own in place.parents else None
    files = [
        entry
        for entry in (sorted(own.rglob("*")) if own.is_dir() else [own])
        if entry.is_file() and results not in (entry, *entry.parents)
    ]
    marks = []
    # A store of many files is told by all sizes and times, and by what is in some of them.
    every = -(-len(files) // _SAMPLED_FILES)
    for number, entry in enumerate(files):
        status = entry.stat()
        sample = "" if number % every else _sample(entry, status.st_size)
        marks.append([own.name, entry.name, status.st_size, status.st_mtime_ns, sample])
    return marks


def _sample(path: Path, size: int) -> str:
    """A checksum of a file's beginning, end and some places between; of a small one of all of it.

    Size and time alone would not tell a file that was replaced by one of the same, as `cp -p` or a
    synchronized folder leave it.
    """
    if is_remote(path):  # stores keep the time of each object
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _BLOCKS * _BLOCK_BYTES:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
