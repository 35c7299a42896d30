"""A command takes as many threads as it is told, or as are given to its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from concerto_tf import _threads
from concerto_tf.cli import main

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import json, os, pathlib, sys
from concerto_tf.cli import main
out, *threads = sys.argv[1:]
line = ["simulate", "-o", out, "--cells", "50", "--genes", "50", "--quiet", *threads]
assert not {"numpy", "scipy", "tensorflow"} & set(sys.modules)  # which read it when loaded
assert main(line) == 0

import faiss, numba, sklearn.cluster, threadpoolctl
import tensorflow as tf
tf.function(lambda x: x @ x, jit_compile=True)(tf.ones((500, 500)))
names = [(task / "comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
print(json.dumps({
    "tensorflow": names.count("tf_Compute"),
    "XLA": names.count("tf_XLAEigen"),
    "numba": numba.get_num_threads(),
    "faiss": faiss.omp_get_max_threads(),
    **{pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()},
}))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list threads")
def test_every_library_is_held_to_it(tmp_path: Path) -> None:
    unset = {name: text for name, text in os.environ.items() if name not in _threads._VARIABLES}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "cells.h5ad"), "--threads", "1"],
        env={**unset, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) > 5 and set(found.values()) == {1}, found


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that nobody has limited, and that is left as it was."""
    for name in (*_threads._VARIABLES, "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(_threads, "_asked", None)
    monkeypatch.delitem(sys.modules, "numba", raising=False)  # as if nothing were loaded yet
    return monkeypatch


def test_the_least_of_what_is_given_counts(free: pytest.MonkeyPatch) -> None:
    known = Path.read_text
    free.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    free.setattr(os, "cpu_count", lambda: 64)
    given = [("max 100000", "", 8), ("400000 100000", "6", 4), ("400000 100000", "3", 3)]
    for share, slurm, number in [*given, ("10000 100000", "x", 1)]:
        free.setattr(
            Path,
            "read_text",
            lambda path, *a, s=share: s if path.name == "cpu.max" else known(path, *a),
        )
        free.setenv("SLURM_CPUS_PER_TASK", slurm)
        assert _threads.processors() == number


def test_what_is_asked_for_counts_before_the_environment(free: pytest.MonkeyPatch) -> None:
    free.setenv("OMP_NUM_THREADS", "5")
    free.setenv("SLURM_CPUS_PER_TASK", "1")
    _threads.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5" and os.environ["NUMBA_NUM_THREADS"] == "1"
    _threads.limit_threads(7)
    assert {os.environ[name] for name in _threads._VARIABLES} == {"7"}
    assert _threads.processors() == 7


@pytest.mark.parametrize("number", ["0", "1.5", "many"])
def test_what_is_no_number_is_said(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--threads", number]) == 2
    assert "1 or more" in capsys.readouterr().err


def test_numba_that_runs_already_keeps_its_threads() -> None:
    """As where two commands are called in one process: it fails over another number."""
    code = """
import os
from concerto_tf._threads import limit_threads
limit_threads(2)
import numba
numba.set_num_threads(1)  # its threads are started
limit_threads(1)
told = [os.environ[name] for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")]
print(numba.njit(lambda x: x + 1)(1), *told)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout.split() == ["2", "2", "1"], ran.stderr
