"""Cells to be read, and what reading them gives."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from concerto_tf.records.inputs.input import Input

N_CELLS, N_GENES = 23, 12


def _counts(n_genes: int = N_GENES, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.6, (N_CELLS, n_genes)).astype(np.float32)


def _make(x: Any = None, **more: Any) -> ad.AnnData:
    x = sp.csr_matrix(_counts()) if x is None else x
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.resize(["T", "B", None], x.shape[0])),
            "day": np.resize([3, 10], x.shape[0]),
        },
        index=[f"Zelle-ß{i}" for i in range(x.shape[0])],
    )
    var = pd.DataFrame(index=[f"G{i}X" for i in range(x.shape[1])])
    return ad.AnnData(x, obs=obs, var=var, **more)


def _normalized() -> ad.AnnData:
    """Those cells log-normalized to 10,000 per cell."""
    totals = _counts().sum(axis=1, keepdims=True)
    return _make(sp.csr_matrix(np.log1p(1e4 * _counts() / totals)))


def _dense(cells: Input, name: str = "rna", step: int = 7) -> np.ndarray:
    """All values, by chunks that do not divide the number of cells."""
    chunks = [
        cells.chunk(i, min(i + step, cells.n_cells))[name] for i in range(0, cells.n_cells, step)
    ]
    for chunk in chunks:
        assert isinstance(chunk, sp.csr_matrix)
        assert chunk.indices.dtype == np.int32
        assert chunk.has_canonical_format
        assert np.all(chunk.data != 0)
    return np.concatenate([chunk.toarray() for chunk in chunks])


@pytest.fixture
def counts() -> Callable[..., np.ndarray]:
    """Counts [23, genes]."""
    return _counts


@pytest.fixture
def make() -> Callable[..., ad.AnnData]:
    """Cells with these counts, or with a matrix that is given."""
    return _make


@pytest.fixture
def normalized() -> Callable[[], ad.AnnData]:
    """Those cells log-normalized to 10,000 per cell."""
    return _normalized


@pytest.fixture
def dense() -> Callable[..., np.ndarray]:
    """All values of a modality of an open input, checked to be in order."""
    return _dense


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Callable[[ad.AnnData, str], Any]]:
    """Puts an AnnData where it can be opened: in memory, as a view, backed, or in a file."""
    opened = []

    def store(adata: ad.AnnData, how: str) -> Any:
        if how == "memory":
            return adata
        if how == "view":
            # Every second of twice the cells, so that rows are not those of the parent.
            twice = ad.concat([adata, adata], merge="same", index_unique="-")
            twice.layers.update({k: sp.csr_matrix(v) for k, v in twice.layers.items()})
            twice.raw = adata.raw and ad.concat([adata.raw.to_adata()] * 2, index_unique="-")
            order = np.arange(2 * adata.n_obs).reshape(2, -1).T.ravel()
            view = twice[order][0::2]
            assert view.is_view
            return view
        if how.startswith("zarr"):
            path = tmp_path / "in.zarr"
            with (
                ad.settings.override(zarr_write_format=int(how[-1])),
                warnings.catch_warnings(),
            ):
                # anndata announces changes of both formats; reading is not excused.
                warnings.simplefilter("ignore")
                adata.write_zarr(path)
            return path
        path = tmp_path / "in.h5ad"
        adata.write_h5ad(path)
        if how == "backed":
            opened.append(ad.read_h5ad(path, backed="r"))
            return opened[-1]
        return path

    yield store
    for adata in opened:
        adata.file.close()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files go here."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
