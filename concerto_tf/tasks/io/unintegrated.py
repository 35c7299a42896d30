"""What cells are like before any integration, to judge what an embedding has taken away."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import pcr
from concerto_tf.records.units import detect_units, scales_with_depth
from concerto_tf.tasks.io.embedded import open_embedded

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Cells that components are computed of, at most, and their number.
_CELLS, _COMPONENTS = 5_000, 50


def source_variance(
    adata: AnnData, embedding: np.ndarray, sources: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """`pcr` of an embedding against principal components of the values in X.

    Args:
        adata: The cells, also backed; counts are scaled to 10,000 and log1p is taken, other values
            are looked at as they are.
        embedding: [n, d] of the same cells.
        sources: [n] names; missing ones take no part.
        seed: Of a sample of 5,000 cells.

    Returns:
        ``pcr``; nothing where there are no values or fewer than two sources.
    """
    import pandas as pd

    known = np.flatnonzero(~pd.isna(pd.Series(sources, dtype=object)).to_numpy())
    if len(known) > _CELLS:
        known = np.sort(np.random.default_rng(seed).permutation(known)[:_CELLS])
    values = _values(adata, known)
    if values is None:
        return {}
    try:
        before = components(values, seed)
        return {"pcr": pcr(before, np.asarray(embedding)[known], np.asarray(sources)[known])}
    except InputError as error:
        _log.info("no score of what integration takes away: %s", error.message)
        return {}


def variance_lost(
    path: Path, embedding: np.ndarray, sources: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """`source_variance` of an embedding of the cells of an `.h5ad`."""
    adata = open_embedded(path, backed=True)
    try:
        return source_variance(adata, embedding, sources, seed)
    finally:
        adata.file.close()


def components(values: Any, seed: int = 0) -> np.ndarray:
    """Up to 50 principal components [n, k] of values [n, genes], counts being log-normalized."""
    import scipy.sparse as sp
    from sklearn.decomposition import PCA

    x = sp.csr_matrix(values, dtype=np.float32)
    if not np.isfinite(x.data).all():
        raise InputError("X has values that are not finite")
    if (x.data >= 0).all() and scales_with_depth(detect_units([x])):
        total = np.asarray(x.sum(axis=1)).ravel()
        scale = np.divide(1e4, total, out=np.zeros(len(total)), where=total > 0)
        x = sp.diags(scale).dot(x).log1p().tocsr().astype(np.float32)
    count = min(_COMPONENTS, min(x.shape) - 1)
    if count < 1:
        raise InputError(f"X of {x.shape[0]} cells and {x.shape[1]} genes has no components")
    return PCA(count, svd_solver="arpack", random_state=seed).fit_transform(x)


def _values(adata: AnnData, rows: np.ndarray) -> Any:
    """X of some cells; None where there is none."""
    if adata.X is None or not adata.n_vars or len(rows) < 3:
        return None
    return adata[rows].to_memory().X
