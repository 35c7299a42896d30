"""The tasks that take an `.h5ad` with an embedding and give it back with more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._files import atomic
from concerto_tf.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def open_embedded(path: str | Path, backed: bool) -> AnnData:
    """An `.h5ad` that a task left.

    Args:
        path: The file.
        backed: Leave the values on disk, where only the annotation is wanted.

    Returns:
        The AnnData.

    Raises:
        InputError: The file is missing, damaged, or no AnnData.
    """
    import anndata

    from concerto_tf.records import open_input

    open_input(path).close()  # says in plain words what is wrong with a file
    path = Path(path)
    if path.suffix == ".zarr" or path.is_dir():
        return anndata.io.read_zarr(path)
    try:
        return anndata.io.read_h5ad(path, backed="r" if backed else None)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no .h5ad with an embedding ({error})") from error


def cluster_file(path: str | Path, out: str | Path, **options: Any) -> AnnData:
    """`concerto_tf.tasks.cluster.cluster` on an `.h5ad`, written to another.

    Args:
        path: An `.h5ad` with an embedding in obsm.
        out: The `.h5ad` to write.
        **options: Of `cluster`.

    Returns:
        The AnnData.
    """
    from concerto_tf.tasks.cluster import cluster

    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: there is no such folder; make it, or write elsewhere")
    adata = open_embedded(path, backed=False)
    cluster(adata, **options)
    with atomic(out) as temporary:
        adata.write_h5ad(temporary)
    return adata


def evaluate_file(
    path: str | Path,
    *,
    label_key: str | None = None,
    source_key: str | None = None,
    rep: str = "X_concerto",
    seed: int = 0,
) -> dict[str, float]:
    """Scores the embedding of an `.h5ad`.

    Args:
        path: An `.h5ad` with an embedding in obsm.
        label_key: Column of obs with labels.
        source_key: Column of obs with sources.
        rep: Key of the embedding in obsm.
        seed: Seed of samples and clusters.

    Returns:
        Number of cells and genes, and those metrics that apply.
    """
    from concerto_tf.metrics import evaluate
    from concerto_tf.tasks.cluster import _embedding

    if label_key is None and source_key is None:
        raise InputError("name a label key, a source key or both to score an embedding by")
    adata = open_embedded(path, backed=True)
    try:
        for key in (label_key, source_key):
            if key is not None and key not in adata.obs:
                known = ", ".join(map(str, adata.obs)) or "none"
                raise InputError(f"{path}: no column {key!r} in obs (there: {known})")
        scores = evaluate(
            _embedding(adata, rep),
            None if label_key is None else adata.obs[label_key].to_numpy(),
            None if source_key is None else adata.obs[source_key].to_numpy(),
            seed=seed,
        )
        return {"cells": adata.n_obs, "genes": adata.n_vars, **scores}
    finally:
        if adata.isbacked:
            adata.file.close()
