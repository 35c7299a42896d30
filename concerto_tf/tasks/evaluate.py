"""Scores of an embedding against labels, and by the mixing of sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from concerto_tf._calls import checked
from concerto_tf._progress import stage
from concerto_tf.errors import InputError, choices
from concerto_tf.tasks.io.embedded import embedding_of, open_embedded
from concerto_tf.tasks.io.unintegrated import source_variance

if TYPE_CHECKING:
    from anndata import AnnData


@checked
def evaluate(
    cells: str | Path | AnnData,
    *,
    label_key: str | None = None,
    source_key: str | None = None,
    rep: str = "X_concerto",
    seed: int = 0,
) -> dict[str, float]:
    """Scores an embedding against labels, and by the mixing of sources.

    Args:
        cells: An `.h5ad` with an embedding in obsm, or an AnnData.
        label_key: Column of obs with labels.
        source_key: Column of obs with sources.
        rep: Key of the embedding in obsm.
        seed: Seed of samples and clusters.

    Returns:
        Number of cells and genes, and those metrics that apply: those of `embedding_scores`, and
        with sources ``pcr``, the share of their variance in X that the embedding has lost.

    Raises:
        InputError: The file is unsuitable, or holds no such key.
    """
    from concerto_tf.metrics import embedding_scores

    if label_key is None and source_key is None:
        raise InputError("name a label key, a source key or both to score an embedding by")
    adata = open_embedded(cells, backed=True)
    name = cells if isinstance(cells, str | Path) else "AnnData"
    try:
        z = embedding_of(name, adata, rep)
        for key in (label_key, source_key):
            if key is not None and key not in adata.obs:
                raise InputError(f"{name}: no column {key!r} in obs; {choices(key, adata.obs)}")
        with stage("scores of the embedding"):
            scores = embedding_scores(
                z,
                None if label_key is None else adata.obs[label_key].to_numpy(),
                None if source_key is None else adata.obs[source_key].to_numpy(),
                seed=seed,
            )
            if source_key is not None:
                scores |= source_variance(adata, z, adata.obs[source_key].to_numpy(), seed)
        return {"cells": adata.n_obs, "genes": adata.n_vars, **scores}
    finally:
        if adata is not cells and adata.isbacked:
            adata.file.close()
