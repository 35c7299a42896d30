"""Annotation by RNA alone, by a further modality alone, and by all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError, choices
from concerto_tf.records import convert
from concerto_tf.records.batch import RNA
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.relearn import tell
from concerto_tf.tasks.train import train
from protocols.annotation import genes_of, scores
from protocols.charts import dots
from protocols.embeddings import check_numbers, check_seeds, check_training
from protocols.imputation import log_values
from protocols.mapping import labelled
from protocols.rejection import put_aside
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    from anndata import AnnData

MEASURES = ("accuracy", "macro_f1")
#: `finetune` without calibration; logistic regression on the embedding, and on values.
METHODS = ("fine-tuned", "probe", "logistic")


def bimodal(
    cells: str | Path | AnnData,
    out: str | Path,
    *,
    label_key: str,
    key: str = "protein",
    leave_out: Sequence[str] = (),
    most_cells: int = 3000,
    seeds: Sequence[int] = (0,),
    training: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tells types of one half of the cells from the other, by each modality alone and by both.

    Halves are drawn type by type. Models of the first half learn its types by fine-tuning, or
    logistic regression learns them from their embedding. Beside them logistic regression takes
    2,000 variable genes, the further modality's values (log-normalized, standardized), or both.

    Args:
        cells: An `.h5ad` or AnnData with counts.
        out: Folder for ``table.tsv``, ``result.json`` and ``figure.png``.
        label_key: Column of obs with the types.
        key: Where in obsm the further modality lies.
        leave_out: Types to leave out altogether, doublets for example.
        most_cells: Of more cells, as many are drawn at random.
        seeds: Of cells, halves and models.
        training: Further arguments of `train`.
        finetuning: Further arguments of `finetune`.

    Returns:
        What ``result.json`` holds: means over the seeds by modalities and method.

    Raises:
        InputError: The cells have no such modality, or an argument is unsuitable.

    Reference:
        Concerto, "Multimodal integration", equations 10 to 12.
    """
    import pandas as pd

    check_seeds(seeds)
    check_numbers(most_cells=most_cells, whole=True, least=10)
    check_training(training, "modalities")
    check_training(finetuning, "label_key", of=finetune)
    whole = labelled(cells, label_key)
    if key not in whole.obsm:
        raise InputError(f"no modality {key!r} in obsm; {choices(key, whole.obsm)}")
    whole = whole[~whole.obs[label_key].isin(leave_out).to_numpy()]
    out = check_folder(out)
    rows = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(whole.n_obs)
        used = whole[np.sort(order[:most_cells])].copy()
        aside = put_aside(used.obs[label_key].to_numpy(str), 0.5, seed)
        halves = used[~aside].copy(), used[aside].copy()
        options = {"training": training or {}, "finetuning": finetuning or {}}
        for chosen, method, found in _told(*halves, label_key, key, seed, options):
            rows.append({"modalities": chosen, "method": method, "seed": seed, **found})
    table = pd.DataFrame(rows)
    means = table.groupby(["modalities", "method"], sort=False)[list(MEASURES)].mean()
    result = {
        "cells": min(whole.n_obs, most_cells),
        "seeds": list(seeds),
        "mean": {
            name: part.droplevel(0).to_dict("index")
            for name, part in means.groupby("modalities", sort=False)
        },
    }
    named = table.assign(choice=table["method"] + ", " + table["modalities"])
    return leave(out, table, result, dots(named, "choice", {"types told": MEASURES}))


def _told(
    reference: AnnData,
    query: AnnData,
    label_key: str,
    key: str,
    seed: int,
    options: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str, dict[str, float]]]:
    """Modalities, method and scores."""
    from sklearn.linear_model import LogisticRegression

    truth, labels = (of.obs[label_key].to_numpy(str) for of in (query, reference))
    found, values = [], _values(reference, query, key)

    def add(chosen: Sequence[str], method: str, told: np.ndarray) -> None:
        _, codes = np.unique(np.concatenate([truth, told]), return_inverse=True)
        of = scores(*np.split(codes, 2))
        found.append(("+".join(chosen), method, {name: of[name] for name in MEASURES}))

    with TemporaryDirectory(prefix="concerto-") as folder:
        place, modalities = Path(folder), {key: f"obsm:{key}"}
        records = convert(reference, place / "known", label_keys=[label_key], modalities=modalities)
        other = convert(query, place / "query", like=records, modalities=modalities)
        for chosen in ([RNA], [key], [RNA, key]):
            name = "-".join(chosen)
            how = {"modalities": chosen, "seed": seed, **options["training"]}
            model = train(records, place / name, **how)
            how = {"label_key": label_key, "calibration": 0.0, "seed": seed}
            how |= options["finetuning"]
            fine = finetune(model, records, place / f"{name}-fine", **how)
            codes = tell(fine, other, "none").found["code"]
            add(chosen, "fine-tuned", np.array(fine.classes)[codes])
            z, y = embed_records(model, records), embed_records(model, other)
            scale = max(float(z.std()), 1e-12)
            probe = LogisticRegression(max_iter=2000).fit((z - z.mean(0)) / scale, labels)
            add(chosen, "probe", probe.predict((y - z.mean(0)) / scale))
            x, y = (np.concatenate([values[name][i] for name in chosen], axis=1) for i in (0, 1))
            add(chosen, "logistic", LogisticRegression(max_iter=1000).fit(x, labels).predict(y))
    return found


def _values(
    reference: AnnData, query: AnnData, key: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values of both halves by modality: variable genes; the further one is standardized."""
    import anndata

    both = anndata.concat([reference, query])
    learn = np.arange(reference.n_obs)
    x, y = (log_values(np.asarray(of.obsm[key], np.float32)) for of in (reference, query))
    middle, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    return {
        RNA: genes_of(both, True, learn, np.arange(reference.n_obs, both.n_obs)),
        key: ((x - middle) / scale, (y - middle) / scale),
    }
