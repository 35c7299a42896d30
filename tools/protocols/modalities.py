"""What each modality says alone, and what all say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from concerto_tf.errors import InputError
from concerto_tf.metrics import embedding_scores
from concerto_tf.records import convert
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.train import train
from protocols.charts import dots
from protocols.data_sets import labels_of
from protocols.embeddings import check_training
from protocols.report import check_folder, leave

#: Scores of an embedding, in the order they are drawn in.
SCORES = ("ari_kmeans", "ari_leiden", "nmi_leiden", "asw_label", "knn_accuracy", "knn_macro_f1")


def modalities(
    cells: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    modalities: Mapping[str, str],
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Scores the embedding of each modality alone, and of all of them together.

    Args:
        cells: One or several of what `convert` takes.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models are not trained again.
        modalities: Where the further modalities lie, as `convert` takes it.
        label_key: Column of obs with cell types, to score with.
        source_key: Column of obs with the sources.
        layer: Layer that holds the counts.
        seeds: Each is run with each.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: by choice of modalities the mean and the standard deviation
        over the seeds of each metric of `embedding_scores`.

    Raises:
        InputError: There is one modality only, or an argument is unsuitable.

    Reference:
        Concerto, "Multimodal integration", equations 10 and 11.
    """
    import pandas as pd

    if not modalities or not seeds:
        raise InputError("name a further modality, as protein=obsm:protein, and a seed at least")
    check_training(training, "modalities")
    out = check_folder(out)
    records = convert(
        cells,
        out / "records",
        modalities=modalities,
        label_keys=[label_key],
        source_key=source_key,
        layer=layer,
    )
    labels = labels_of(records, label_key)
    every = list(records.manifest.modalities)
    rows = []
    for seed in seeds:
        for chosen in (*([name] for name in every), every):
            name = "+".join(chosen)
            model = train(
                records,
                out / "models" / f"{name}-seed{seed}",
                modalities=chosen,
                seed=seed,
                **training,
            )
            scores = embedding_scores(embed_records(model, records), labels, seed=seed)
            rows.append({"modalities": name, "seed": seed, **scores})
    table = pd.DataFrame(rows)
    of_choice = table.drop(columns="seed").groupby("modalities", sort=False)
    result = {
        "cells": records.n_cells,
        "seeds": list(seeds),
        "mean": of_choice.mean().T.to_dict(),
        "standard_deviation": of_choice.std(ddof=0).T.to_dict(),
    }
    return leave(out, table, result, dots(table, "modalities", {"cell types kept": SCORES}))
