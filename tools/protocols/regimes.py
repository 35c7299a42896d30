"""Where training might earn its place: queries unlike the reference, few labels, two modalities.

In each regime the PCA initialization alone is a standing row (`START`), so that each table answers
whether training beats it.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from concerto_tf.jobs import json_checksum
from concerto_tf.records.units import COUNTS
from concerto_tf.tasks.cluster import CLUSTER, cluster
from concerto_tf.tasks.embed import KEY, embed
from concerto_tf.tasks.impute import K, impute
from protocols import delivered_peers as peers
from protocols import few_labels
from protocols.baselines import log_normalized, pca
from protocols.delivered_parts import PROTEIN, Bench, measured
from protocols.imputation import by_pca, correlations, log_values
from protocols.lines import Lines
from protocols.quality_cells import LABEL, SOURCE, DataSet
from protocols.regime_cells import START, Place, components, rna, told
from protocols.report import plain

if TYPE_CHECKING:
    from anndata import AnnData


_log = logging.getLogger("concerto_tf")
#: What is trained, beside the start and the default.
TRAINED = ("concerto,learning_rate=0.001", "contrastive-sc")
DEPTHS, PANELS = (50, 20, 10), (1000, 300)
#: The score by which a regime is judged.
MEASURES = {"depth": "f1", "panel": "f1", "labels": "f1", "bimodal": "r", "source": "f1"}
#: How far training has to be ahead of the start with every seed, to be said to beat it.
AHEAD = 0.01
#: Who tells the labels of a source left out from genes or from reference and query together.
_BY_GENES = {"logistic regression": "logistic", "Harmony": "harmony"}
#: Neighbours that vote.
_NEIGHBOURS = 5
_KEY = ("regime", "data", "seed", "task", "method", "hash")
#: Raised where scores are to be computed anew.
_VERSION = 1


def _depth_tasks(place: Place) -> list[str]:
    counts = peers.units(place.bench.cells) == COUNTS
    return [f"{share}% of the counts" for share in DEPTHS] if counts else []


def _panel_tasks(place: Place) -> list[str]:
    return [f"{n} genes" for n in PANELS if n < place.bench.cells.n_vars]


def _bimodal_tasks(place: Place) -> list[str]:
    return ["impute", "clusters"] if place.has_protein else []


def _source_tasks(place: Place) -> list[str]:
    if not place.bench.has_sources:
        return []
    return [f"without {name}" for name in sorted(set(place.bench.cells.obs[SOURCE].astype(str)))]


def _source(place: Place, task: str, method: str) -> dict[str, float]:
    """Labels of a source that no model has seen, and how well its own cells lie by type."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    from concerto_tf.metrics import knn_scores

    apart = place.leaving_out(task.removeprefix("without "))
    reference, query, seed = apart.reference, apart.query, place.bench.seed
    if method in _BY_GENES:
        return told(query, peers.labels_by(_BY_GENES[method], reference, query, seed))
    if method == "PCA":
        z, other = components(reference, query, seed)
    else:
        z, other = apart.embedded(method), embed(apart.model(method), rna(query))
    labels, own = (cells.obs[LABEL].to_numpy(str) for cells in (reference, query))
    nearest = KNeighborsClassifier(_NEIGHBOURS).fit(z, labels)
    middle, scale = z.mean(0), max(float(z.std()), 1e-12)
    probe = LogisticRegression(max_iter=2000).fit((z - middle) / scale, labels)
    return {
        **told(query, nearest.predict(other)),
        "probe": told(query, probe.predict((other - middle) / scale))["f1"],
        "within": knn_scores(other, own, seed)["knn_macro_f1"],
    }


def _unlike(place: Place, task: str, method: str) -> dict[str, float]:
    """Labels of a query of less depth or fewer genes, from the nearest cells of the reference."""
    from sklearn.neighbors import KNeighborsClassifier

    _, reference, query = measured(place.bench, task)
    if method == "logistic regression":
        return told(query, peers.labels_by("logistic", reference, query, place.bench.seed))
    if method == "PCA":
        z, other = components(reference, query, place.bench.seed)
    else:
        z, other = place.embedded(method), embed(place.model(method), rna(query))
    nearest = KNeighborsClassifier(_NEIGHBOURS).fit(z, reference.obs[LABEL].to_numpy(str))
    return told(query, nearest.predict(other))


def _bimodal(place: Place, task: str, method: str) -> dict[str, float]:
    """Proteins of the query from its RNA, or clusters of the reference by both modalities."""
    if task == "clusters":
        z = _both(place) if method == "PCA" else place.embedded(method, True)
        return _clusters(place.reference, z)
    truth = log_values(_protein(place.query))
    if method == "PCA":
        known = log_values(_protein(place.reference))
        found = by_pca(place.reference, rna(place.query), known, K, place.bench.seed)
    else:
        where = {"reference": place.records(True), "modalities": {PROTEIN: f"obsm:{PROTEIN}"}}
        found = impute(place.model(method, True), rna(place.query), **where)[PROTEIN].to_numpy()
    return {"r": float(np.nanmean(correlations(found, truth)))}


def _clusters(cells: AnnData, z: np.ndarray) -> dict[str, float]:
    from anndata import AnnData

    from concerto_tf.metrics import agreement, embedding_scores

    labels = cells.obs[LABEL].to_numpy(str)
    made = cluster(AnnData(obsm={KEY: z}))
    found = embedding_scores(z, labels)
    delivered = agreement(labels, made.obs[CLUSTER].to_numpy(str))["ari"]
    best = {name: float(found[name]) for name in ("ari_leiden", "knn_macro_f1")}
    return {"r": float(delivered), "ari": float(delivered), **best}


def _both(place: Place) -> np.ndarray:
    """Components of RNA and standardized proteins of the reference, of the same variance."""
    z = pca(log_normalized(place.reference, True), place.bench.seed)
    other = log_values(_protein(place.reference))
    other = (other - other.mean(0)) / np.maximum(other.std(0), 1e-6)
    return np.concatenate([z / np.linalg.norm(z), other / np.linalg.norm(other)], axis=1) * 100


def _protein(cells: AnnData) -> np.ndarray:
    return np.asarray(cells.obsm[PROTEIN], np.float32)


@dataclass(frozen=True)
class Regime:
    """A regime.

    Args:
        tasks: What is asked of some cells; nothing where they do not suit.
        answer: The scores of a task by a method.
        peers: Who is asked beside ours.
    """

    tasks: Callable[[Place], list[str]]
    answer: Callable[[Place, str, str], dict[str, float]]
    peers: Sequence[str]


_PEERS = ("PCA", "logistic regression")
REGIMES: Mapping[str, Regime] = {
    "depth": Regime(_depth_tasks, _unlike, _PEERS),
    "panel": Regime(_panel_tasks, _unlike, _PEERS),
    "labels": Regime(
        few_labels.tasks, few_labels.answer, (*few_labels.FINETUNED, *_PEERS, few_labels.KNN)
    ),
    "bimodal": Regime(_bimodal_tasks, _bimodal, ("PCA",)),
    "source": Regime(_source_tasks, _source, ("PCA", *_BY_GENES)),
}


@dataclass(frozen=True)
class Asked:
    """What a call asks for.

    Args:
        sets: The data sets.
        seeds: Of halves, of what is thinned, and of training.
        regimes: Of `REGIMES`.
        trained: Configurations that are trained, as `quality.configured` reads them.
    """

    sets: Sequence[DataSet]
    seeds: Sequence[int]
    regimes: Sequence[str]
    trained: Sequence[str] = TRAINED

    def methods(self, regime: str) -> list[str]:
        """Who is asked in a regime: the start, the default, what is trained, and peers."""
        ours = [START, "concerto", *self.trained]
        if regime == "bimodal":
            ours = [
                name for name in ours if name.split(",")[0].split(":")[0] in (START, "concerto")
            ]
        there = [
            name for name in REGIMES[regime].peers if peers.is_there(_BY_GENES.get(name, name))
        ]
        return [*ours, *there]


def run(asked: Asked, results: Path, compute: bool = True) -> list[dict[str, Any]]:
    """Computes the scores that a results file lacks, and adds each to it as it comes.

    Args:
        asked: What is asked for.
        results: JSON lines; made where there is none. The same call after a stop goes on.
        compute: Whether to compute; otherwise what is missing is left out.

    Returns:
        The rows that were asked for.
    """
    done, rows = Lines(results, lambda row: tuple(row[name] for name in _KEY)), []
    for place, data, regime, task in _planned(asked):
        for method in asked.methods(regime):
            told = json_checksum([dict(data.settings), _VERSION])[:8]
            key = (regime, data.name, place.bench.seed, task, method, told)
            if key not in done and compute:
                began = time.process_time()
                found = REGIMES[regime].answer(place, task, method)
                made = {name: round(value, 4) for name, value in found.items()}
                seconds = round(time.process_time() - began, 1)
                done.add(plain({**dict(zip(_KEY, key, strict=True)), **made, "cpu": seconds}))
                _log.info("%s", done[key])
            if key in done:
                rows.append(done[key])
    return rows


def _planned(asked: Asked) -> Iterator[tuple[Place, DataSet, str, str]]:
    for data in asked.sets:
        for seed in asked.seeds:
            with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
                bench = Bench(data.cells(seed if data.rare else 0), seed, Path(folder))
                place = Place(bench, Path(folder))
                for regime in asked.regimes:
                    for task in REGIMES[regime].tasks(place):
                        yield place, data, regime, task


def report(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table for each regime, and for each what training adds to the start.

    Args:
        rows: From `run`.
    """
    table = pd.DataFrame(list(rows))
    parts = []
    for regime, of_regime in table.groupby("regime", sort=False):
        measure = MEASURES[str(regime)]
        wide = of_regime.pivot_table(
            measure, ["data", "task"], "method", sort=False
        )  # means over the seeds
        methods = list(dict.fromkeys(of_regime["method"]))
        lines = [
            f"| {regime}: {measure} | {' | '.join(methods)} |",
            "|---" * (len(methods) + 1) + "|",
        ]
        for (data, task), row in wide[methods].iterrows():
            numbers = " | ".join(f"{row[name]:.2f}".lstrip("0") for name in methods)
            lines.append(f"| {data}, {task} | {numbers} |")
        parts.append("\n".join([*lines, "", *_verdicts(of_regime, measure, methods)]))
    return "\n\n".join(parts) + "\n"


def _verdicts(rows: pd.DataFrame, measure: str, methods: Sequence[str]) -> list[str]:
    """Of each method that is trained, whether it beats the start in any task, or falls behind."""
    lines = []
    keys = ["data", "task", "seed"]
    start = rows[rows["method"] == START].set_index(keys)[measure]
    for method in methods:
        if method in (START, few_labels.KNN, "PCA", *_BY_GENES):
            continue
        gain = rows[rows["method"] == method].set_index(keys)[measure] - start
        of_task = gain.groupby(level=["data", "task"], sort=False)
        ahead = [name for name, of in of_task if of.min() > AHEAD]
        behind = [name for name, of in of_task if of.max() < -AHEAD]
        named = "; ".join(", ".join(name) for name in ahead) or "none"
        lines.append(
            f"{method} less {START}: {gain.mean():+.3f} on average; ahead by more than {AHEAD} "
            f"with every seed in {len(ahead)} of {len(of_task)} ({named}), behind in {len(behind)}."
        )
    return lines
