"""Concerto's robustness of annotation: weaker differences and more dropout, types to be told."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from concerto_tf.errors import InputError
from concerto_tf.simulate import simulate_cells
from concerto_tf.tasks.finetune import finetune
from protocols.annotation import MEASURES, METHODS, annotation
from protocols.charts import curves
from protocols.embeddings import check_numbers, check_training
from protocols.report import check_folder, leave
from protocols.robustness import ladders
from protocols.scores import summary


def annotated_ladders(
    out: str | Path,
    *,
    de_scales: Sequence[float] = (0.15, 0.2, 0.25, 0.3),
    dropout_mids: Sequence[float] = (-0.5, 0.0, 0.5, 1.0),
    n_cells: int = 1000,
    n_genes: int = 2500,
    methods: Sequence[str] = tuple(METHODS),
    folds: int = 5,
    most_folds: int | None = 1,
    seeds: Sequence[int] = (0, 1, 2),
    training: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Cross-validates annotation along the two simulated ladders of `robustness`.

    Five groups are the types; the counts that dropout takes are gone from training and test alike.

    Args:
        out: Folder for ``table.tsv``, ``result.json`` and ``figure.png``.
        de_scales, dropout_mids, n_cells, n_genes: As in `robustness`.
        methods, folds, training, finetuning: As in `annotation`.
        most_folds: How many of the parts to test on; none for all.
        seeds: Of the simulation, the parts and the models.

    Returns:
        What ``result.json`` holds: by ladder, level and method the mean and the standard deviation
        over the seeds of ``accuracy``, ``macro_f1`` and ``median_f1``.

    Raises:
        InputError: An argument is unsuitable, or no ladder is left.

    Reference:
        Concerto, Results and Methods, "Robustness analysis".
    """
    import pandas as pd

    check_training(training)
    check_training(finetuning, "label_key", "end_to_end", of=finetune)
    check_numbers(n_cells=n_cells, n_genes=n_genes, whole=True, least=2)
    simulated = ladders(de_scales, dropout_mids, n_cells, n_genes)
    if not simulated or not seeds:
        raise InputError("no ladder is left; name de scales or dropout mids, and a seed")
    out = check_folder(out)
    rows = []
    for ladder, level, params in simulated:
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="concerto-") as name:
                cells = simulate_cells(replace(params, seed=seed))
                cells = cells[cells.X.sum(axis=1).A1 > 0]
                cells.copy().write_h5ad(Path(name) / "cells.h5ad")
                found = annotation(
                    [Path(name) / "cells.h5ad"],
                    Path(name) / "out",
                    label_key="group",
                    methods=methods,
                    folds=folds,
                    most_folds=most_folds,
                    seeds=[seed],
                    training=training,
                    finetuning=finetuning,
                )
            for method, scores in found["mean"].items():
                own = {measure: scores[measure] for measure in MEASURES}
                rows.append(
                    {"ladder": ladder, "level": f"{level:g}", "method": method, "seed": seed, **own}
                )
    table = pd.DataFrame(rows)
    result = {"seeds": list(seeds), "ladders": summary(table, ["ladder", "level", "method"])}
    shown = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
    return leave(out, table, result, curves(table, "level", shown, panel="ladder"))
