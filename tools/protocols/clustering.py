"""Which embedding clusters into the known types: methods by data sets by seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.charts import strips
from protocols.data_sets import labels_of, of_clusters, prepare_all
from protocols.embeddings import COMPARED, checked_variants
from protocols.printed import printed
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

if TYPE_CHECKING:
    from anndata import AnnData

#: Scores that are drawn.
SHOWN = {
    "ari_kmeans": "K-means, ARI",
    "nmi_kmeans": "K-means, NMI",
    "nmi_max_kmeans": "K-means, NMI over the larger entropy",
    "ari_leiden": "Leiden, ARI",
    "nmi_leiden": "Leiden, NMI",
    "nmi_max_leiden": "Leiden, NMI over the larger entropy",
}


def clustering(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    methods: Sequence[str] = COMPARED,
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Scores the clusters of embeddings against cell types, methods beside each other.

    K-means at the true number of types, Leiden at the best of ten resolutions (``leiden``) and at
    resolution 1 (``leiden1``); of each the ARI and both NMIs that the papers use, over the mean of
    the entropies (``nmi``) and over the larger of them (``nmi_max``). Labels only score.

    Args:
        inputs: Files that `convert` takes, each a data set of its own.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models and scores are kept.
        label_key: Column of obs with cell types; cells without one are embedded and not scored.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy), ``scvi`` (needs
            scvi-tools) and ``pca``.
        presets: Presets to run beside the defaults, ``paper`` for what the papers print. A method
            that has none of that name runs by default alone.
        seeds: Each method is run with each.
        **training: Further arguments of `train`, for every method.

    Returns:
        What ``result.json`` holds: by data set and method the mean and the standard deviation
        over the seeds of each score, in ``mean`` the mean of these means and their spread between
        data sets, and in ``printed`` what the papers print where a data set has the same numbers of
        cells and types.

    Raises:
        InputError: A data set or an argument is unsuitable.

    Reference:
        contrastive-sc, table 1 and figure 6; CLEAR, figure 2; CICL, table 3.
    """
    chosen = checked_variants(training, seeds, methods, presets)
    out = check_folder(out)
    scores = Scores(out, "clustering")
    in_papers = {}
    records = prepare_all(
        inputs, out / "records", label_key=label_key, source_key=source_key, layer=layer
    )
    for name, cells in records.items():
        types = set(labels_of(cells, label_key)) - {None}
        in_papers[name] = printed(cells.n_cells, len(types))
        for seed in seeds:
            score = of_clusters(cells, label_key, seed)
            scores.add(chosen, cells, seed, score, training=training, data=name)
    table = scores.table()
    means = table.groupby(["data", "method"], sort=False).mean(numeric_only=True).reset_index()
    result = {
        "seeds": list(seeds),
        "data": summary(table, ["data", "method"]),
        "mean": summary(means, ["method"], over=["seed", "data"]),
        "printed": {name: found for name, found in in_papers.items() if found},
    }
    beside = [
        (name, method, score, value)
        for name, found in in_papers.items()
        for method, values in found.get("scores", {}).items()
        for score, value in values.items()
    ]
    return leave(out, table, result, strips(table, "data", SHOWN, beside=beside))
