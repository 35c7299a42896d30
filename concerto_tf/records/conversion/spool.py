"""What conversion keeps between reading the inputs and writing the shards: plain columns.

Every cell gets a random 64-bit key that depends on the seed and its row alone. A part holds the
cells of one chunk in ascending order of their keys, so the cells of any range of keys lie side by
side in every part, and a shard is such a range: a global permutation without one in memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from concerto_tf._files import atomic, write_json
from concerto_tf._identity import json_checksum
from concerto_tf._paths import is_remote

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHECKSUM_BYTES, _LENGTH_BYTES = 8, 16


def random_keys(seed: int, rows: np.ndarray) -> np.ndarray:
    """A random key per row, never the same for two rows: the SplitMix64 generator.

    Args:
        seed: Any integer.
        rows: int64 [n].

    Returns:
        uint64 [n], uniform over all 64-bit numbers.

    Reference:
        Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Example:
        >>> random_keys(0, np.array([0])) == 0xE220A8397B1DCDAF  # the published first number
        array([ True])
    """
    start = _mix(np.array([seed % 2**64], np.uint64)) if seed else np.zeros(1, np.uint64)
    return _mix(start + rows.astype(np.uint64) * _GOLDEN + _GOLDEN)


def _mix(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def key_bounds(n_ranges: int) -> np.ndarray:
    """Where the keys are cut into ranges of one size.

    Returns:
        uint64 [n_ranges - 1], the first key of each range but the first.

    Example:
        >>> key_bounds(4) / 2**62
        array([1., 2., 3.])
    """
    return np.array([2**64 * i // n_ranges for i in range(1, n_ranges)], np.uint64)


@dataclass(frozen=True)
class Part:
    """A written part: where each of its arrays lies in the file, and what was found in it.

    Attributes:
        path: The file.
        arrays: Name to (dtype, number of elements, offset in bytes).
        summary: What `write_part` was given.
    """

    path: Path
    arrays: Mapping[str, tuple[np.dtype, int, int]]
    summary: dict

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements `start` to `stop` of an array, read from the file."""
        dtype, size, offset = self.arrays[name]
        count = (size if stop is None else stop) - start
        if is_remote(self.path):
            with self.path.open("rb") as file:
                file.seek(offset + start * dtype.itemsize)
                return np.frombuffer(file.read(count * dtype.itemsize), dtype)
        return np.fromfile(self.path, dtype, count, offset=offset + start * dtype.itemsize)


class Damaged(Exception):
    """A file of the spool is not what was written, or was written for another conversion."""


def write_part(path: Path, arrays: Mapping[str, np.ndarray], summary: dict, plan: str = "") -> None:
    """Writes one-dimensional arrays and a summary (anything JSON holds) into one file, atomically.

    The file is: CRC-32C of what follows (8 digits), length of the index (16 digits), the index as
    JSON, the arrays' raw bytes. It has its name once it is on the disk: what is there is not made
    again.

    Args:
        path: File to write.
        arrays: Name to array [n].
        summary: What was found in them.
        plan: Tells the conversion apart that the part is for.
    """
    index, offset = {}, 0
    for name, array in arrays.items():
        index[name] = (array.dtype.str, array.size, offset)
        offset += array.nbytes
    header = json.dumps({"plan": plan, "arrays": index, "summary": summary}).encode()
    digest = google_crc32c.Checksum()
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.seek(_CHECKSUM_BYTES)
        contents = (array.tobytes() for array in arrays.values())
        for content in itertools.chain([b"%016d" % len(header), header], contents):
            digest.update(content)
            file.write(content)
        file.seek(0)
        file.write(digest.hexdigest())


def open_part(path: Path, plan: str | None = None) -> Part:
    """Reads the index of a part that `write_part` wrote.

    Args:
        path: The file.
        plan: The conversion that it must be of; its checksum is compared then, too, as another
            process may have left it. None trusts it.

    Raises:
        Damaged: It is not what was written, or for another conversion.
    """
    with path.open("rb") as file:
        checksum = file.read(_CHECKSUM_BYTES)
        if plan is not None:
            digest = google_crc32c.Checksum()
            for _ in digest.consume(file, 1 << 20):
                pass
            if checksum != digest.hexdigest():
                raise Damaged(path.name)
            file.seek(_CHECKSUM_BYTES)
        length = int(file.read(_LENGTH_BYTES))
        header = json.loads(file.read(length))
    if plan not in (None, header["plan"]):
        raise Damaged(path.name)
    start = _CHECKSUM_BYTES + _LENGTH_BYTES + length
    arrays = {
        name: (np.dtype(dtype), size, start + offset)
        for name, (dtype, size, offset) in header["arrays"].items()
    }
    return Part(path, arrays, header["summary"])


def write_note(path: Path, content: Mapping[str, Any], plan: str) -> None:
    """Notes that something else is finished; without its note that is made again."""
    told = {"plan": plan, "content": dict(content)}
    write_json(path, {**told, "checksum": json_checksum(told)}, durable=False)


def read_note(path: Path, plan: str) -> dict[str, Any]:
    """What `write_note` noted.

    Raises:
        Damaged: It is not what was written, or for another conversion.
    """
    try:
        found = json.loads(path.read_bytes())
        checksum = found.pop("checksum")
        if checksum != json_checksum(found) or found["plan"] != plan:
            raise Damaged(path.name)
        return dict(found["content"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(path.name) from error
