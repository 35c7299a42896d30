"""How far long work is: a bar in a terminal, lines now and then elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest


@pytest.fixture
def terminal():
    """A terminal to write to, and a function that gives what was written."""
    leader, follower = pty.openpty()
    stream = os.fdopen(follower, "w")

    def written() -> str:
        stream.flush()
        os.set_blocking(leader, False)
        text = os.read(leader, 1_000_000)
        with contextlib.suppress(BlockingIOError):
            while True:  # a terminal hands out a few thousand bytes at a time
                text += os.read(leader, 1_000_000)
        return text.decode()

    yield stream, written
    stream.close()
    os.close(leader)


def test_terminal_shows_a_bar(
    terminal, concerto, cells_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, written = terminal
    adata = anndata.read_h5ad(cells_file)
    adata.obs.iloc[0, 0] = np.nan
    adata.write_h5ad(tmp_path / "cells.h5ad")
    answer = concerto(
        "convert",
        tmp_path / "cells.h5ad",
        "-o",
        tmp_path / "records",
        "--label-key",
        "cell_type",
        stderr=stream,
    )
    assert answer.code == 0
    shown = written()
    assert "━━━" in shown and "60/60" in shown and "cells/s" in shown
    assert "60 of 60" not in shown and "━" not in answer.out
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert "label 'cell_type': 1 cells without a value" in lines  # not in the middle of the bar
    concerto("convert", cells_file, "-o", tmp_path / "q", "--quiet", stderr=stream)
    with pytest.raises(BlockingIOError):
        written()


def test_plain_lines_come_now_and_then() -> None:
    from concerto_tf.cli import progress

    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        clock = iter(np.arange(0.0, 100.0, 2.0))
        patch.setattr(progress.time, "monotonic", lambda: next(clock))
        with progress.Reporter() as report:
            for done in range(0, 101, 10):
                report("train", done, 100)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "train: 100 of 100 cells, 5 cells/s"
    assert lines[0] == "train: 30 of 100 cells, 5 cells/s, 14 s left"
    assert len(lines) == 4
