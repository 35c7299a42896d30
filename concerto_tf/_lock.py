"""One writer for a folder: on this machine, and on shared folders as far as they allow it.

While a process writes, the folder has a hidden file that says who it is. Three things are asked
before its place is taken, since none holds everywhere:

1. The system's lock on that file (`flock`; over NFS the server keeps it). It ends with its process,
   however that ends.
2. Where there is none: whether the process lives, if it ran on this machine.
3. Of another machine: whether the file was touched lately, as who works does every few seconds.
   The folder's own clock says what lately is.

Object stores know neither locks nor files that only one can make; there the third has to do. A
writer that was taken for dead, because it was stopped for long, finds out by `check` before it says
that its work is done.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from concerto_tf._files import atomic
from concerto_tf._paths import as_path, is_remote
from concerto_tf.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

#: Hidden, so that a folder that holds nothing else still counts as empty.
LOCK = ".concerto.lock"
_BEAT_SECONDS, _STALE_SECONDS = 10.0, 60.0
#: How often a lock may vanish while it is being taken, before that is called a lost race.
_TRIES = 20
_log = logging.getLogger("concerto_tf")


class FolderLock:
    """Keeps other writers out of a folder; used in a `with` statement, or by `acquire`, `release`.

    Args:
        folder: The folder; made if it is not there.

    Raises:
        InputError: On acquiring: another process is at work there.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with FolderLock(folder), FolderLock(folder):
        ...     pass
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: ...: another process is at work there (process ...
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = as_path(folder)
        self._path = self._folder / LOCK
        self._descriptor: int | None = None
        self._token = ""
        self._done = threading.Event()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this one has the folder."""
        return bool(self._token)

    def acquire(self) -> None:
        """Takes the folder, unless somebody works there who lives; says if one did who does not."""
        if self.held:
            return
        token = uuid4().hex
        for _ in range(_TRIES):
            self._folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # who held it has removed the folder
                if self._take(token):
                    break
        else:
            raise InputError(f"{self._folder}: other processes come and go there; try again", "out")
        self._token, self._done = token, threading.Event()
        threading.Thread(target=self._beat, args=(token, self._done), daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether another process has taken the folder meanwhile."""
        return self.held and _holder(self._read()).get("token") != self._token

    def check(self) -> None:
        """Raises InputError if another process has taken the folder meanwhile."""
        if self.lost:
            raise InputError(
                f"{self._folder}: another process took over there while this one stood still; "
                "wait for its end, or name another folder",
                "out",
            )

    def release(self) -> None:
        """Gives the folder back."""
        self._done.set()
        with suppress(OSError, InputError):
            if self.held and not self.lost:
                self._path.unlink(missing_ok=True)
        self._token = ""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _take(self, token: str) -> bool:
        """One try: True if it is ours, False if the file was removed meanwhile."""
        locked = None
        if not is_remote(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                locked = _flock(descriptor)
                if locked and not _is_of(descriptor, self._path):
                    os.close(descriptor)
                    return False
            except BaseException:
                os.close(descriptor)
                raise
            if locked:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        try:
            found = _holder(self._read())
            if locked is False or (found and self._lives(found, bool(locked))):
                raise InputError(_who(self._folder, found), "out")
            self._write({**_self(), "token": token})
            # Without the system's lock two may have come at once; the later one has it.
            if not locked:
                time.sleep(0.05)
                if (other := _holder(self._read())).get("token") != token:
                    raise InputError(_who(self._folder, other), "out")
        except BaseException:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            raise
        if found:
            _log.warning(
                "%s: process %s on %s ended there before it was done; this one takes its place",
                self._folder,
                found.get("pid"),
                found.get("host"),
            )
        return True

    def _lives(self, found: dict[str, Any], locked: bool) -> bool:
        """Whether who is named in the file may still be at work."""
        own = _self()
        here = (found.get("host"), found.get("boot")) == (own["host"], own["boot"])
        if locked and own["boot"] and found.get("boot") == own["boot"]:
            return False  # one system's lock, which ended with its process
        if here and os.name == "posix":
            return _runs(found.get("pid"))
        with suppress(OSError):
            return self._age() < _STALE_SECONDS
        return True

    def _age(self) -> float:
        """Seconds since the file was touched, by the clock of the folder."""
        touched = self._path.stat().st_mtime_ns / 1e9
        if is_remote(self._path):
            return time.time() - touched
        with tempfile.TemporaryFile(dir=self._folder) as probe:
            probe.write(b".")
            probe.flush()
            os.fsync(probe.fileno())
            return os.fstat(probe.fileno()).st_mtime - touched

    def _read(self) -> bytes:
        if self._descriptor is not None:
            return (
                os.pread(self._descriptor, 4096, 0) if _is_of(self._descriptor, self._path) else b""
            )
        try:
            with self._path.open("rb") as file:
                return file.read(4096)
        except FileNotFoundError:
            return b""

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)
            return
        with self._path.open("wb") as file:
            file.write(text)

    def _beat(self, token: str, done: threading.Event) -> None:
        """Touches the file until the work is done."""
        while not done.wait(_BEAT_SECONDS):
            with suppress(OSError, InputError):
                if is_remote(self._path):
                    self._write({**_self(), "token": token})
                else:
                    os.utime(self._path)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that is written whole or not at all (`atomic`), by one process at a time.

    Args:
        folder: Its final name; there must be nothing, or an empty folder.

    Yields:
        The temporary path, not yet existing.

    Raises:
        InputError: Another process is at work there.
    """
    folder = as_path(folder)
    fresh = not folder.exists()
    try:
        with FolderLock(folder), atomic(folder) as temporary:
            yield temporary
    except BaseException:
        if fresh:
            with suppress(OSError):  # it is the other's
                folder.rmdir()
        raise


def _flock(descriptor: int) -> bool | None:
    """Whether the system gives us its lock; None where it has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _is_of(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of a name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(content: bytes) -> dict[str, Any]:
    """Who is named in a lock file; nobody where it is empty, "?" where it cannot be read."""
    if not content.strip():
        return {}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"host": "?", "pid": "?"}


def _self() -> dict[str, Any]:
    """What tells this process apart: the machine, since when it has run, and the number."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "boot": boot, "pid": os.getpid()}


def _runs(pid: Any) -> bool:
    """Whether there is a process of this number here."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _who(folder: Path, found: dict[str, Any]) -> str:
    named = f" (process {found['pid']} on {found['host']})" if "pid" in found else ""
    away = found.get("host") not in (None, socket.gethostname())
    wait = "; if that one was killed, try again in a minute" if away else ""
    return (
        f"{folder}: another process is at work there{named}; wait for its end, or name another "
        f"folder{wait}"
    )
