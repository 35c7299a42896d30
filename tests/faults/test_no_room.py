"""A disk that is full, or places that may not be written or read: said in a line, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ALL = [
    *("convert overwrite train finetune run embed annotate map impute explain export".split()),
    *("cluster", "cluster run", "score", "pseudotime", "compare", "simulate", "simulate records"),
]
CHEAP = ("convert", "embed", "score", "simulate")
commands = pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in ALL],
)


def judged(told: dict[str, Any], judge: Callable, whole: Callable[[], bool]) -> str:
    """What came of a command that had no room, whose words are a line or two."""
    found = judge(told["code"], told["stderr"], whole)
    lines = told["stderr"].splitlines()
    assert found == "harmless" or (lines and len(lines) <= 2), told
    assert all(line.startswith("concerto: ") for line in lines[:1]), told
    return found


@commands
def test_files_cannot_grow(command: str, victim, given, content_of, judge, tmp_path: Path) -> None:
    """As on a full disk, writes fail, wherever they are made."""
    undisturbed = given.undisturbed(command)
    whole, folder = undisturbed["content"], tmp_path / "full"
    noticed = 0
    for share in (0, 0.2, 0.9):
        line, out = given.command(command, folder)
        told = victim(*line, folder=folder, room=int(share * undisturbed["largest"]))
        left = content_of(out)
        found = judged(told, judge, lambda left=left: left == whole)
        noticed += found == "noticed"
        if command not in ("run", "cluster run", "compare"):  # of several files
            assert {*left.items()} <= {*whole.items(), *undisturbed["old"].items()}, told
        assert not [path for path in folder.rglob(".tmp-*")], told
        if share:  # and with room again it is as if nothing had been
            told = victim(*line, folder=folder)
            assert told["code"] == 0 or (command == "export" and found == "harmless"), told
            assert content_of(out) == whole
        shutil.rmtree(folder)
    assert noticed >= 1


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A file system of its own; the test is skipped where none may be made."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root may mount a disk")
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@commands
def test_a_full_disk(command: str, victim, given, content_of, judge, tmp_path: Path) -> None:
    undisturbed = given.undisturbed(command)
    with small_disk(tmp_path / "disk", 256 * 2**20):
        folder = tmp_path / "disk" / "work"
        line, out = given.command(command, folder)
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
        os.posix_fallocate(
            descriptor := os.open(tmp_path / "disk" / "filling", os.O_CREAT | os.O_WRONLY),
            0,
            free - max(4096, int(0.4 * undisturbed["largest"]) // 4096 * 4096),
        )
        os.close(descriptor)
        told = victim(*line, folder=folder)
        left = content_of(out)
        judged(told, judge, lambda: left == undisturbed["content"])
        (tmp_path / "disk" / "filling").unlink()
        told = victim(*line, folder=folder)
        assert told["code"] == 0 or (command == "export" and left), told
        assert content_of(out) == undisturbed["content"]


@commands
def test_places_that_may_not_be_written(
    command: str, victim, given, content_of, judge, tmp_path: Path
) -> None:
    undisturbed = given.undisturbed(command)
    line, out = given.command(command, tmp_path / "held")
    held = [path for path in (out.parent, out) if path.is_dir()]
    for path in held:
        path.chmod(0o555)
    try:
        judged(victim(*line, folder=out.parent), judge, lambda: False)
        assert content_of(out) == undisturbed["old"]
    finally:
        for path in held:
            path.chmod(0o755)


@commands
def test_inputs_that_may_not_be_read(command: str, victim, given, judge, tmp_path: Path) -> None:
    """Of the files that a command names, one after the other."""
    given.undisturbed(command)
    line, out = given.command(command, tmp_path / "hidden")
    own = [part for part in line if isinstance(part, Path) and given.folder in part.parents]
    for path in dict.fromkeys(own):
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            judged(victim(*line, folder=out.parent), judge, lambda: False)
        finally:
            path.chmod(mode)
        assert not out.exists() or command in ("overwrite", "cluster run")
