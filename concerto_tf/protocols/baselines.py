"""What a user would pick instead: principal components, and Harmony on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.records import Records


def cells_of(records: Records) -> AnnData:
    """The RNA of records as an AnnData in memory, in the order of the input.

    Args:
        records: Finished records.

    Returns:
        Values as they are stored, float32 CSR, with the columns ``source`` and those of the
        labels in obs (None where a label is missing).
    """
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    parts, rows = [], []
    with records.naming_damage():
        for batch in records.dataset(min(1024, records.n_cells), modalities=["rna"]):
            genes, values, row = (batch[key].numpy() for key in ("genes", "values", "row"))
            at = np.nonzero((values != 0) & (row >= 0)[:, np.newaxis])
            part = sp.csr_matrix(
                (values[at], (at[0], genes[at])), (len(row), records.n_genes), np.float32
            )
            parts.append(part[row >= 0])
            rows.append(row[row >= 0])
    order = np.argsort(np.concatenate(rows))
    known = records.obs()
    columns = {key.removeprefix("label/"): known[key] for key in known if key.startswith("label/")}
    obs = pd.DataFrame({"source": known["source"], **columns}, index=list(known["cell"]))
    var = pd.DataFrame(index=list(records.vocabulary.ids))
    return AnnData(sp.csr_matrix(sp.vstack(parts))[order], obs, var)


def log_normalized(cells: AnnData, counts: bool = True) -> AnnData:
    """A copy with counts scaled to 10,000 per cell and log1p taken; a plain copy of anything else.

    Args:
        cells: Cells.
        counts: Whether they hold counts.
    """
    import scanpy as sc

    cells = cells.copy()
    if counts:
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
    return cells


def pca(cells: AnnData, seed: int = 0, *, n_genes: int = 2000, components: int = 50) -> np.ndarray:
    """Principal components as scanpy's tutorial makes them.

    Args:
        cells: Log-normalised cells.
        seed: Seed of the solver.
        n_genes: Number of highly variable genes that are looked at.
        components: Number of components, at most; as many as there can be of fewer cells.

    Returns:
        The components [n, components], float32.
    """
    import scanpy as sc

    cells = cells.copy()
    sc.pp.filter_genes(cells, min_cells=1)
    if cells.n_vars > n_genes:
        sc.pp.highly_variable_genes(cells, n_top_genes=n_genes)
        cells = cells[:, cells.var["highly_variable"]].copy()
    if not isinstance(cells.X, np.ndarray):
        cells.X = cells.X.toarray()
    sc.pp.scale(cells, max_value=10)
    k = min(components, cells.n_obs - 1, cells.n_vars - 1)
    sc.pp.pca(cells, n_comps=k, random_state=seed)
    return np.asarray(cells.obsm["X_pca"], np.float32)


def harmony(components: np.ndarray, sources: Any, seed: int = 0) -> np.ndarray:
    """Harmony's correction of principal components.

    Args:
        components: Principal components [n, d].
        sources: Name of the source of each cell [n].
        seed: Seed of its clusters.

    Returns:
        Corrected components [n, d], float32.

    Raises:
        InputError: harmonypy is not installed.

    Reference:
        Korsunsky et al., Nature Methods 16:1289 (2019).
    """
    import pandas as pd

    try:
        import harmonypy
    except ImportError as error:
        raise InputError(
            "Harmony needs harmonypy, which is not installed; pip install harmonypy, or leave "
            "harmony out of the methods"
        ) from error
    frame = pd.DataFrame({"source": np.asarray(sources).astype(str)})
    found = harmonypy.run_harmony(
        np.asarray(components, np.float64), frame, ["source"], verbose=False, random_state=seed
    )
    z = np.asarray(found.Z_corr, np.float32)
    return z if len(z) == len(frame) else z.T
