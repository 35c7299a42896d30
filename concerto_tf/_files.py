"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp-"


@contextmanager
def atomic(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary sibling to write to, which takes the final name only if all went well.

    The sibling keeps the ending of the name, so that libraries that look at it (h5ad, png) are
    content. It may become a file or a folder. If the block raises, it is removed and whatever
    had the final name before is left as it was.

    Args:
        path: The final name. The folder around it must exist.
        durable: Whether to flush to the disk first, so that the name survives a power cut too.

    Yields:
        The temporary path, not yet existing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic(folder / "result.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> [entry.name for entry in folder.iterdir()]
        ['result.txt']
    """
    path = Path(path)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    remove(temporary)
    try:
        yield temporary
        if durable and temporary.is_file():
            _flush(temporary)
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except BaseException:
        remove(temporary)
        raise


def remove(path: str | Path) -> None:
    """Removes a file or a folder with what is in it; nothing happens if it is not there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: str | Path) -> None:
    """Removes what `atomic` had to leave behind in `folder` when its process was killed."""
    for entry in Path(folder).glob(f"{_TEMPORARY}*"):
        remove(entry)


def write_json(path: str | Path, content: Any) -> None:
    """Writes `content` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Asks the system to put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
