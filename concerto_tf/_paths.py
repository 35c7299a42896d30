"""Paths of files on this machine and in object stores (`gs://`, `s3://`) with one interface."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from concerto_tf.errors import InputError

if sys.platform == "win32":
    from pathlib import WindowsPath as _LocalPath
else:
    from pathlib import PosixPath as _LocalPath

_BUFFER_BYTES = 2**20


def as_path(path: str | Path) -> Path:
    """A `Path`; one with "://" is an address, whose files are reached through `tf.io.gfile`.

    Example:
        >>> as_path("records") / "manifest.json"
        PosixPath('records/manifest.json')
        >>> str(as_path("gs://bucket/records") / "manifest.json")
        'gs://bucket/records/manifest.json'
    """
    if isinstance(path, Path):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    return RemotePath(text) if "://" in text else Path(text)


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address, which only `tf.io.gfile` reaches."""
    return isinstance(as_path(path), RemotePath)


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """The file or folder for libraries that read this machine's disk only; a copy if remote."""
    path = as_path(path)
    if not is_remote(path):
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="concerto-"))
    try:
        copy_tree(path, folder / path.name)
        yield folder / path.name
    finally:
        shutil.rmtree(folder)


def is_hdf5(path: str | Path) -> bool:
    """Whether a file is there and is HDF5, as `.h5ad` is."""
    path = as_path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        # Before it a file may hold something of its own, as MuData and R's writers put there.
        for place in (0, 512, 1024, 2048, 4096):
            file.seek(place)
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
    return False


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store, by what zarr of either format puts there first."""
    marks = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")
    return any((path / name).exists() for name in marks)


def open_hdf5(path: str | Path) -> Any:
    """Opens an HDF5 file for reading, wherever it is."""
    import h5py

    path = as_path(path)
    file = h5py.File(path.open("rb") if is_remote(path) else path, "r")
    try:
        check_links(file, path)
    except BaseException:
        file.close()
        raise
    return file


def check_links(file: Any, path: str | Path) -> None:
    """Raises InputError if an HDF5 file has parts in other files, which it may have chosen badly.

    Such a file reads whatever it names on the machine of who opens it, and what is there may
    change.

    Args:
        file: The open file.
        path: What to call it.
    """
    import h5py

    seen, waiting = set(), [file["/"]]
    while waiting:
        group = waiting.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _has_parts_elsewhere(path, f"{group.name.rstrip('/')}/{name}", link.filename)
            if not isinstance(link, h5py.HardLink):
                continue
            found = group[name]
            if isinstance(found, h5py.Group):
                address = h5py.h5o.get_info(found.id).addr
                if address not in seen:
                    seen.add(address)
                    waiting.append(found)
            elif isinstance(found, h5py.Dataset):
                parts = found.external or ()
                if found.is_virtual:
                    parts = [(part.file_name,) for part in found.virtual_sources()]
                for part in parts:
                    if part[0] != ".":
                        raise _has_parts_elsewhere(path, found.name, part[0])


def _has_parts_elsewhere(path: str | Path, name: str, other: str) -> InputError:
    return InputError(
        f"{path}: {name} lies in another file ({other}), which is not followed; write a file that "
        "holds all by itself, as adata.write_h5ad(...) does"
    )


def copy_tree(source: Path, target: Path) -> None:
    """Copies a file, or a folder with what is in it, from and to anywhere."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            copy_tree(entry, target / entry.name)
        return
    if not is_remote(source) and not is_remote(target):
        shutil.copyfile(source, target)  # which the system may do itself
        return
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, _BUFFER_BYTES)


class RemotePath(_LocalPath):
    """A path that `tf.io.gfile` reaches, with the methods of `Path` that we use.

    As a path it is that of the address with one slash, which is all that `Path` can keep.
    """

    def __str__(self) -> str:
        return re.sub(r"^(\w+):/?", r"\1://", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> RemotePath:
        return self

    def expanduser(self) -> RemotePath:
        return self

    def exists(self, **_: Any) -> bool:
        with self._errors():
            return _gfile().exists(str(self))

    def is_dir(self, **_: Any) -> bool:
        with self._errors():
            return _gfile().isdir(str(self))

    def is_file(self, **_: Any) -> bool:
        return self.exists() and not self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def stat(self, **_: Any) -> Any:
        with self._errors():
            found = _gfile().stat(str(self))
        return SimpleNamespace(st_size=found.length, st_mtime_ns=found.mtime_nsec)

    # Of what `Path` takes only what we use, so the signatures are narrower.
    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        kind = mode.replace("b", "").replace("t", "")
        if kind == "w":  # to what is there, ram:// would append
            self.unlink(missing_ok=True)
        raw = _Stream(self, f"{kind}b")
        stream: Any = (io.BufferedReader if kind == "r" else io.BufferedWriter)(raw, _BUFFER_BYTES)
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding, errors, newline)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(self))
        with self._errors():
            _gfile().makedirs(str(self))

    def iterdir(self) -> Generator[RemotePath, None, None]:
        with self._errors():
            # Stores name folders with a slash behind, and some name the folder itself.
            names = {name.rstrip("/") for name in _gfile().listdir(str(self))}
        return (self / name for name in sorted(names - {""}))

    def glob(  # type: ignore[override]
        self, pattern: str, **_: Any
    ) -> Iterator[RemotePath]:
        return (entry for entry in self.iterdir() if fnmatch(entry.name, pattern))

    def rglob(  # type: ignore[override]
        self, pattern: str, **_: Any
    ) -> Iterator[RemotePath]:
        for entry in self.iterdir():
            if fnmatch(entry.name, pattern):
                yield entry
            if entry.is_dir():
                yield from entry.rglob(pattern)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with self._errors():
                _gfile().remove(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes a folder with what is in it."""
        with self._errors():
            _gfile().rmtree(str(self))

    def replace(self, target: RemotePath) -> RemotePath:  # type: ignore[override]
        with self._errors():
            _gfile().rename(str(self), str(target), overwrite=True)
        return target

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises what `Path` raises where TensorFlow has errors of its own."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.UnimplementedError as error:
            raise InputError(
                f"{self}: this TensorFlow does not know such addresses; tensorflow-io knows more, "
                "or copy the files here"
            ) from error
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(self)) from error
        except (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError) as error:
            raise PermissionError(errno.EACCES, "access is denied", str(self)) from error
        except tf.errors.OpError as error:
            reason = (error.message.splitlines() or ["no answer"])[0][:200]
            raise InputError(
                f"{self}: cannot be reached ({reason}); check the address, the network and your "
                "rights there"
            ) from error


class _Stream(io.RawIOBase):
    """A file of `tf.io.gfile` as Python's own, so that h5py, gzip, csv and NumPy can use it."""

    def __init__(self, path: RemotePath, mode: str) -> None:
        self._path, self._mode = path, mode
        self._file: Any = _gfile().GFile(str(path), mode)
        with path._errors():
            # TensorFlow opens a file only when it is needed, and we want to know now.
            if mode == "rb":
                self._file.size()
            else:
                self._file.write(b"")

    def readable(self) -> bool:
        return self._mode == "rb"

    def writable(self) -> bool:
        return self._mode != "rb"

    def seekable(self) -> bool:
        return self._mode == "rb"

    def readinto(self, buffer: Any) -> int:
        with self._path._errors():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, content: Any) -> int:
        with self._path._errors():
            self._file.write(bytes(content))
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._path._errors():
            self._file.seek(offset, whence)
            return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            super().close()
            with self._path._errors():
                self._file.close()


def _gfile() -> Any:
    import tensorflow as tf

    return tf.io.gfile
