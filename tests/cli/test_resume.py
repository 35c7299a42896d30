"""Work that is interrupted or killed: nothing half-finished, and the same result when resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest


def stop(
    start: Callable[[], subprocess.Popen], last: Path, there: Callable[[], bool], number: int
) -> tuple[subprocess.Popen, str]:
    """Starts work and sends it a signal as soon as something is there.

    On a busy machine the work may be done before this process gets to look; it is then begun
    again from nothing.

    Args:
        start: Starts the work.
        last: The file that the work writes last, in its folder.
        there: Whether it is time.
        number: The signal.

    Returns:
        The ended process and what it wrote to stderr.
    """
    for _ in range(8):
        process, limit = start(), time.monotonic() + 120
        while process.poll() is None and not there():
            assert time.monotonic() < limit
            time.sleep(0.0005)
        process.send_signal(number)
        output, err = process.communicate(timeout=60)
        assert output == ""
        if process.returncode != 0 and not last.exists():
            return process, err
        shutil.rmtree(last.parent)
    raise AssertionError("the work was done too quickly to be stopped, eight times")


def interrupted(process: subprocess.Popen, err: str) -> None:
    assert process.returncode == 130
    lines = err.splitlines()
    assert lines == ["concerto: interrupted; run the same command to continue"]


@pytest.fixture(scope="module")
def many_cells(make_cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough cells for several chunks of a conversion."""
    path = tmp_path_factory.mktemp("many") / "many.h5ad"
    make_cells(60_000, 20).write_h5ad(path)
    return path


def test_stopped_conversion_is_resumed(
    many_cells: Path, concerto, started, leftover, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    command = ["convert", many_cells, "-o", out, "--quiet"]
    begin = partial(started, *command)
    last, spool = out / "manifest.json", out / "spool"
    interrupted(*stop(begin, last, (spool / "part-00000").exists, signal.SIGINT))
    assert leftover(out) == []
    answer = concerto("train", out, "-o", tmp_path / "model", "--quiet")
    answer.mendable("unfinished", "same convert again")

    process, _ = stop(begin, last, (spool / "part-00003").exists, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()

    assert concerto(*command).code == 0
    whole = tmp_path / "whole"
    assert concerto("convert", many_cells, "-o", whole).code == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in whole.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.xla  # as in the processes that are stopped
def test_stopped_run_ends_as_an_undisturbed_one(
    cells_file: Path, concerto, started, leftover, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "stopped", tmp_path / "stopped/model/checkpoint/training.npz"
    options = [
        *"--label-key cell_type --genes all --epochs".split(),
        50,
        "--batch-size",
        16,
        "--quiet",
    ]
    command = ["run", cells_file, "-o", out, *options]

    begin = partial(started, *command)
    last = out / "model" / "model.keras"
    interrupted(*stop(begin, last, checkpoint.exists, signal.SIGINT))
    assert leftover(out) == ["manifest.json"]  # the records are finished
    answer = concerto("embed", out / "model", cells_file, "-o", tmp_path / "x.h5ad", "--quiet")
    answer.mendable("no model.keras", "finish")

    first = rounds(checkpoint)
    stop(begin, last, lambda: rounds(checkpoint) > first, signal.SIGKILL)
    assert not (out / "model" / "model.keras").exists() and first >= 1
    # Other options do not take an unfinished training over.
    answer = concerto(*command, "--seed", 1)
    answer.mendable("differing in seed", "another folder")

    assert concerto(*command).code == 0
    assert not checkpoint.parent.exists()
    assert concerto("run", cells_file, "-o", tmp_path / "whole", *options).code == 0
    for key in ("obsm/X_concerto", "obsm/X_umap", "obs/concerto_cluster/codes"):
        assert stored(out, key) == stored(tmp_path / "whole", key), key
    log, whole = ((path / "model" / "training.csv") for path in (out, tmp_path / "whole"))
    assert len(log.read_text().splitlines()) == len(whole.read_text().splitlines())


def rounds(checkpoint: Path) -> int:
    try:
        with np.load(checkpoint) as saved:
            return int(saved["rounds"])
    except FileNotFoundError:
        return 0


def stored(run: Path, key: str) -> bytes:
    with h5py.File(run / "result.h5ad") as file:
        return file[key][()].tobytes()


def test_finished_run_is_left_as_it_is(cells_file: Path, concerto, finished) -> None:
    out, answer = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    began = time.perf_counter()
    again = concerto(
        "run",
        cells_file,
        "-o",
        out,
        *"--label-key cell_type --source-key batch --epochs 1 --json".split(),
    )
    assert time.perf_counter() - began < 10.0  # training alone would take longer
    assert again.code == 0 and again.last == answer.last
    assert again.err == ""
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_only_what_is_missing_is_done_again(cells_file: Path, concerto, finished, tmp_path) -> None:
    shutil.copytree(finished[0], out := tmp_path / "run")
    (out / "metrics.json").unlink()
    (out / "result.h5ad").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "model").rglob("*")}
    answer = concerto(
        "run",
        cells_file,
        "-o",
        out,
        *"--label-key cell_type --source-key batch --epochs 1 --quiet".split(),
    )
    assert answer.code == 0
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "model").rglob("*")}
    assert stored(out, "obsm/X_concerto") == stored(finished[0], "obsm/X_concerto")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["ari_leiden"] == finished[1].last["ari_leiden"]


def test_run_keeps_the_clusters_that_it_was_given_since(
    finished, concerto, cells_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], run := tmp_path / "run")
    answer = concerto("cluster", run, "--algorithm", "kmeans", "--n-clusters", 5, "--json")
    assert answer.last == {"cells": 60, "clusters": 5, "output": str(run / "result.h5ad")}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    keys = ["--label-key", "cell_type", "--source-key", "batch"]
    again = concerto("run", cells_file, "-o", run, *keys, "--epochs", 1, "--json")
    assert again.code == 0 and again.last["clusters"] == 5
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
