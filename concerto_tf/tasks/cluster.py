"""Clusters of an embedding."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._files import write_json, write_table
from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError, choices
from concerto_tf.metrics.checks import PerCell, as_codes, check_clusters, complete_codes
from concerto_tf.metrics.graph import leiden
from concerto_tf.tasks.described import SUPPORT, TABLES, describe_again, forget
from concerto_tf.tasks.io.embedded import embedding_of, open_embedded
from concerto_tf.tasks.io.provenance import reads, recorded, taken, write_h5ad
from concerto_tf.tasks.io.result import check_target, replace_found
from concerto_tf.tasks.io.run_folder import (
    MARKERS_TABLE,
    METRICS,
    RESULT,
    draw_maps,
    finished_run,
    is_run,
)
from concerto_tf.tasks.markers import MARKERS, marker_table
from concerto_tf.tasks.neighbours import neighbour_graph
from concerto_tf.tasks.reporting.run import write_report

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from concerto_tf.jobs import Job

ALGORITHMS = ("leiden", "kmeans", "soft-kmeans", "consensus")
#: Resolution of Leiden where none is given. Rules that follow the data were tried, and none of them
#: was better than one resolution for all (tools/trials).
AUTO, _RESOLUTION = "auto", 0.6
# Clusterings that a consensus is made of.
RUNS = 20
# Cells per step, and steps, of the soft K-means network.
SOFT_CELLS, SOFT_STEPS = 256, 300
# Columns of `obs` that are written: the clusters, and of a consensus how sure each cell is.
CLUSTER, AGREEMENT = "concerto_cluster", "concerto_cluster_agreement"


@recorded("cluster")
@checked
def cluster(
    cells: str | Path | AnnData,
    out: str | Path | None = None,
    *,
    rep: str = "X_concerto",
    algorithm: str = "leiden",
    resolution: float | str = AUTO,
    n_clusters: int | None = None,
    seed: int = 0,
    runs: int | None = None,
    clusterings: Sequence[str] | None = None,
) -> AnnData:
    """Clusters cells by their embedding, into ``obs["concerto_cluster"]``.

    Clusters are a category, named "0", "1", ... from the largest to the smallest.

    A consensus agrees best with many clusterings: Leiden from half to twice the resolution, with
    ``n_clusters`` as many of K-means; or any columns of obs (`concerto_tf.metrics.consensus`). How
    sure each cell is, its mean co-association with its cluster, goes to
    ``obs["concerto_cluster_agreement"]``.

    Args:
        cells: An `.h5ad` with an embedding in obsm; an AnnData, which is changed in place; or the
            folder of a finished `run`.
        out: The `.h5ad` to write. Without it the clusters in the folder of a run are replaced: in
            ``result.h5ad``, ``markers.tsv``, ``figures/umap_cluster.png`` and ``metrics.json``,
            nothing else. Of a file and an AnnData nothing is written.
        rep: Key of the embedding in obsm, or ``X``.
        algorithm: ``leiden`` on the graph of 15 nearest neighbours (Euclidean), ``kmeans``,
            ``soft-kmeans`` (a network that starts from K-means, `SoftKMeans`) or ``consensus``.
        resolution: Resolution of Leiden; higher gives more clusters. ``auto`` is 0.6.
        n_clusters: Number of clusters, but for Leiden; a consensus without it finds its own.
        seed: Seed of the algorithm.
        runs: Clusterings that a consensus is made of; by default 20.
        clusterings: Columns of obs to make the consensus of instead; no embedding is needed then.

    Returns:
        The AnnData.

    Raises:
        InputError: The cells or an argument are unsuitable: no finished run, no such embedding or
            column, values that are not finite, K-means without a number of clusters or with more
            than there are cells.

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from concerto_tf import cluster
        >>> adata = AnnData(np.zeros((40, 1), "float32"))
        >>> adata.obsm["X_concerto"] = np.repeat([[0.0, 0.0], [9.0, 9.0]], [30, 10], axis=0)
        >>> adata = cluster(adata, algorithm="kmeans", n_clusters=2)
        >>> adata.obs["concerto_cluster"].value_counts().to_dict()
        {'0': 30, '1': 10}
    """
    if out is not None:
        check_target(out)
    resolution = resolution_of(resolution)
    taken(resolution=resolution)
    _check_algorithm(algorithm, n_clusters, runs, clusterings)
    with ExitStack() as stack:
        run = stack.enter_context(finished_run(cells)) if is_run(cells) else None
        if run is not None:
            cells = run.out / RESULT
            reads(cells=cells)
            if out is not None and as_path(out).resolve() == cells.resolve():
                out = None
            if out is None:
                check_target(cells)
        adata = open_embedded(cells, backed=False)
        name = cells if isinstance(cells, str | Path) else "AnnData"
        sure = None
        if algorithm == "consensus":
            from concerto_tf.metrics.consensus import consensus

            if clusterings is None:
                z = embedding_of(name, adata, rep)
                labels = _runs(adata, rep, z, resolution, n_clusters, seed, runs)
            else:
                labels = _columns(adata, clusterings)
            found, sure = consensus(labels, n_clusters, seed)
        else:
            z = embedding_of(name, adata, rep)
            if algorithm == "leiden":
                found = _leiden(adata, rep, z, [resolution], [seed])[0]
            else:
                found = _kmeans(z, n_clusters, seed)
                if algorithm == "soft-kmeans":
                    found = _soft_kmeans(z, found, seed)
        _put(adata, _by_size(found), sure)
        forget(adata, CLUSTER)
        if run is not None:
            describe_again(run, adata, CLUSTER, seed)
        if out is not None:
            write_h5ad(adata, out)
        elif run is not None:
            _renew(run, adata)
    return adata


def cluster_scores(clusters: pd.Series, labels: PerCell | None) -> dict[str, float]:
    """What `metrics.json` says of the clusters of a run.

    Args:
        clusters: Cluster of each cell [n].
        labels: Label of each cell [n]; those without one are left out. None: nothing to score by.

    Returns:
        Number of ``clusters``; with at least two labels also ``ari_clusters``, ``nmi_clusters``.
    """
    from concerto_tf.metrics import agreement

    found: dict[str, float] = {}
    if labels is not None:
        codes = as_codes(labels, len(clusters), "labels", least=0)
        has = codes >= 0
        if codes.max() > 0:
            scores = agreement(codes[has], clusters.to_numpy()[has])
            found = {f"{key}_clusters": scores[key] for key in ("ari", "nmi")}
    return {**found, "clusters": int(clusters.nunique())}


def _put(adata: AnnData, clusters: pd.Categorical, sure: np.ndarray | None) -> None:
    """Puts clusters into obs, and how sure each cell is; what is there of others goes."""
    adata.obs[CLUSTER] = clusters
    if sure is not None:
        adata.obs[AGREEMENT] = sure
    elif AGREEMENT in adata.obs:
        adata.obs = adata.obs.drop(columns=AGREEMENT)


def _renew(run: Job, adata: AnnData) -> None:
    """Puts the clusters of `adata` into the result of a run, its figure and its scores."""
    run.reopen()
    draw_maps(adata, [CLUSTER], run.out, titles={})
    replace_found(
        run.out / RESULT,
        {key: adata.obs.get(key) for key in (CLUSTER, AGREEMENT, SUPPORT)},
        {key: adata.uns.get(key) for key in TABLES},
    )
    write_table(run.out / MARKERS_TABLE, marker_table(adata.uns.get(MARKERS)))
    label = (run.asked or {}).get("label_key")
    labels = None if label in (None, CLUSTER) else adata.obs.get(label)
    scores = cluster_scores(adata.obs[CLUSTER], labels)
    metrics = json.loads((run.out / METRICS).read_text("utf-8")) | scores
    stale = {key for key in metrics if key.endswith("_clusters")} - set(scores)
    metrics = {key: metrics[key] for key in metrics if key not in stale}
    write_report(run.out, run.asked or {}, metrics)
    write_json(run.out / METRICS, metrics)
    run.finish(**run.facts)


def resolution_of(resolution: float | str) -> float:
    """The resolution that Leiden takes, or an InputError if it cannot take it.

    Args:
        resolution: A positive number, or ``auto``.
    """
    if resolution == AUTO:
        return _RESOLUTION
    if not (isinstance(resolution, Real) and 0 < resolution < math.inf):
        raise InputError(
            f"resolution is {resolution!r}; it must be a positive number, or {AUTO!r}", "resolution"
        )
    return float(resolution)


def _leiden(
    adata: AnnData, rep: str, z: np.ndarray, resolutions: Iterable[float], seeds: Sequence[int]
) -> list[np.ndarray]:
    """Leiden clusters as codes [n], one clustering for each resolution and seed."""
    if len(z) == 1:  # has no neighbours and is its own cluster
        return [np.zeros(1) for _ in resolutions]
    graph = neighbour_graph(adata, rep, z, min(seeds))
    return [leiden(graph, *options) for options in zip(resolutions, seeds, strict=True)]


def _check_algorithm(
    algorithm: str, n_clusters: int | None, runs: int | None, clusterings: Sequence[str] | None
) -> None:
    """Raises InputError for an unknown algorithm, or what it has no use for."""
    if algorithm not in ALGORITHMS:
        raise InputError(
            f"no algorithm {algorithm!r}; choose one of {', '.join(ALGORITHMS)}", "algorithm"
        )
    if algorithm == "leiden" and n_clusters is not None:
        raise InputError(
            "leiden takes a resolution and no number of clusters; choose kmeans, soft-kmeans or "
            "consensus for that",
            "algorithm",
        )
    if algorithm in ("kmeans", "soft-kmeans") and n_clusters is None:
        raise InputError(f"{algorithm} needs the number of clusters; give it", "n_clusters")
    if algorithm != "consensus" and (runs is not None or clusterings is not None):
        raise InputError(
            "runs and clusterings are for a consensus; choose that",
            Argument("algorithm", "consensus"),
        )
    if runs is not None and clusterings is not None:
        raise InputError("runs are made where no clusterings are given; leave one of them out")
    if runs is not None and (int(runs) != runs or runs < 2):
        raise InputError(f"runs is {runs!r}; a consensus needs at least 2 clusterings", "runs")


def _runs(
    adata: AnnData,
    rep: str,
    z: np.ndarray,
    resolution: float,
    n_clusters: int | None,
    seed: int,
    runs: int | None,
) -> np.ndarray:
    """Different clusterings of the cells [n, runs]."""
    runs = RUNS if runs is None else int(runs)
    of_kmeans = 0 if n_clusters is None else runs // 2
    found = [_kmeans(z, n_clusters, (seed + i) % 2**32, starts=1) for i in range(of_kmeans)]
    resolutions = resolution * np.geomspace(0.5, 2.0, runs - of_kmeans)
    seeds = [(seed + i) % 2**32 for i in range(len(resolutions))]
    found += _leiden(adata, rep, z, resolutions, seeds)
    return np.stack(found, axis=1)


def _columns(adata: AnnData, clusterings: Sequence[str]) -> np.ndarray:
    """Clusterings that are there already [n, runs]."""
    if len(clusterings) < 2:
        raise InputError(
            f"a consensus of {len(clusterings)} clusterings; it needs at least 2", "clusterings"
        )
    for name in clusterings:
        if name not in adata.obs:
            missing = f"no column {name!r} in obs; {choices(name, adata.obs)}"
            raise InputError(missing, "clusterings")
    return np.stack(
        [
            complete_codes(adata.obs[name], adata.n_obs, what)
            for name, what in ((name, f"clusters {name!r}") for name in clusterings)
        ],
        axis=1,
    )


def _soft_kmeans(z: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    """Clusters as codes [n] by a network that starts from those of K-means."""
    import tensorflow as tf

    from concerto_tf.models.contrastive_sc.soft_kmeans import SoftKMeans

    z = z - z.mean(axis=0)  # a layer with a ReLU sees where the middle lies
    n, cells = len(z), min(len(z), SOFT_CELLS)
    model = SoftKMeans(int(start.max()) + 1, z.shape[1], seed=seed)
    model.start(z, start)
    model.compile("adam")
    data = tf.data.Dataset.from_tensor_slices(z).shuffle(n, seed=seed).repeat()
    data = data.batch(cells, drop_remainder=True)
    model.fit(data, epochs=1, steps_per_epoch=SOFT_STEPS, shuffle=False, verbose=0)
    whole = tf.data.Dataset.from_tensor_slices(z).batch(SOFT_CELLS)
    return np.concatenate([model(part).numpy().argmax(axis=1) for part in whole])


def _kmeans(z: np.ndarray, n_clusters: int | None, seed: int, starts: int = 10) -> np.ndarray:
    """K-means clusters as codes [n]."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    n_clusters = check_clusters(n_clusters, len(z))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return KMeans(n_clusters, n_init=starts, random_state=seed).fit_predict(z)
        except ConvergenceWarning:
            different = len(np.unique(z, axis=0))
            raise InputError(
                f"the number of clusters is {n_clusters}, but the embedding has only {different} "
                "different points; lower it",
                "n_clusters",
            ) from None


def _by_size(found: np.ndarray) -> pd.Categorical:
    """Clusters as a category, named "0", "1", ... from the largest to the smallest."""
    import pandas as pd

    _, codes, sizes = np.unique(found, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    return pd.Categorical.from_codes(rank[codes], [str(i) for i in range(len(sizes))])
