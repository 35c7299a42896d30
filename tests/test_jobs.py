"""Folders of work: whose they are, what is gone on with, and what kills and damage leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from concerto_tf._files import remove
from concerto_tf._lock import LOCK
from concerto_tf.errors import InputError
from concerto_tf.jobs import Job, Layout

ROOT = Path(__file__).parents[1]
#: As conversion, training and runs have them.
NOTED = Layout("records", "plan.json", "all.json", scratch=("spool",), products=("part-*",))
KEPT = Layout(
    "model",
    "state/asked.json",
    "summary.json",
    results=("model.bin",),
    keep="state/rounds",
    scratch=("state",),
    products=("log.csv",),
)
STAGED = Layout("run", "run.json", "run.json", results=("metrics.json",), keep="model", staged=True)
LAYOUTS = {"noted": NOTED, "kept": KEPT, "staged": STAGED}
ASKED = {"inputs": ["a"], "seed": 0, "options": {"units": 8}}


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


def part_way(job: Job) -> None:
    """What work leaves before it is through."""
    job.begin()
    for name in (*job.layout.scratch, *([job.layout.keep] if job.layout.keep == "model" else [])):
        (job.out / name).mkdir(exist_ok=True)
        (job.out / name / "rounds").write_text("1")
    for name in job.layout.products:
        (job.out / name.replace("*", "1")).write_text("half")


def complete(job: Job) -> None:
    part_way(job)
    for name in job.layout.results:
        (job.out / name).write_text("done")
    job.finish(cells=5)


def test_finished_work_is_found_and_not_touched(layout: Layout, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Job(out, ASKED, layout) as job:
        assert not job.finished
        complete(job)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with Job(out, ASKED, layout) as job:
        assert job.finished and job.facts == {"cells": 5}
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not any((out / name).exists() for name in layout.scratch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_stopped_is_gone_on_with(layout: Layout, tmp_path: Path, error: type) -> None:
    out = tmp_path / "out"
    with pytest.raises(error), Job(out, ASKED, layout) as job:
        part_way(job)
        raise error
    left = content(out)
    with Job(out, ASKED, layout) as job:
        assert not job.finished
        job.begin()
        assert content(out) == left
        complete(job)
    with Job(out, ASKED, layout) as job:
        assert job.finished


def test_another_call_is_told_in_what_it_differs(layout: Layout, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Job(out, ASKED, layout) as job:
        complete(job)
    before = content(out)
    message = f"{out}: holds (a )?{layout.noun} differing in seed and units; remove this one, or"
    other = {"inputs": ["a"], "options": {"units": 9}}
    with pytest.raises(InputError, match=message):
        Job(out, other, layout).__enter__()
    with pytest.raises(InputError, match="of something else; remove"):
        Job(out, None, layout).__enter__()
    assert content(out) == before


@pytest.mark.parametrize("name", ["kept", "staged"])
def test_unfinished_work_that_is_worth_something_is_kept_from_others(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt), Job(tmp_path, ASKED, LAYOUTS[name]) as job:
        part_way(job)
        raise KeyboardInterrupt
    before = content(tmp_path)
    with pytest.raises(InputError, match="holds an unfinished .* differing in seed"):
        Job(tmp_path, {**ASKED, "seed": 1}, LAYOUTS[name]).__enter__()
    # Unsuitable or not: what there is to go on from is not withdrawn.
    with pytest.raises(InputError), Job(tmp_path, ASKED, LAYOUTS[name]) as job:
        job.begin()
        raise InputError("unsuitable")
    assert content(tmp_path) == before


def test_unfinished_work_that_is_worth_nothing_gives_way(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Job(tmp_path, ASKED, NOTED) as job:
        part_way(job)
        raise KeyboardInterrupt
    with Job(tmp_path, {**ASKED, "seed": 1}, NOTED) as job:
        assert (tmp_path / "spool").exists()  # until it is known that there is something to do
        job.begin()
        assert list(content(tmp_path)) == ["plan.json"]
        complete(job)
    with Job(tmp_path, {**ASKED, "seed": 1}, NOTED) as job:
        assert job.finished


def test_finished_work_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    with Job(tmp_path, ASKED, NOTED) as job:
        complete(job)
    with pytest.raises(InputError, match="overwrite=True"):
        Job(tmp_path, {**ASKED, "seed": 1}, NOTED, overwrite=False).__enter__()
    with Job(tmp_path, {**ASKED, "seed": 1}, NOTED, overwrite=True) as job:
        assert not job.finished and (tmp_path / "all.json").exists()
        job.begin()
        assert list(content(tmp_path)) == ["plan.json"]


def test_what_nothing_can_tell_apart_is_never_the_same(tmp_path: Path) -> None:
    with Job(tmp_path, None, NOTED) as job:
        part_way(job)
    with Job(tmp_path, None, NOTED, overwrite=True) as job:
        job.begin()
        assert list(content(tmp_path)) == ["plan.json"]
        complete(job)
    with Job(tmp_path, None, NOTED, overwrite=True) as job:
        assert not job.finished


# --- what is not ours -------------------------------------------------------------------------


def test_unsuitable_work_leaves_nothing(layout: Layout, tmp_path: Path) -> None:
    for out in (tmp_path / "new", tmp_path):
        with pytest.raises(InputError, match="unsuitable"), Job(out, ASKED, layout) as job:
            job.begin()
            for name in job.layout.products:
                (job.out / name.replace("*", "1")).write_text("half")
            raise InputError("unsuitable")
        assert not (tmp_path / "new").exists() and list(tmp_path.iterdir()) == []


def test_folders_of_others_are_left_alone(layout: Layout, tmp_path: Path) -> None:
    for folder in ("mine", *layout.scratch):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "thesis.txt").write_text("years of work")
        with pytest.raises(InputError, match=f"is not empty and holds no {layout.noun}"):
            Job(tmp_path, ASKED, layout, overwrite=True).__enter__()
        (tmp_path / folder).rename(tmp_path.with_name(f"{tmp_path.name}-{folder}"))
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=f"is a file; name a folder for the {layout.noun}"):
        Job(tmp_path / "thesis.txt", ASKED, layout).__enter__()
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_replacing_and_withdrawing_spare_what_is_of_the_user(tmp_path: Path) -> None:
    with Job(tmp_path, ASKED, NOTED) as job:
        complete(job)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError), Job(tmp_path, None, NOTED, overwrite=True) as job:
        job.begin()
        raise InputError("unsuitable")
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for place in ("/proc/out", tmp_path / "file" / "out"):
        (tmp_path / "file").touch()
        with (
            pytest.raises(InputError, match="out: cannot be written .*name another folder"),
            Job(place, ASKED, NOTED) as job,
        ):
            job.begin()


def damaged(path: Path) -> Iterator[None]:
    """Harms a note in every way, and mends it in the end."""
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for text in (b"", whole[:middle], flipped, b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 9999):
        path.write_bytes(text)
        yield
    path.write_bytes(whole)


def test_a_damaged_note_is_named_with_what_to_do(layout: Layout, tmp_path: Path) -> None:
    with Job(tmp_path, ASKED, layout) as job:
        complete(job)
    if layout.staged:
        pytest.skip("is made again")
    for _ in damaged(tmp_path / layout.finished):
        before = content(tmp_path)
        with pytest.raises(InputError, match="is damaged, so that nobody can tell .*; remove"):
            Job(tmp_path, ASKED, layout).__enter__()
        assert content(tmp_path) == before


def test_a_damaged_note_of_work_in_stages_is_made_again(tmp_path: Path, caplog) -> None:
    with Job(tmp_path, ASKED, STAGED) as job:
        complete(job)
    for _ in damaged(tmp_path / "run.json"):
        caplog.clear()
        with Job(tmp_path, ASKED, STAGED) as job:
            assert not job.finished and "run.json: is damaged, and made again" in caplog.text
            complete(job)
        with Job(tmp_path, ASKED, STAGED) as job:
            assert job.finished and job.facts == {"cells": 5}
        assert (tmp_path / "metrics.changed.json").exists()


def test_damaged_results_are_made_again_and_kept(layout: Layout, tmp_path: Path, caplog) -> None:
    with Job(tmp_path, ASKED, layout) as job:
        complete(job)
    for name in layout.results:
        path = tmp_path / name
        for text in ("", "d", "dond", "done and more", None):
            path.unlink() if text is None else path.write_text(text)
            if not layout.staged:
                with pytest.raises(InputError, match="differing in seed"):
                    Job(tmp_path, {**ASKED, "seed": 1}, layout).__enter__()
            caplog.clear()
            with Job(tmp_path, ASKED, layout) as job:
                assert not job.finished
                complete(job)
            assert path.read_text() == "done"
            if text:
                assert path.with_name(f"{path.stem}.changed{path.suffix}").read_text() == text
                assert f"{name}: is not as it was left" in caplog.text
            with Job(tmp_path, ASKED, layout) as job:
                assert job.finished


# --- several processes ------------------------------------------------------------------------

HOLD = """
import time
from concerto_tf.jobs import Job, Layout
with Job({out!r}, {asked!r}, {layout!r}) as job:
    job.begin()
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that is at work in a folder."""
    started = []

    def start(layout: Layout) -> subprocess.Popen:
        code = HOLD.format(out=str(tmp_path / "out"), asked=ASKED, layout=layout)
        command = [sys.executable, "-c", code]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "begun\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_one_process_at_a_time(layout: Layout, holding: Any, tmp_path: Path, number: int) -> None:
    out, process = tmp_path / "out", holding(layout)
    before = content(out)
    with pytest.raises(InputError, match=f"{out}: another process is at work there .*wait"):
        Job(out, ASKED, layout).__enter__()
    assert content(out) == before
    # Workers that do not write may look.
    with Job(out, ASKED, layout, writes=False) as job:
        job.begin()
        assert not job.finished and content(out) == before
    process.send_signal(number)
    process.wait(10)
    with Job(out, ASKED, layout) as job:
        job.begin()
        assert content(out) == before
        complete(job)
        # Finished work is open to all, also while who made it has not left.
        if layout != STAGED:
            with Job(out, ASKED, layout) as other:
                assert other.finished


def test_who_comes_second_does_not_begin_anew(tmp_path: Path) -> None:
    """Both see an empty place, and one is through before the other begins."""
    out = tmp_path / "out"
    with Job(out, ASKED, KEPT) as late, pytest.raises(InputError, match="differing in seed"):
        with Job(out, {**ASKED, "seed": 1}, KEPT) as first:
            complete(first)
        late.begin()
    with Job(out, {**ASKED, "seed": 1}, KEPT) as job:
        assert job.finished


def test_who_was_taken_for_dead_leaves_the_work_to_the_other(
    layout: Layout, tmp_path: Path
) -> None:
    """As where a process stood still so long that another, on another machine, took its place."""
    out = tmp_path / "out"
    job = Job(out, ASKED, layout)
    with pytest.raises(InputError, match="took over there"), job:
        part_way(job)
        (out / LOCK).unlink()
        other = Job(out, ASKED, layout)
        other.__enter__()
        part_way(other)
        left = content(out)
        job.finish() if layout != STAGED else job.note()
    assert content(out) == left
    complete(other)
    other.__exit__(None, None, None)


#: What is watched for: an event as Python's audit hooks name them.
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


@pytest.mark.parametrize("there", ["nothing", "finished", "unsuitable"])
def test_killed_anywhere_it_ends_as_undisturbed(layout: Layout, there: str, tmp_path: Path) -> None:
    """Every touch of a file is tried; what is found in between is unfinished, or all of it."""
    if there == "finished" and layout != NOTED:
        pytest.skip("is never replaced")
    with Job(tmp_path / "whole", ASKED, layout) as job:
        complete(job)
    whole = content(tmp_path / "whole")
    out, code = tmp_path / "out", 0
    for at in range(1, 200):
        if there == "finished":
            with Job(out, {**ASKED, "seed": 1}, layout) as job:
                complete(job)
        code = killed_at(at, out, layout, there)
        if code == 0 and there == "unsuitable":
            assert not out.exists()
        elif code == 0:
            assert content(out) == whole
        else:
            assert code == -signal.SIGKILL
            with Job(out, ASKED, layout, overwrite=True) as job:
                assert not job.finished or content(out) == whole
                if not job.finished:
                    complete(job)
            assert content(out) == whole
            assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-")]
        if code == 0:
            break
        remove(out)
    assert 5 < at < 199


def killed_at(at: int, out: Path, layout: Layout, there: str) -> int:
    """Does work in a fork that is killed before it touches a file for the at-th time."""
    process = os.fork()
    if not process:
        count = 0

        def watch(event: str, given: tuple) -> None:
            nonlocal count
            if event in TOUCHES and str(out) in str(given[0]):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            with Job(out, ASKED, layout, overwrite=True) as job:
                if there == "unsuitable":
                    job.begin()
                    raise InputError("unsuitable")
                complete(job)
        except InputError:
            pass
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
