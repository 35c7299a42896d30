"""Imputation of a modality: Pearson correlation per feature, beside a kNN on PCA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records.batch import RNA
from concerto_tf.tasks.impute import K, impute
from protocols.embeddings import check_training
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

_COMPONENTS = 50
_GENES = 2000


def imputation(
    cells: str | Path | AnnData,
    out: str | Path,
    *,
    modality: str = "protein",
    place: str | None = None,
    train_share: float = 0.8,
    k: int = K,
    multimodal: bool = False,
    seeds: Sequence[int] = (0,),
    **training: Any,
) -> dict[str, Any]:
    """Trains on a part of the cells, gives the rest only RNA, and compares with what was measured.

    Beside it stands the plain mean over as many neighbours among 50 principal components of the
    2,000 genes that vary most, fitted on the same part. Both are judged by the Pearson correlation
    over the held-out cells, feature by feature, in log1p of counts scaled to 10,000 per cell.

    Leaves ``table.tsv`` (feature, seed, and the correlation by each method), ``result.json``
    (means) and ``figure.png`` in ``out``.

    Args:
        cells: An `.h5ad` or AnnData with counts and the modality.
        out: Folder of the report.
        modality: Name of the modality.
        place: Where it lies, as `convert` takes it; by default the table of that name in obsm.
        train_share: Share of the cells to train on.
        k: Number of neighbours, of both methods.
        multimodal: Whether the model is trained on the modality too, and not on RNA alone.
        seeds: Seeds of the split and of training.
        **training: Further arguments of `concerto_tf.train`.

    Returns:
        What ``result.json`` holds.

    Raises:
        InputError: The modality is not there, or the share leaves no cells on one side.
    """
    import pandas as pd

    check_training(training, "modalities")
    out = check_folder(out)
    adata = _read(cells)
    n_train = int(round(train_share * adata.n_obs))
    if not 1 < n_train < adata.n_obs:
        raise InputError(
            f"a share of {train_share} of {adata.n_obs} cells leaves none to train on, or to test"
        )
    place = place or f"obsm:{modality}"
    tables = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        chosen, rest = np.sort(order[:n_train]), np.sort(order[n_train:])
        tables.append(
            _compare(adata[chosen], adata[rest], modality, place, k, multimodal, seed, training)
        )
    table = pd.concat(tables, ignore_index=True)
    methods = ["concerto", "pca"]
    result = {
        "modality": modality,
        "k": k,
        "multimodal": multimodal,
        "seeds": list(seeds),
        "cells": {"train": n_train, "test": adata.n_obs - n_train},
        "mean": {name: table[name].mean() for name in methods},
        "features": table.groupby("feature", sort=False)[methods].mean().T.to_dict(),
    }
    return leave(out, table, result, new_figure(table))


def _compare(
    train_cells: AnnData,
    test_cells: AnnData,
    modality: str,
    place: str,
    k: int,
    multimodal: bool,
    seed: int,
    training: Mapping[str, Any],
) -> pd.DataFrame:
    """Correlations of one split."""
    import tempfile

    import pandas as pd

    from concerto_tf.records import convert
    from concerto_tf.tasks.reference import read_values
    from concerto_tf.tasks.train import train

    train_cells, test_cells = train_cells.copy(), test_cells.copy()
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        records = convert(train_cells, f"{folder}/train", modalities={modality: place})
        held_out = convert(test_cells, f"{folder}/test", modalities={modality: place}, like=records)
        measured, known = read_values(held_out, modality), read_values(records, modality)
        bare = test_cells.copy()
        for key in list(bare.obsm):
            del bare.obsm[key]
        model = train(
            records,
            f"{folder}/model",
            modalities=None if multimodal else [RNA],
            seed=seed,
            **training,
        )
        found = impute(model, bare, reference=records, modalities={modality: place}, k=k)[modality]
    pca = by_pca(train_cells, test_cells, _dense(known.matrix), k, seed)
    truth = _dense(measured.matrix)
    return pd.DataFrame(
        {
            "feature": measured.features,
            "seed": seed,
            "concerto": correlations(found.to_numpy(), truth),
            "pca": correlations(pca, truth),
        }
    )


def correlations(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column over the cells; NaN where one does not vary.

    Args:
        found: Imputed values [n, F].
        truth: Measured values [n, F].

    Returns:
        Correlations [F].

    Example:

    >>> import numpy as np
    >>> from protocols.imputation import correlations
    >>> correlations(np.array([[1.0, 1], [2, 1], [3, 1]]), np.array([[2.0, 1], [4, 2], [6, 3]]))
    array([ 1., nan])
    """
    a, b = (np.asarray(x, np.float64) - np.mean(x, axis=0) for x in (found, truth))
    scale = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    together = (a * b).sum(axis=0)
    return np.divide(together, scale, out=np.full(len(scale), np.nan), where=scale > 1e-12)


def by_pca(
    train_cells: AnnData, test_cells: AnnData, values: np.ndarray, k: int, seed: int
) -> np.ndarray:
    """Mean over the k nearest cells by Euclidean distance of principal components.

    Args:
        train_cells: Cells with counts [n].
        test_cells: Cells with counts [m] of the same genes.
        values: What is known of the former [n, F].
        k: Number of neighbours.
        seed: Of the components.

    Returns:
        The means [m, F].
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    x, y = log_values(train_cells.X), log_values(test_cells.X)
    if x.shape[1] > _GENES:
        import scanpy as sc
        from anndata import AnnData

        flags = sc.pp.highly_variable_genes(AnnData(x), n_top_genes=_GENES, inplace=False)
        chosen = flags["highly_variable"].to_numpy()
        x, y = x[:, chosen], y[:, chosen]
    n = min(_COMPONENTS, *(size - 1 for size in x.shape))
    pca = PCA(n, svd_solver="randomized", random_state=seed).fit(x)
    search = NearestNeighbors(n_neighbors=k).fit(pca.transform(x))
    return values[search.kneighbors(pca.transform(y), return_distance=False)].mean(axis=1)


def log_values(counts: Any) -> np.ndarray:
    """Counts [n, F], dense or sparse, scaled to 10,000 per cell and log1p taken; dense float32."""
    x = _dense(counts).astype(np.float32)
    return np.log1p(x * (1e4 / np.maximum(x.sum(axis=1, keepdims=True), 1e-12)))


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)


def _read(cells: str | Path | AnnData) -> AnnData:
    from concerto_tf.tasks.io.embedded import open_embedded

    return open_embedded(cells, backed=False) if isinstance(cells, str | Path) else cells


def new_figure(table: pd.DataFrame) -> Figure:
    """Correlation by feature, both methods, means over the seeds."""
    from concerto_tf.pl.figures import PALETTE, new_figure

    means = table.groupby("feature", sort=False)[["concerto", "pca"]].mean()
    means = means.sort_values("concerto", ascending=False).head(40)
    figure, [axes] = new_figure(max(4.0, 0.32 * len(means) + 1.5), 3.2)
    at = np.arange(len(means))
    for shift, name, color in ((-0.2, "concerto", 0), (0.2, "pca", 1)):
        label = {"concerto": "Concerto", "pca": "kNN on PCA"}[name]
        axes.bar(at + shift, means[name], 0.4, color=PALETTE[color], label=label)
    axes.set_xticks(at, [str(name) for name in means.index], rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("Pearson correlation")
    axes.set_ylim(min(0.0, float(means.min().min())), 1.0)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
