"""What a user would pick instead: principal components, Harmony on top of them, and scVI."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.batch import RNA, label_key

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.records import Records

_log = logging.getLogger("concerto_tf")


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
        for batch in records.dataset(min(1024, records.n_cells), modalities=[RNA]):
            genes, values, row = (batch[key].numpy() for key in ("genes", "values", "row"))
            at = np.nonzero((values != 0) & (row >= 0)[:, np.newaxis])
            part = sp.csr_matrix(
                (values[at], (at[0], genes[at])), (len(row), records.n_genes), np.float32
            )
            parts.append(part[row >= 0])
            rows.append(row[row >= 0])
    order = np.argsort(np.concatenate(rows))
    known = records.obs()
    columns = {name: known[label_key(name)] for name in records.labels}
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


def expressed(cells: AnnData) -> AnnData:
    """A copy with the genes that three cells show at least; with all where cells are 300 or fewer.

    Args:
        cells: Cells with counts.
    """
    import scanpy as sc

    cells = cells.copy()
    if cells.n_obs > 300:
        sc.pp.filter_genes(cells, min_cells=3)
    return cells


def pca(
    cells: AnnData,
    seed: int = 0,
    *,
    n_genes: int = 2000,
    components: int = 50,
    scaled: bool = True,
) -> np.ndarray:
    """Principal components as scanpy's tutorials make them, of which some scale genes.

    Args:
        cells: Log-normalized cells.
        seed: Seed of the solver.
        n_genes: Number of highly variable genes that are looked at.
        components: Number of components, at most; as many as there can be of fewer cells.
        scaled: Whether each gene is scaled to unit variance.

    Returns:
        The components [n, components], float32.
    """
    import scanpy as sc

    cells = cells.copy()
    sc.pp.filter_genes(cells, min_cells=1)
    if cells.n_vars > n_genes:
        sc.pp.highly_variable_genes(cells, n_top_genes=n_genes)
        cells = cells[:, cells.var["highly_variable"]].copy()
    if scaled:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # that centered values are no longer sparse
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


def scvi(
    counts: AnnData, source_key: str | None = None, seed: int = 0, *, n_genes: int = 2000
) -> np.ndarray:
    """scVI's latent space with the settings of its published benchmarks.

    Args:
        counts: Cells with counts.
        source_key: Column of obs with the sources; ``None`` where there is one.
        seed: Seed of the training.
        n_genes: Number of highly variable genes that are looked at.

    Returns:
        The means of the latent variables [n, 30], float32.

    Raises:
        InputError: scvi-tools is not installed, or fails.

    Reference:
        Lopez et al., Nature Methods 15:1053 (2018); 2 layers, 30 dimensions and the negative
        binomial as in Luecken et al., Nature Methods 19:41 (2022).
    """
    return _scvi_alone(counts, n_genes, source_key or "", str(seed))


def scanvi(counts: AnnData, source_key: str, label_key: str, seed: int = 0) -> np.ndarray:
    """Labels by scANVI on top of scVI, with the settings of its tutorial.

    Args:
        counts: Cells with counts, reference and query.
        source_key: Column of obs with the sources.
        label_key: Column of obs with the labels, missing in the query.
        seed: Seed of the training.

    Returns:
        The label of every cell [n], that of the query's being predicted.

    Raises:
        InputError: scvi-tools is not installed, or fails.

    Reference:
        Xu et al., Molecular Systems Biology 17:e9620 (2021).
    """
    return _scvi_alone(counts, 2000, source_key, str(seed), label_key)


def _scvi_alone(counts: AnnData, n_genes: int, *arguments: str) -> np.ndarray:
    """What `scvi_alone.py` leaves of the genes that vary most."""
    import scanpy as sc

    check_installed(["scvi"])
    chosen = counts
    if counts.n_vars > n_genes:
        normalized = log_normalized(counts)
        sc.pp.highly_variable_genes(normalized, n_top_genes=n_genes)
        chosen = counts[:, normalized.var["highly_variable"]].copy()
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        cells, out = Path(folder) / "cells.h5ad", Path(folder) / "z.npy"
        chosen.write_h5ad(cells)
        call = [sys.executable, str(Path(__file__).with_name("scvi_alone.py")), cells, out]
        done = subprocess.run(
            [*map(str, call), *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode or not out.exists():
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise InputError(f"scVI failed: {last}; leave scvi out of the methods")
        _log.info("scVI: %s s without imports", done.stdout.split()[-1])
        return np.load(out, allow_pickle=False)


def check_installed(methods: Iterable[str]) -> None:
    """Raises InputError where a method among these needs a package that is not installed."""
    if "harmony" in methods:
        harmony(np.random.default_rng(0).normal(size=(20, 2)), ["a", "b"] * 10)
    if "scvi" in methods and find_spec("scvi") is None:
        raise InputError(
            "scVI needs scvi-tools, which is not installed; pip install scvi-tools, or leave scvi "
            "out of the methods"
        )
