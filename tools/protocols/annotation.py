"""Annotation by cross-validation, beside logistic regression and nearest neighbours."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.relearn import tell
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.labels import known_labels
from protocols.baselines import cells_of, log_normalized
from protocols.embeddings import check_training
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

#: Methods, and what they are called in the figure.
METHODS = {
    "concerto": "Concerto, pre-trained",
    "genes": "Concerto and genes, the default",
    "end_to_end": "Concerto, end to end",
    "logistic": "logistic regression",
    "knn": "kNN on PCA",
}
MEASURES = ("accuracy", "macro_f1", "median_f1")
_HVG, _COMPONENTS, _NEIGHBOURS = 2000, 50, 15


def annotation(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    leave_out: Sequence[str] = (),
    methods: Sequence[str] = tuple(METHODS),
    folds: int = 5,
    most_folds: int | None = None,
    seeds: Sequence[int] = (0,),
    training: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Cross-validates annotation within data sets.

    Concerto is pre-trained without labels on all cells, and fine-tuned on the cells of all folds
    but one, without calibration: as the other methods, it learns from every cell of these. Its
    networks alone tell the types, as in the paper, or genes are a voice beside them. End to end it
    is the same network without pre-training. Logistic regression takes the log-normalized
    values of the training folds' 2,000 highly variable genes, the nearest neighbours their 50
    principal components.

    Args:
        inputs: Files that `convert` takes, each a data set of its own.
        out: Folder for ``table.tsv``, ``result.json`` and ``figure.png``.
        label_key: Column of obs with the types.
        source_key: Column of obs that names the sources.
        layer: Layer that holds the counts.
        leave_out: Types to leave out altogether, doublets for example. Types with fewer cells
            than folds are left out too, and named in the result.
        methods: Which of ``concerto``, ``genes``, ``end_to_end``, ``logistic`` and ``knn``.
        folds: Number of parts.
        most_folds: How many of the parts to test on, to save time; by default all.
        seeds: Seeds of parts and models.
        training: Further arguments of `train`.
        finetuning: Further arguments of `finetune`.

    Returns:
        What ``result.json`` holds: means over folds and seeds by data set and method, and the mean
        over data sets.

    Raises:
        InputError: An input or an argument is unsuitable.

    Reference:
        Concerto, Results, intra-data-set annotation, and equation 12.
    """
    import pandas as pd

    check_training(training)
    check_training(finetuning, "label_key", "end_to_end", of=finetune)
    out = check_folder(out)
    strange = [method for method in methods if method not in METHODS]
    if strange or not methods:
        raise InputError(f"there is no method {strange}; choose among {', '.join(METHODS)}")
    if folds < 2 or not seeds or not inputs:
        raise InputError("cross-validation takes inputs, two folds or more, and a seed")
    options = {"training": dict(training or {}), "finetuning": dict(finetuning or {})}
    rows, left_out = [], {}
    for path in inputs:
        name = Path(path).stem
        with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
            records = convert(
                path,
                Path(folder) / "all",
                source_key=source_key,
                label_keys=[label_key],
                layer=layer,
            )
            classes, codes = known_labels(records, label_key)
            rare = [
                c for i, c in enumerate(classes) if c in leave_out or (codes == i).sum() < folds
            ]
            left_out[name] = rare
            codes[np.isin(codes, [classes.index(c) for c in rare])] = -1
            if len(set(codes[codes >= 0])) < 2:
                raise InputError(
                    f"{path}: {label_key!r} has fewer than two types with {folds} cells or more; "
                    "ask for fewer folds"
                )
            for seed in seeds:
                found = _validate(
                    records,
                    codes,
                    label_key,
                    methods,
                    (folds, most_folds or folds),
                    seed,
                    folder,
                    options,
                )
                rows += [{"data": name, "seed": seed, **row} for row in found]
    table = pd.DataFrame(rows)
    means = table.groupby(["data", "method"], sort=False)[[*MEASURES, "seconds"]].mean()
    overall = means.groupby("method", sort=False)[list(MEASURES)].mean()
    result = {
        "folds": folds,
        "seeds": list(seeds),
        "left_out": left_out,
        "data": {
            name: {method: row.to_dict() for (_, method), row in part.iterrows()}
            for name, part in means.groupby("data", sort=False)
        },
        "mean": {method: row.to_dict() for method, row in overall.iterrows()},
    }
    return leave(out, table, result, _figure_of(result))


def _validate(
    records: Records,
    codes: np.ndarray,
    label_key: str,
    methods: Sequence[str],
    folds: tuple[int, int],
    seed: int,
    folder: str,
    options: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Scores by method of each fold, up to as many of them as are asked for."""
    from sklearn.model_selection import StratifiedKFold

    cells = cells_of(records)
    labelled = np.flatnonzero(codes >= 0)
    parts = StratifiedKFold(folds[0], shuffle=True, random_state=seed)
    trained = None
    if set(methods) - set(BASELINES):
        trained = train(records, Path(folder) / f"model{seed}", seed=seed, **options["training"])
    for fold, (rest, own) in enumerate(parts.split(labelled, codes[labelled])):
        if fold == folds[1]:
            return
        learn, test = labelled[rest], labelled[own]
        for method in methods:
            began = time.perf_counter()
            if method not in BASELINES:
                told = _concerto(
                    trained,
                    records,
                    cells,
                    codes,
                    learn,
                    label_key,
                    seed,
                    method,
                    options["finetuning"],
                )[test]
            else:
                counts = records.scales_with_depth
                told = BASELINES[method](cells, counts, codes, learn, test, seed)
            yield {
                "fold": fold,
                "method": method,
                **scores(codes[test], told),
                "seconds": round(time.perf_counter() - began, 2),
            }


def scores(truth: np.ndarray, told: np.ndarray) -> dict[str, float]:
    """Accuracy, and mean and median over the types of the truth of F1.

    Args:
        truth: Types of cells [n].
        told: What a method says of them [n].

    Example:

    >>> scores(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1]))["median_f1"]
    0.66...
    """
    from sklearn.metrics import f1_score

    f1 = f1_score(truth, told, labels=np.unique(truth), average=None, zero_division=0.0)
    return {
        "accuracy": float(np.mean(truth == told)),
        "macro_f1": float(f1.mean()),
        "median_f1": float(np.median(f1)),
    }


def _concerto(
    model: Any,
    records: Records,
    cells: AnnData,
    codes: np.ndarray,
    learn: np.ndarray,
    label_key: str,
    seed: int,
    method: str,
    finetuning: Mapping[str, Any],
) -> np.ndarray:
    """What Concerto says of all cells when it is taught some of them."""
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        part = cells[learn].copy()
        part.obs[label_key] = [f"{code:06d}" for code in codes[learn]]
        own = convert(
            part,
            Path(folder) / "learn",
            source_key="source",
            label_keys=[label_key],
            like=records,
        )
        fine = finetune(
            model,
            own,
            Path(folder) / "model",
            label_key=label_key,
            seed=seed,
            end_to_end=method == "end_to_end",
            networks_only=method != "genes",
            **{"calibration": 0.0, **finetuning},
        )
        told = tell(fine, records, "none").found["code"]
        return np.array([int(name) for name in fine.classes])[told]


def genes_of(
    cells: AnnData, counts: bool, learn: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values of the highly variable genes, which the training folds alone choose."""
    import scanpy as sc

    x = log_normalized(cells, counts)
    part = x[learn].copy()
    chosen = np.asarray(part.X.sum(0)).ravel() > 0
    if chosen.sum() > _HVG:
        part = part[:, chosen].copy()
        sc.pp.highly_variable_genes(part, n_top_genes=_HVG)
        chosen[chosen] = part.var["highly_variable"].to_numpy()
    return x[learn].X[:, chosen].toarray(), x[test].X[:, chosen].toarray()


def _logistic(
    cells: AnnData, counts: bool, codes: np.ndarray, learn: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    x, y = genes_of(cells, counts, learn, test)
    return LogisticRegression(max_iter=1000).fit(x, codes[learn]).predict(y)


def _knn(
    cells: AnnData, counts: bool, codes: np.ndarray, learn: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    x, y = genes_of(cells, counts, learn, test)
    pca = PCA(min(_COMPONENTS, *x.shape), random_state=seed).fit(x)
    nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(learn)))
    return nearest.fit(pca.transform(x), codes[learn]).predict(pca.transform(y))


BASELINES: dict[str, Callable[..., np.ndarray]] = {"logistic": _logistic, "knn": _knn}


def _figure_of(result: Mapping[str, Any]) -> Figure:
    """A row of points for each data set and measure, one point per method."""
    from concerto_tf.pl.figures import PALETTE, new_figure

    names = list(result["data"])
    figure, axes = new_figure(10.0, 1.4 + 0.45 * len(names), 1, len(MEASURES))
    for axis, measure in zip(axes, MEASURES, strict=True):
        for i, method in enumerate(result["mean"]):
            at = [result["data"][name][method][measure] for name in names]
            axis.plot(
                at, np.arange(len(names)), "o", color=PALETTE[i], label=METHODS[method], alpha=0.8
            )
        axis.set_yticks(np.arange(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_title(measure.replace("_", " ").replace("f1", "F1"))
        axis.grid(axis="x", alpha=0.3)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure
