"""A run in the way of many cells that is killed anywhere ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from concerto_tf.tasks.simulate import parameters, simulate

#: Sizes from which neighbours are approximate, Leiden is given the bare graph and UMAP a sketch.
MANY = {
    "concerto_tf.metrics.graph": {"EXACT_CELLS": 5_000, "MANY_CELLS": 10_000},
    "concerto_tf.tasks.neighbours": {"MANY_CELLS": 10_000, "SKETCH_CELLS": 4_000},
}
CELLS, KILLS = 20_000, 10


@pytest.mark.slow
def test_run_of_many_cells_is_killed_and_run_again(
    victim, content_of, tmp_path: Path, count: Callable
) -> None:
    cells = tmp_path / "cells.h5ad"
    simulate(parameters(cells=CELLS, genes=400, groups=4, batches=3, counts=600), cells)
    folder = tmp_path / "at work"
    command = ["run", cells, "-o", folder / "run", "--source-key", "batch"]
    whole_time = {"forced": MANY, "seconds": 1800}
    folder.mkdir()
    undisturbed = victim(*command, folder=folder, **whole_time)
    assert undisturbed["code"] == 0, undisturbed
    for searched in ("20000", "4000"):  # for the graph, and in the sketch for places on the map
        assert f"{searched} cells: approximate search" in undisturbed["stderr"]
    whole = content_of(folder / "run")
    for kill in range(KILLS):
        shutil.rmtree(folder / "run")
        if kill % 2:
            share = (kill + 0.5) / KILLS
            when = {"seconds": share * undisturbed["seconds"]}
        else:
            when = {"event": 1 + kill * (undisturbed["events"] - 1) // (KILLS - 1)}
        assert victim(*command, folder=folder, **{**whole_time, **when})["code"] in (-9, 0), when
        again = victim(*command, folder=folder, **whole_time)
        assert again["code"] == 0, (when, again)
        found = content_of(folder / "run")
        assert found == whole, (when, {key for key in whole if found.get(key) != whole[key]})
        count("harmless")
