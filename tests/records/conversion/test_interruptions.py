"""Conversions that stop, are killed, meet what others left, or lose a process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert
from concerto_tf.records.conversion import passes as passes_module

OPTIONS = {"shards": 3, "chunk_cells": 40, "source_key": "donor", "label_keys": ["type"]}


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.mark.parametrize(
    ("step", "after"),
    [("spool_chunk", 0), ("spool_chunk", 4), ("write_shard", 0), ("write_shard", 2)],
)
def test_continues_after_an_interruption(
    content, file: Path, tmp_path: Path, monkeypatch, step: str, after: int
) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    original: Callable = getattr(passes_module, step)
    calls = []

    def counting(*arguments):
        if len(calls) == after:
            raise Interrupted
        calls.append(arguments)
        return original(*arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(passes_module, step, counting)
        with pytest.raises(Interrupted):
            convert(file, out, **OPTIONS)
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="unfinished"):
        Records(out)

    redone = []
    with monkeypatch.context() as patch:
        patch.setattr(passes_module, step, lambda *a: (redone.append(a), original(*a))[1])
        records = convert(file, out, **OPTIONS)
    assert content(records.path) == expected
    total = {"spool_chunk": 8, "write_shard": 3}[step]
    assert len(redone) == total - after


def test_continues_after_being_killed(content, file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    out = tmp_path / "out"
    code = f"""
import os, signal
from concerto_tf.records import convert
def stop(done, total):
    if done >= 200:
        os.kill(os.getpid(), signal.SIGKILL)
convert({str(file)!r}, {str(out)!r}, progress=stop, **{OPTIONS!r})
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    assert ended.returncode == -signal.SIGKILL
    # What a process that is killed while it writes leaves behind.
    (out / ".tmp-1-shard-00001-of-00003.tfrecord").write_bytes(b"half")
    (out / "spool" / ".tmp-1-part-00001").write_bytes(b"half")
    assert not (out / "manifest.json").exists() and (out / "spool").exists()
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_what_is_finished_is_not_done_again(file: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    convert(file, out, **OPTIONS)
    monkeypatch.setattr(passes_module, "spool_chunk", None)
    monkeypatch.setattr(passes_module, "write_shard", None)
    assert convert(file, out, **OPTIONS).n_cells == 300
    # Killed between the manifest and the removal of what is no longer needed.
    (out / "spool").mkdir()
    (out / "plan.json").touch()
    convert(file, out, **OPTIONS)
    assert not (out / "spool").exists() and not (out / "plan.json").exists()


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest", "vocabulary"])
def test_damaged_records_are_converted_again(
    content, file: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    expected = content(convert(file, out, **OPTIONS).path)
    shard = next(out.glob("shard-*"))
    match damage:
        case "flipped":
            shard.write_bytes(shard.read_bytes()[:-30] + bytes(30))
        case "missing":
            shard.unlink()
        case "manifest":
            path = out / "manifest.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"n_cells": 299}))
        case "vocabulary":
            (out / "vocabulary.tsv").write_text("id\n")
    assert content(convert(file, out, **OPTIONS).path) == expected
    assert "damaged, and converted again" in caplog.text


def test_damaged_records_are_only_read_past_if_they_are_of_the_same_input(
    file: Path, make_cells, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(file, out, **OPTIONS)
    shard = next(out.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-30] + bytes(30))
    assert convert(file, out, skip_damaged=True, **OPTIONS).n_cells == 299
    make_cells(200).write_h5ad(file)
    with pytest.raises(InputError, match="holds records differing in inputs; .*overwrite=True"):
        convert(file, out, skip_damaged=True, **OPTIONS)
    assert convert(file, out, skip_damaged=True, overwrite=True, **OPTIONS).n_cells == 200


def test_finished_records_are_only_replaced_when_asked(content, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(file, out, **OPTIONS)
    before = content(out)
    with pytest.raises(InputError, match="holds records differing in seed"):
        convert(file, out, seed=5, **OPTIONS)
    assert content(out) == before
    os.utime(file, (1, 1))  # as good as another file
    with pytest.raises(InputError, match="holds records differing in inputs"):
        convert(file, out, **OPTIONS)
    convert(file, out, overwrite=True, source_key="donor")
    assert len(content(out)) == 3


def test_an_unfinished_conversion_of_something_else_starts_afresh(
    content, file: Path, tmp_path: Path
) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    out = tmp_path / "out"
    (out / "spool").mkdir(parents=True)
    (out / "spool" / "part-00000").write_bytes(b"of something else")
    (out / "shard-00009-of-00010.tfrecord").write_bytes(b"of something else")
    (out / "plan.json").write_text(json.dumps({"asked": {"seed": 7}}))
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_foreign_files_are_left_alone(content, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no records"):
        convert(file, out, overwrite=True)
    assert content(out) == {"thesis.txt": b"years of work"}
    with pytest.raises(InputError, match="is a file"):
        convert(file, out / "thesis.txt")


def test_a_folder_that_cannot_be_written(file: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        convert(file, "/proc/records")


def test_ctrl_c_ends_the_workers_and_can_be_resumed(content, file: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    out = tmp_path / "out"
    script.write_text(f"""
import os, signal
from concerto_tf.records import convert
def stop(done, total):
    if done >= 60:  # three of eight chunks
        os.kill(os.getpid(), signal.SIGINT)
try:  # without a guard against being run again by the processes that are started
    convert({str(file)!r}, {str(out)!r}, progress=stop, workers=2, **{OPTIONS!r})
except KeyboardInterrupt:
    raise SystemExit(130)
""")
    root = Path(__file__).parents[3]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - started < 100
    assert not (out / "manifest.json").exists()
    assert len(list((out / "spool").glob("part-*"))) >= 3
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_a_lost_process_loses_nothing_else(content, file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    out = tmp_path / "out"

    def kill(done: int, total: int) -> None:
        multiprocessing.active_children()[0].kill()

    with pytest.raises(InputError, match="ended before its time.*continues"):
        convert(file, out, workers=2, progress=kill, **OPTIONS)
    assert list((out / "spool").glob("part-*"))
    assert content(convert(file, out, **OPTIONS).path) == expected


def test_unsuitable_cells_leave_nothing_whatever_the_processes_are_at(
    make_cells, tmp_path: Path
) -> None:
    """Found late, with hundreds of small parts for the processes to write meanwhile."""
    cells = make_cells(6_000)
    cells.X.data[cells.X.indptr[5_000]] = -1
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for attempt in range(3):
        out = tmp_path / f"out-{attempt}"
        with pytest.raises(InputError, match="negative"):
            convert(tmp_path / "cells.h5ad", out, workers=2, chunk_cells=20)
        assert not out.exists()
