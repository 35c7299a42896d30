"""CLEAR's batch metrics: cell types kept and batches mixed, and both in one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import kbet
from protocols.batch_scores import batch_scores
from protocols.charts import strips
from protocols.data_sets import labels_of, only_known, prepare_all
from protocols.embeddings import COMPARED, checked_variants
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

if TYPE_CHECKING:
    from anndata import AnnData

SHOWN = {key: key for key in ("cARI", "1-bARI", "f1_ARI", "cASW", "1-bASW", "f1_ASW", "kbet")}


def batches(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    label_key: str,
    source_key: str,
    layer: str | None = None,
    methods: Sequence[str] = COMPARED,
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Scores embeddings by CLEAR's batch metrics and by kBET.

    Args:
        inputs: Files that `convert` takes, each a data set of its own with several batches.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models and scores are kept.
        label_key: Column of obs with cell types; cells without one are embedded and not scored.
        source_key: Column of obs with the batches.
        layer: Layer that holds the counts.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy) and ``pca``.
        presets: Presets to run beside the defaults, such as ``paper``.
        seeds: Each method is run with each.
        **training: Further arguments of `train`, for every method.

    Returns:
        What ``result.json`` holds: by data set and method the mean and the standard deviation
        over the seeds of what `batch_scores` gives and of ``kbet``, the acceptance rate.

    Raises:
        InputError: There is one batch only, or an argument is unsuitable.

    Reference:
        CLEAR, "CLEAR corrects batch effects effectively", figure 3B.
    """
    chosen = checked_variants(training, seeds, methods, presets)
    out = check_folder(out)
    scores = Scores(out, "batches")
    records = prepare_all(
        inputs, out / "records", label_key=label_key, source_key=source_key, layer=layer
    )
    for name, cells in records.items():
        told = [label is not None for label in labels_of(cells, label_key)]
        if len(set(cells.obs()["source"][told])) < 2:
            raise InputError(
                f"{name}: all cells with a type are of one batch ({source_key!r}), so there is "
                "nothing to mix; name another column or other data"
            )
    for name, cells in records.items():
        columns = labels_of(cells, label_key), cells.obs()["source"]
        for seed in seeds:
            score = only_known(_score, *columns, seed=seed)
            scores.add(chosen, cells, seed, score, training=training, data=name)
    table = scores.table()
    result = {"seeds": list(seeds), "data": summary(table, ["data", "method"])}
    return leave(out, table, result, strips(table, "data", SHOWN))


def _score(
    z: np.ndarray, labels: np.ndarray, sources: np.ndarray, seed: int
) -> Mapping[str, float]:
    return {**batch_scores(z, labels, sources, seed), "kbet": kbet(z, sources, seed=seed)}
