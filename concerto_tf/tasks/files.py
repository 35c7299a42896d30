"""The tasks that take cells with an embedding, in an `.h5ad` or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from concerto_tf._files import atomic
from concerto_tf._paths import as_path, is_hdf5, is_remote, local_copy
from concerto_tf.errors import InputError
from concerto_tf.tasks.io.result import check_target

if TYPE_CHECKING:
    from anndata import AnnData


def open_embedded(cells: str | Path | AnnData, backed: bool) -> AnnData:
    """An `.h5ad` that a task left, or the AnnData itself.

    Args:
        cells: The file, or what is in memory already.
        backed: Leave the values on disk, where only the annotation is wanted.

    Returns:
        The AnnData.

    Raises:
        InputError: The file is missing, damaged, or no AnnData.
    """
    import anndata

    if not isinstance(cells, str | Path):
        return cells
    path = as_path(cells)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; check the path")
    if not path.is_dir() and not is_hdf5(path):
        raise InputError(f"{path}: no .h5ad; `embed` or `run` writes one")
    try:
        if path.is_dir():
            return anndata.io.read_zarr(path)
        if is_remote(path):  # whose copy does not outlast this call
            with local_copy(path) as copy:
                return anndata.io.read_h5ad(copy)
        return anndata.io.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:  # noqa: BLE001 - whatever the libraries raise, the file is wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path}: cannot be read as .h5ad ({reason}); `embed` or `run` writes one"
        ) from error


def check_embedding(name: str | Path, adata: AnnData, rep: str) -> None:
    """Raises InputError if the cells of this name have no such embedding."""
    if rep != "X" and rep not in adata.obsm:
        known = ", ".join(adata.obsm) or "none"
        raise InputError(
            f"{name}: no embedding {rep!r} in obsm (there: {known}); make one with `embed`, "
            "or name another",
            "rep",
        )


def cluster(
    cells: str | Path | AnnData,
    out: str | Path | None = None,
    *,
    rep: str = "X_concerto",
    algorithm: str = "leiden",
    resolution: float = 1.0,
    k: int | None = None,
    seed: int = 0,
    runs: int | None = None,
    clusterings: Sequence[str] | None = None,
) -> AnnData:
    """Clusters cells by their embedding, into ``obs["concerto_cluster"]``.

    A consensus is the clustering that agrees best with many; how sure each cell is goes to
    ``obs["concerto_cluster_agreement"]``.

    Args:
        cells: An `.h5ad` with an embedding in obsm, or an AnnData, which is changed in place.
        out: The `.h5ad` to write; ``None`` writes nothing.
        rep: Key of the embedding in obsm.
        algorithm: ``leiden``, ``kmeans``, ``soft-kmeans`` or ``consensus``.
        resolution: Resolution of Leiden; higher gives more clusters.
        k: Number of clusters; a consensus without it finds its own number.
        seed: Seed of the algorithm.
        runs: Clusterings that a consensus is made of; by default 20.
        clusterings: Columns of obs to make the consensus of instead; no embedding is needed then.

    Returns:
        The AnnData.

    Raises:
        InputError: The file or an argument is unsuitable.
    """
    from concerto_tf.tasks.cluster import add_clusters

    if out is not None:
        check_target(out)
    adata = open_embedded(cells, backed=False)
    if clusterings is None:
        check_embedding(cells if isinstance(cells, str | Path) else "AnnData", adata, rep)
    add_clusters(adata, rep, algorithm, resolution, k, seed, runs=runs, clusterings=clusterings)
    if out is not None:
        with atomic(out) as temporary:
            adata.write_h5ad(temporary)
    return adata


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
        Number of cells and genes, and those metrics that apply.

    Raises:
        InputError: The file is unsuitable, or holds no such key.
    """
    from concerto_tf.metrics import embedding_scores
    from concerto_tf.tasks.cluster import embedding_of

    if label_key is None and source_key is None:
        raise InputError("name a label key, a source key or both to score an embedding by")
    adata = open_embedded(cells, backed=True)
    name = cells if isinstance(cells, str | Path) else "AnnData"
    try:
        check_embedding(name, adata, rep)
        for key in (label_key, source_key):
            if key is not None and key not in adata.obs:
                known = ", ".join(map(str, adata.obs)) or "none"
                raise InputError(
                    f"{name}: no column {key!r} in obs (there: {known}); name one of these"
                )
        scores = embedding_scores(
            embedding_of(adata, rep),
            None if label_key is None else adata.obs[label_key].to_numpy(),
            None if source_key is None else adata.obs[source_key].to_numpy(),
            seed=seed,
        )
        return {"cells": adata.n_obs, "genes": adata.n_vars, **scores}
    finally:
        if adata is not cells and adata.isbacked:
            adata.file.close()
