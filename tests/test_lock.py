"""One writer for a folder: who may take it, who has to wait, and what of those that died."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from concerto_tf import _lock
from concerto_tf._lock import LOCK, FolderLock, new_folder
from concerto_tf.errors import InputError


def left_by(folder: Path, host: str, pid: int, seconds: float = 0, boot: str = "") -> None:
    """What a process on another machine, or on this one, has left or holds."""
    path = folder / LOCK
    path.write_text(json.dumps({"host": host, "boot": boot, "pid": pid, "token": "other"}))
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture(params=["locks", "no locks"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Some folders, as of some network file systems, know no locks."""
    if request.param == "no locks":
        monkeypatch.setattr(_lock, "fcntl", None)
    return request.param


def test_nothing_is_left_behind(system: str, tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock(tmp_path) as lock:
            assert lock.held and not lock.lost
            with pytest.raises(InputError, match=f"another process .*{os.getpid()} on"):
                FolderLock(tmp_path).acquire()
            assert lock.held and not lock.lost
        assert not lock.held and not list(tmp_path.iterdir())


def test_who_died_here_is_replaced_and_said(system: str, tmp_path: Path, caplog) -> None:
    code = f"import os; from concerto_tf._lock import FolderLock as L; L({str(tmp_path)!r})"
    held = f"{code}.acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", held], check=False).returncode == -9
    pid = json.loads((tmp_path / LOCK).read_text())["pid"]
    with FolderLock(tmp_path):
        assert f"process {pid} on {socket.gethostname()} ended there before" in caplog.text
    assert not list(tmp_path.iterdir())


def test_who_works_elsewhere_is_known_by_the_time(system: str, tmp_path: Path, caplog) -> None:
    left_by(tmp_path, "elsewhere", 1)
    with pytest.raises(InputError, match="process 1 on elsewhere.*again in a minute"):
        FolderLock(tmp_path).acquire()
    assert json.loads((tmp_path / LOCK).read_text())["token"] == "other"
    left_by(tmp_path, "elsewhere", 1, seconds=3600)
    with FolderLock(tmp_path):
        assert "process 1 on elsewhere ended there" in caplog.text


@pytest.mark.parametrize("content", [b"", b" ", b"{", b"[]", b"\xff\x00"])
def test_a_damaged_lock_is_of_somebody_unknown(system: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(content)
    if content.strip():
        with pytest.raises(InputError, match=r"process \? on \?"):
            FolderLock(tmp_path).acquire()
        os.utime(tmp_path / LOCK, (0, 0))
    with FolderLock(tmp_path):
        pass


def test_who_works_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "_BEAT_SECONDS", 0.02)
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 5
        while not (tmp_path / LOCK).stat().st_mtime and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 60


def test_who_was_taken_for_dead_finds_out(system: str, tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        lock.check()
        (tmp_path / "new").mkdir()
        left_by(tmp_path / "new", "elsewhere", 1)
        (tmp_path / "new" / LOCK).replace(tmp_path / LOCK)
        assert lock.lost
        with pytest.raises(InputError, match="another process took over"):
            lock.check()
    assert (tmp_path / LOCK).exists()  # it is the other's


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyError), new_folder(out) as temporary:
        temporary.mkdir()
        with pytest.raises(InputError, match="another process"), new_folder(out):
            pass
        raise KeyError
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with new_folder(out) as temporary:
        temporary.mkdir()
        (temporary / "a").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]
