"""The stream of cells."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from concerto_tf.errors import InputError
from concerto_tf.simulate import Experiment, SplatParams, simulate_cells, stream

PARAMS = SplatParams.droplet(n_cells=4500, n_genes=300, lib_loc=5, group_sizes=(2, 1), seed=7)


def whole(params: SplatParams, **options: int) -> tuple[sparse.csr_matrix, list]:
    counts, obs = zip(*stream(params, **options), strict=True)
    return sparse.vstack(counts, "csr"), list(obs)


def test_counts_depend_on_neither_chunks_nor_workers() -> None:
    import pandas as pd

    expected, obs = whole(PARAMS, chunk_cells=4500, workers=1)
    assert expected.shape == (4500, 300)
    for options in ({"chunk_cells": 700, "workers": 3}, {"chunk_cells": 1024, "workers": 2}):
        found, parts = whole(PARAMS, **options)
        assert (found != expected).nnz == 0
        assert [len(p) for p in parts[:-1]] == [options["chunk_cells"]] * (len(parts) - 1)
        pd.testing.assert_frame_equal(pd.concat(parts), obs[0])


@pytest.mark.parametrize(("start", "stop"), [(0, 4500), (2040, 4200), (100, 101), (4096, 4096)])
def test_any_stretch_is_part_of_the_whole(start: int, stop: int) -> None:
    expected, (obs,) = whole(PARAMS, chunk_cells=4500)
    cells = Experiment(PARAMS)
    found = cells.counts(start, stop)
    assert found.shape == (stop - start, 300) and (found != expected[start:stop]).nnz == 0
    if stop > start:
        assert cells.obs(start, stop).equals(obs[start:stop])


def test_seed_decides() -> None:
    expected = whole(PARAMS)[0]
    assert (whole(PARAMS)[0] != expected).nnz == 0
    assert (whole(dataclasses.replace(PARAMS, seed=8))[0] != expected).nnz > 0


def test_blocks_differ() -> None:
    counts = whole(PARAMS)[0]
    assert (counts[:2048] != counts[2048:4096]).nnz > 0


def test_more_cells_begin_with_the_same_blocks() -> None:
    more = whole(dataclasses.replace(PARAMS, n_cells=5000))[0]
    assert (more[:4096] != whole(PARAMS)[0][:4096]).nnz == 0


def test_memory_does_not_grow_with_cells() -> None:
    def peak(n_cells: int) -> int:
        tracemalloc.start()
        for _ in stream(dataclasses.replace(PARAMS, n_cells=n_cells), 512, workers=1):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    assert peak(24_000) < 1.3 * peak(5000)


def test_reading_may_stop_early() -> None:
    chunks = list(itertools.islice(stream(dataclasses.replace(PARAMS, n_cells=10**9), 64), 2))
    assert [len(obs) for _, obs in chunks] == [64, 64]


def test_anndata_holds_the_truth(tmp_path) -> None:
    import anndata

    params = dataclasses.replace(PARAMS, n_cells=200, batch_sizes=(1.0, 1.0))
    adata = simulate_cells(params)
    assert (adata.X != whole(params)[0]).nnz == 0
    assert list(adata.obs) == ["group", "batch", "library_size"]
    assert list(adata.obs["group"].cat.categories) == ["Group1", "Group2"]
    assert list(adata.var) == [
        *"mean outlier de_Group1 de_Group2 batch_Batch1 batch_Batch2".split()
    ]
    assert adata.obs_names[0] == "Cell1"
    assert adata.var_names[-1] == "Gene300"
    adata.write_h5ad(tmp_path / "simulated.h5ad")
    again = anndata.read_h5ad(tmp_path / "simulated.h5ad")
    assert again.uns["simulation"]["seed"] == 7
    assert list(again.uns["simulation"]["group_sizes"]) == [2, 1]


def test_differential_genes_differ_between_groups() -> None:
    adata = simulate_cells(dataclasses.replace(PARAMS, de_prob=0.3, de_scale=1.0))
    first = (adata.obs["group"] == "Group1").to_numpy()
    ratio = np.log((adata.X[first].mean(0) + 1e-9) / (adata.X[~first].mean(0) + 1e-9)).A1
    truth = np.log(adata.var["de_Group1"] / adata.var["de_Group2"]).to_numpy()
    seen = adata.X.mean(0).A1 > 0.2
    assert np.corrcoef(ratio[seen], truth[seen])[0, 1] > 0.9


def test_paths_have_pseudotime() -> None:
    params = dataclasses.replace(
        PARAMS, paths=True, path_from=(0, 1), path_steps=11, group_sizes=(1, 1), batch_sizes=(1, 1)
    )
    obs = simulate_cells(params).obs
    assert list(obs) == ["path", "step", "pseudotime", "batch", "library_size"]
    second = obs["path"] == "Path2"
    np.testing.assert_allclose(obs["pseudotime"], second + obs["step"] / 10)
    assert (obs["pseudotime"].min(), obs["pseudotime"].max()) == (0, 2)


def test_droplet_cells_look_like_droplet_cells() -> None:
    counts, _ = next(stream(SplatParams.droplet(n_cells=200)))
    assert counts.shape == (200, 20_000)
    assert 1100 < counts.nnz / 200 < 1500


def test_unsuitable_options_are_refused() -> None:
    with pytest.raises(InputError, match="chunk_cells must be a whole number of at least 1, not 0"):
        stream(PARAMS, chunk_cells=0)
    with pytest.raises(InputError, match="workers must be a whole number of at least 1, not 0"):
        stream(PARAMS, workers=0)
