"""Concerto's robustness: weaker differences, more dropout, more genes; beside PCA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from concerto_tf.errors import InputError
from concerto_tf.records import Records
from concerto_tf.simulate import SplatParams, simulate_cells
from protocols.charts import curves
from protocols.data_sets import of_clusters, prepare, prepare_all
from protocols.embeddings import Variant, check_numbers, checked_variants
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

if TYPE_CHECKING:
    from anndata import AnnData

METHODS = ("concerto", "pca")
LADDER = (2000, 5000, 10000, 15000, 20000)
SHOWN = {"ari_kmeans": "K-means, ARI", "ari_leiden": "Leiden, ARI"}


def ladders(
    de_scales: Sequence[float], dropout_mids: Sequence[float], n_cells: int, n_genes: int
) -> list[tuple[str, float, SplatParams]]:
    """Name, level and parameters of every simulated set of the two ladders.

    Reference:
        Concerto, Methods, "Robustness analysis".
    """
    base: dict[str, Any] = {
        "n_cells": n_cells,
        "n_genes": n_genes,
        "group_sizes": (1.0,) * 5,
        "dropout_shape": -1.0,
    }
    by_scale = [SplatParams(**base, de_scale=s, dropout_mid=1.0) for s in de_scales]
    by_dropout = [SplatParams(**base, de_scale=0.2, dropout_mid=m) for m in dropout_mids]
    return [
        *(("de_scale", scale, params) for scale, params in zip(de_scales, by_scale, strict=True)),
        *(
            ("dropout_mid", mid, params)
            for mid, params in zip(dropout_mids, by_dropout, strict=True)
        ),
    ]


def robustness(
    out: str | Path,
    *,
    data: Sequence[str | Path | AnnData] = (),
    label_key: str | None = None,
    source_key: str | None = None,
    layer: str | None = None,
    de_scales: Sequence[float] = (0.15, 0.2, 0.25, 0.3),
    dropout_mids: Sequence[float] = (-0.5, 0.0, 0.5, 1.0),
    hvgs: Sequence[int] = LADDER,
    n_cells: int = 1000,
    n_genes: int = 2500,
    methods: Sequence[str] = METHODS,
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Scores methods along three ladders: weaker differences, more dropout, more genes.

    The first two are simulated: five groups, 2,500 genes, dropout of shape -1; ``de_scale`` at
    dropout mid 1, and ``dropout_mid`` at a scale of 0.2. The third, ``hvg``, is over the data that
    is given: highly variable genes in growing number up to all of them, for every method.

    Args:
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png`` and ``records``. Called
            again, finished scores are kept; simulated cells and models are not.
        data: Files that `convert` takes, for the ladder of genes; it is left out without any.
        label_key: Column of obs of the data with cell types, to score with.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.
        de_scales: Log-standard deviations of the factors of differential expression; none leaves
            this ladder out.
        dropout_mids: Log expressions at which half of the counts are lost; none leaves this
            ladder out.
        hvgs: Numbers of highly variable genes; those that the data does not exceed are left out,
            and all genes are added.
        n_cells: Number of simulated cells.
        n_genes: Number of simulated genes.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy) and ``pca``.
        presets: Presets to run beside the defaults, such as ``paper``.
        seeds: Of the simulation and of the methods.
        **training: Further arguments of `train`, for every method.

    Returns:
        What ``result.json`` holds: by ladder (``de_scale``, ``dropout_mid``, and ``hvg`` with the
        name of each data set), level and method the mean and the standard deviation over the
        seeds of each score of `clustering`.

    Raises:
        InputError: A data set or an argument is unsuitable, or nothing is left to do.

    Reference:
        Concerto, Methods, "Robustness analysis", and figure 3g for the genes.
    """
    chosen = checked_variants(training, seeds, methods, presets)
    check_numbers(hvgs=hvgs, n_cells=n_cells, n_genes=n_genes, whole=True, least=2)
    check_numbers(de_scales=de_scales, least=0)
    check_numbers(dropout_mids=dropout_mids)
    if data and label_key is None:
        raise InputError("name the column of the data's cell types (label key) to score with")
    if source_key is not None and not data:
        raise InputError("a source key belongs to data; name some, or leave the key out")
    simulated = ladders(de_scales, dropout_mids, n_cells, n_genes)
    if not simulated and not data:
        raise InputError("no ladder is left; name de scales, dropout mids, or data")
    out = check_folder(out)
    scores = Scores(out, "robustness")
    real = {}
    if data:
        real = prepare_all(
            data, out / "records", label_key=label_key, source_key=source_key, layer=layer
        )
    add = partial(scores.add, training=training, keep_models=False)
    for (ladder, level, params), seed in product(simulated, seeds):
        with TemporaryDirectory(prefix="concerto-") as folder:
            records = prepare(
                simulate_cells(replace(params, seed=seed)),
                Path(folder),
                label_key="group",
                drop_empty=True,
            )
            score = of_clusters(records, "group", seed)
            add(chosen, records, seed, score, ladder=ladder, level=f"{level:g}")
    for name, records in real.items():
        for level, genes in _levels(records, hvgs):
            own = [Variant(v.name, v.method, {**v.training, "genes": genes}) for v in chosen]
            for seed in seeds:
                score = of_clusters(records, label_key, seed)
                add(own, records, seed, score, ladder=f"hvg, {name}", level=level)
    table = scores.table()
    result = {
        "seeds": list(seeds),
        "ladders": summary(table, ["ladder", "level", "method"]),
    }
    return leave(out, table, result, curves(table, "level", SHOWN, panel="ladder"))


def _levels(records: Records, hvgs: Sequence[int]) -> list[tuple[str, str]]:
    """Name and gene option of each step: fewer than all genes, then all."""
    steps = [(str(n), f"hvg:{n}") for n in sorted(set(hvgs)) if n < records.n_genes]
    return [*steps, ("all", "all")]
