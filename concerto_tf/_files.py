"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from concerto_tf._paths import RemotePath, as_path, copy_tree, is_remote

if TYPE_CHECKING:
    import pandas as pd

_TEMPORARY = ".tmp-"
_STALE_SECONDS = 3600


@contextmanager
def atomic(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Writes a file or folder whole or not at all: a temporary sibling takes its name at the end.

    The sibling keeps the ending of the name, which some libraries look at (h5ad, png). If the block
    raises, the sibling is removed, and what had the final name before is left as it was. What a
    killed process has left of the same name is removed once it is an hour old.

    What is for an object store is written on this machine's disk and then copied there. A file
    appears there whole; the files of a folder appear one after the other.

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
    path = as_path(path)
    # Two machines may be at the same file.
    temporary = path.with_name(f"{_TEMPORARY}{uuid4().hex[:12]}-{path.name}")
    if is_remote(path):
        with TemporaryDirectory(prefix="concerto-") as folder:
            yield Path(folder) / path.name
            _upload(Path(folder) / path.name, path, temporary)
        return
    for entry in path.parent.glob(f"{_TEMPORARY}*-{glob.escape(path.name)}"):
        with suppress(OSError):  # what a process left that was killed; nobody writes there now
            if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                remove(entry)
    try:
        yield temporary
        if durable and temporary.is_file():
            _flush(temporary)
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except BaseException:
        remove(temporary)
        raise


def remove(path: str | Path) -> None:
    """Removes a file or a folder with what is in it; nothing happens if it is not there."""
    path = as_path(path)
    if isinstance(path, RemotePath) and path.is_dir():
        path.rmtree()
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: str | Path) -> None:
    """Removes what `atomic` had to leave behind in `folder` when its process was killed."""
    for entry in as_path(folder).glob(f"{_TEMPORARY}*"):
        remove(entry)


def write_json(path: str | Path, content: Any, *, durable: bool = True) -> None:
    """Writes `content` as indented JSON, atomically; see `atomic`."""
    with atomic(path, durable=durable) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, "utf-8", newline="\n")  # the same bytes on every system


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Writes a data frame without its index, tabs between the columns, atomically."""
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_empty(folder: Path) -> bool:
    """Whether a folder shows nothing."""
    return all(entry.name.startswith(".") for entry in folder.iterdir())


def _replace_folder(temporary: Path, path: Path) -> None:
    """Gives a folder its name; of several that do so at once the last has it, and is whole."""
    while True:
        aside = path.with_name(f"{_TEMPORARY}{uuid4().hex[:12]}-{path.name}")
        with suppress(FileNotFoundError):
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(OSError):
                    os.replace(aside, path)
                raise
        finally:
            remove(aside)


def _upload(made: Path, path: Path, temporary: Path) -> None:
    if made.is_dir():
        remove(path)
        copy_tree(made, path)
        return
    try:
        copy_tree(made, temporary)
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def _flush(path: Path) -> None:
    """Asks the system to put a file, or the names in a folder, on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
