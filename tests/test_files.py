from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from concerto_tf._files import atomic, remove, remove_temporaries, sha256, write_json


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".txt" and path.read_text() == "old"
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.txt"]
    assert path.read_text() == "old"


def test_replaces_files_and_folders(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("new")
    for number in range(2):
        with atomic(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / f"part{number}").touch()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["part1"]


def test_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-file").touch()
    (tmp_path / ".tmp-2-folder").mkdir()
    (tmp_path / ".tmp-2-folder" / "part").touch()
    (tmp_path / "kept").touch()
    remove_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    remove(tmp_path / "kept")
    remove(tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_of_the_same_name_goes_in_time(tmp_path: Path) -> None:
    old, fresh, other = (
        tmp_path / f".tmp-{name}" for name in ("1-[a].h5ad", "2-[a].h5ad", "3-b.h5ad")
    )
    for path in (old, fresh, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    with atomic(tmp_path / "[a].h5ad") as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"[a].h5ad", fresh.name, other.name}


def test_json_and_checksum(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"µ": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"µ": [1, None]}
    assert (
        sha256(tmp_path / "a.json")
        == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    )
