"""Simulated cells as files: the same cells wherever they go, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from importlib import import_module
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.simulate import SplatParams
from concerto_tf.simulate import simulate_cells as in_memory
from concerto_tf.tasks.simulate import parameters, simulate

PARAMS = SplatParams.droplet(
    n_cells=5000, n_genes=60, lib_loc=5, group_sizes=(2, 1), batch_sizes=(1, 1), seed=3
)


def test_h5ad_is_what_is_simulated_in_memory(tmp_path: Path) -> None:
    done = []
    simulate(PARAMS, tmp_path / "out.h5ad", progress=lambda *cells: done.append(cells))
    found, expected = anndata.read_h5ad(tmp_path / "out.h5ad"), in_memory(PARAMS)
    assert (found.X != expected.X).nnz == 0 and found.X.dtype == np.float32
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert found.uns["simulation"]["seed"] == 3
    assert done == [(4096, 5000), (5000, 5000)]


def test_records_hold_the_same_cells(tmp_path: Path) -> None:
    records = simulate(PARAMS, tmp_path / "records")
    expected = in_memory(PARAMS)
    expected = expected[np.asarray(expected.X.sum(1)).ravel() > 0]
    assert records.n_cells == len(expected) and records.units == "counts"
    assert set(records.manifest.sources) == {"Batch1", "Batch2"}
    known = records.obs()
    assert list(known["cell"]) == list(expected.obs_names)
    assert list(known["label/group"]) == list(expected.obs["group"])
    assert list(known["source"]) == list(expected.obs["batch"])
    found = np.zeros(60)
    for batch in records.dataset(512):
        np.add.at(found, np.asarray(batch["genes"]).ravel(), np.asarray(batch["values"]).ravel())
    np.testing.assert_allclose(found, np.asarray(expected.X.sum(0)).ravel())


def test_paths_become_labels(tmp_path: Path) -> None:
    params = parameters(cells=200, genes=50, groups=2, paths=True, path_from=[0.0, 1.0])
    records = simulate(params, tmp_path / "records")
    assert list(records.labels) == ["path", "step", "pseudotime"]
    assert records.manifest.sources == ("simulation",)


@pytest.mark.parametrize("name", ["out.h5ad", "records"])
def test_memory_does_not_grow_with_the_counts(tmp_path: Path, name: str) -> None:
    def peak(n_cells: int) -> int:
        params = parameters(cells=n_cells, genes=300, counts=2_000, groups=2)
        tracemalloc.start()
        simulate(params, tmp_path / f"{n_cells}-{name}", workers=1)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    first, second = peak(8_192), peak(24_576)
    # all counts of the further cells would be 8 bytes for each of their 200 or more nonzeros
    assert second - first < 0.15 * (24_576 - 8_192) * 200 * 8


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> sp.csr_matrix:
        raise RuntimeError("stopped")

    monkeypatch.setattr(import_module("concerto_tf.simulate.splat"), "draw_counts", fail)
    with pytest.raises((RuntimeError, InputError)):
        simulate(PARAMS, tmp_path / "out.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_finished_records_are_not_replaced_unasked(tmp_path: Path) -> None:
    few, more = (parameters(cells=cells, genes=30) for cells in (50, 60))
    manifest = simulate(few, tmp_path / "records").path / "manifest.json"
    written = manifest.stat().st_mtime_ns
    assert simulate(few, tmp_path / "records").n_cells == 50
    assert manifest.stat().st_mtime_ns == written
    with pytest.raises(InputError, match="holds records differing in inputs"):
        simulate(more, tmp_path / "records")
    assert simulate(more, tmp_path / "records", overwrite=True).n_cells == 60


def test_without_a_place_the_cells_are_in_memory() -> None:
    assert simulate(parameters(cells=20, genes=10)).shape == (20, 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": 0}, "groups is 0"),
        ({"batches": -1}, "batches is -1"),
        ({"groups": 3, "sizes": (1, 2)}, "2 sizes for 3 groups"),
        ({"counts": 0.0}, "counts is 0.0"),
        ({"paths": True, "groups": 2, "path_from": (0, 0.5)}, "path 2 begins at path 0.5"),
    ],
)
def test_unsuitable_parameters(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parameters(**given)


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=".loom cannot be written; name an .h5ad, or a folder"):
        simulate(PARAMS, tmp_path / "out.loom")
