"""What `delivered` asks: parts, their tasks, and who answers them with which score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from concerto_tf.metrics import agreement, ilisi, kbet, leiden_scores
from concerto_tf.records.units import COUNTS
from concerto_tf.tasks.embed import KEY
from concerto_tf.tasks.impute import K
from protocols import delivered_peers as peers
from protocols.baselines import harmony, log_normalized
from protocols.delivered_commands import QUERY, REFERENCE, Desk
from protocols.imputation import by_pca, correlations, log_values
from protocols.mapping import score
from protocols.quality_cells import LABEL, SOURCE
from protocols.rejection import put_aside

if TYPE_CHECKING:
    from anndata import AnnData

#: Names of what is ours begin with this; all others are peers.
OURS = "concerto "
PROTEIN = "protein"
WHOLE, WITHOUT = "all types", "without "
PANELS, DEPTHS = (1000, 300, 100), (20, 10)
#: Cells of a source or of a type, below which nothing is asked of it.
_FEW = 10
Scores = dict[str, Any]


@dataclass
class Bench:
    """The cells of a data set with a seed, and the folder that commands are run in.

    Args:
        cells: Cells with the column ``label`` and, of several, ``source``.
        seed: Of halves, commands and peers.
        folder: A folder of its own.
        left_out: How many types are left out of the reference in turn, the most frequent first;
            None leaves out each.
    """

    cells: AnnData
    seed: int
    folder: Path
    left_out: int | None = 3
    _desks: dict[str, Desk] = field(default_factory=dict)

    @property
    def has_sources(self) -> bool:
        """Whether the cells are of several sources."""
        return SOURCE in self.cells.obs

    @cached_property
    def aside(self) -> np.ndarray:
        """Whether each cell is of the half that is the query; halves are drawn type by type."""
        return put_aside(self.cells.obs[LABEL].to_numpy(str), 0.5, self.seed)

    def part(self, chosen: np.ndarray, *columns: str, modality: bool = False) -> AnnData:
        """Some of the cells, with nothing but the columns that a user would have given."""
        from anndata import AnnData

        made = self.cells[chosen]
        kept = [name for name in columns if name in made.obs]
        obsm = {PROTEIN: made.obsm[PROTEIN]} if modality else None
        return AnnData(made.X.copy(), made.obs[kept].copy(), made.var.copy(), obsm=obsm)

    def desk(self, name: str, reference: Callable[[], AnnData], modality: str = "") -> Desk:
        """The folder of a reference, in which its models stay."""
        if name not in self._desks:
            cells = reference()
            self._desks[name] = Desk(
                self.folder / f"desk{len(self._desks)}", self.seed, SOURCE in cells.obs, modality
            )
            self._desks[name].put(REFERENCE, cells)
        return self._desks[name]


#: Scores of a task.
Answer = Callable[[Bench, str], Scores]
#: Of a task the name of the reference, its cells, and the query; both with labels.
Sides = Callable[[Bench, str], tuple[str, "AnnData", "AnnData"]]


@dataclass(frozen=True)
class Part:
    """A part of the measure.

    Args:
        tasks: What is asked of some cells; nothing where they do not suit.
        answers: The scores of a task by who answers it: ours (`OURS` and the last command), and
            peers.
    """

    tasks: Callable[[Bench], list[str]]
    answers: Mapping[str, Answer]


def _whole(bench: Bench) -> Desk:
    return bench.desk("whole", lambda: bench.part(np.ones(bench.cells.n_obs, bool), SOURCE))


def _clusters_of_ours(bench: Bench, task: str) -> Scores:
    result = _whole(bench).left("run")
    labels = bench.cells.obs[LABEL].to_numpy(str)
    best = leiden_scores(result.obsm[KEY], labels, bench.seed)["ari_leiden"]
    delivered = _agreement(labels, result.obs["concerto_cluster"].to_numpy(str))
    return {**delivered, "best_of_ten": best, "commands": _whole(bench).commands("run")}


def _clusters_of_scanpy(scaled: bool, bench: Bench, task: str) -> Scores:
    labels = bench.cells.obs[LABEL].to_numpy(str)
    return _agreement(labels, peers.scanpy_clusters(bench.cells, bench.seed, scaled))


def _agreement(labels: np.ndarray, clusters: np.ndarray) -> Scores:
    return {"ari": agreement(labels, clusters)["ari"], "clusters": len(np.unique(clusters))}


def _label_tasks(bench: Bench) -> list[str]:
    frequent = bench.cells.obs[LABEL].astype(str).value_counts()
    if len(frequent) < 3:
        return [WHOLE]  # a reference needs two types
    chosen = frequent[frequent >= _FEW].index[: bench.left_out]
    return [WHOLE, *(WITHOUT + name for name in chosen)]


def _shift_tasks(bench: Bench) -> list[str]:
    if not bench.has_sources:
        return []
    largest = bench.cells.obs[SOURCE].astype(str).value_counts()
    names = list(largest[largest >= _FEW].index[:2])
    return [f"{a} to {b}" for a, b in (names, names[::-1])] if len(names) == 2 else []


def _panel_tasks(bench: Bench) -> list[str]:
    tasks = [f"{n} genes" for n in PANELS if n < bench.cells.n_vars]
    if peers.units(bench.cells) == COUNTS:
        tasks += [f"{share}% of the counts" for share in DEPTHS]
    return tasks


def _halves(bench: Bench, task: str) -> tuple[str, AnnData, AnnData]:
    reference = ~bench.aside
    if task != WHOLE:
        reference &= bench.cells.obs[LABEL].to_numpy(str) != task.removeprefix(WITHOUT)
    columns = (LABEL, SOURCE)
    return task, bench.part(reference, *columns), bench.part(bench.aside, *columns)


def _sources(bench: Bench, task: str) -> tuple[str, AnnData, AnnData]:
    source = bench.cells.obs[SOURCE].to_numpy(str)
    a, b = next((a, b) for a, b in permutations(np.unique(source), 2) if f"{a} to {b}" == task)
    return f"source {a}", bench.part(source == a, LABEL), bench.part(source == b, LABEL)


def measured(bench: Bench, task: str) -> tuple[str, AnnData, AnnData]:
    """Halves of the cells, of which the query has fewer genes or fewer counts.

    Args:
        bench: The cells.
        task: ``N genes``, or ``N% of the counts``.

    Returns:
        Name of the reference, the reference and the query, both with labels.
    """
    name, reference, query = _halves(bench, WHOLE)
    number = int(re.match(r"\d+", task)[0])
    if task.endswith("genes"):
        query = query[:, _variable(reference, number)].copy()
    else:
        query.X = _thinned(query.X, number / 100, bench.seed)
    return name, reference, query[np.asarray(query.X.sum(1)).ravel() > 0].copy()


def _variable(cells: AnnData, n: int) -> np.ndarray:
    """Whether each gene is one of the n that vary most."""
    import scanpy as sc

    shown = np.asarray(cells.X.sum(0)).ravel() > 0
    found = log_normalized(cells[:, shown], peers.scales(cells))
    sc.pp.highly_variable_genes(found, n_top_genes=min(n, found.n_vars))
    shown[shown] = found.var["highly_variable"].to_numpy()
    return shown


def _thinned(counts: Any, share: float, seed: int) -> Any:
    """Each count kept with a probability."""
    import scipy.sparse as sp

    made = sp.csr_matrix(counts, copy=True)
    kept = np.random.default_rng(seed).binomial(np.rint(made.data).astype(np.int64), share)
    made.data = kept.astype(made.dtype)
    made.eliminate_zeros()
    return made


def _labels(sides: Sides, *further: str) -> dict[str, Answer]:
    """Who tells labels: both of our commands, and peers."""
    ours: dict[str, Answer] = {
        OURS + kind: partial(_labels_of_ours, sides, kind) for kind in ("annotate", "map")
    }
    return ours | {
        peer: partial(_labels_of_peer, sides, peer) for peer in ("logistic", "knn", *further)
    }


def _labels_of_ours(sides: Sides, kind: str, bench: Bench, task: str) -> Scores:
    name, reference, query = sides(bench, task)
    desk = bench.desk(name, lambda: reference)
    bare = query.copy()
    del bare.obs[LABEL]  # a user has none, and nothing can look at it
    desk.put(QUERY, bare)
    columns = ("label", "confidence", "predicted")
    obs = desk.left(kind).obs[[f"concerto_{name}" for name in columns]]
    scores = _label_scores(reference, query, obs.set_axis(columns, axis=1))
    return {**scores, "commands": desk.commands(kind)}


def _labels_of_peer(sides: Sides, peer: str, bench: Bench, task: str) -> Scores:
    new = task.removeprefix(WITHOUT) if task.startswith(WITHOUT) else None
    _, reference, query = sides(bench, task if new is None else WHOLE)
    told = peers.labels_by(peer, reference, query, bench.seed)
    if new is None:
        columns = {"label": told, "confidence": 1.0, "predicted": told}
        return _label_scores(reference, query, pd.DataFrame(columns))
    # It has no word for a new type; told is how well it knows the type where it is there.
    truth, found = query.obs[LABEL].to_numpy(str) == new, told == new
    return {"f1": 2 * int((truth & found).sum()) / max(int(truth.sum() + found.sum()), 1)}


def _label_scores(reference: AnnData, query: AnnData, told: pd.DataFrame) -> Scores:
    truth = query.obs[LABEL].to_numpy(str)
    known = np.isin(truth, reference.obs[LABEL].to_numpy(str))
    return score(truth, known, told.astype({"label": object, "predicted": object}))


def _imputed(bench: Bench, task: str) -> Scores:
    desk = bench.desk("protein", lambda: bench.part(~bench.aside, modality=True), PROTEIN)
    desk.put(QUERY, bench.part(bench.aside))
    scores = _protein_scores(bench, np.asarray(desk.left("impute").obsm[PROTEIN]))
    return {**scores, "commands": desk.commands("impute")}


def _imputed_by_pca(bench: Bench, task: str) -> Scores:
    known = bench.part(~bench.aside, modality=True)
    found = by_pca(known, bench.part(bench.aside), log_values(_protein(known)), K, bench.seed)
    return _protein_scores(bench, found)


def _protein_scores(bench: Bench, found: np.ndarray) -> Scores:
    truth = log_values(_protein(bench.part(bench.aside, modality=True)))
    return {"r": float(np.nanmean(correlations(found, truth)))}


def _protein(cells: AnnData) -> Any:
    values = cells.obsm[PROTEIN]
    return values.to_numpy() if hasattr(values, "to_numpy") else values


def _mixed_by_ours(bench: Bench, task: str) -> Scores:
    z = _whole(bench).left("run").obsm[KEY]
    return {**_mixing(bench, z), "commands": _whole(bench).commands("run")}


def _mixed_by_peer(corrected: bool, bench: Bench, task: str) -> Scores:
    z = peers.components(bench.cells, bench.seed)
    sources = bench.cells.obs[SOURCE]
    return _mixing(bench, harmony(z, sources, bench.seed) if corrected else z)


def _mixing(bench: Bench, z: np.ndarray) -> Scores:
    return mixing(z, *(bench.cells.obs[name].to_numpy(str) for name in (LABEL, SOURCE)))


def mixing(z: np.ndarray, labels: np.ndarray, sources: np.ndarray) -> Scores:
    """How well sources are mixed within cell types.

    Args:
        z: Embedding [n, d].
        labels: Names [n].
        sources: Names [n].

    Returns:
        ``ilisi`` and ``kbet``, means over the types that have ten cells of two sources or more,
        among the cells of these sources alone; NaN where there is no such type.

    Example:

    >>> z = np.random.default_rng(0).normal(size=(80, 3))
    >>> found = mixing(z, np.repeat(["B"], 80), np.tile(["one", "two"], 40))
    >>> found["ilisi"] > 0.8, found["types"]
    (True, 1)
    """
    found = []
    for label in np.unique(labels):
        own = labels == label
        names, counts = np.unique(sources[own], return_counts=True)
        own &= np.isin(sources, names[counts >= _FEW])
        if (counts >= _FEW).sum() > 1:
            found.append((ilisi(z[own], sources[own]), kbet(z[own], sources[own])))
    means = np.mean(found, axis=0) if found else (np.nan, np.nan)
    return {"ilisi": float(means[0]), "kbet": float(means[1]), "types": len(found)}


def _all_cells(bench: Bench) -> list[str]:
    return ["all cells"]


PARTS: dict[str, Part] = {
    "clusters": Part(
        _all_cells,
        {
            OURS + "run": _clusters_of_ours,
            "scanpy": partial(_clusters_of_scanpy, False),
            "scanpy, scaled": partial(_clusters_of_scanpy, True),
        },
    ),
    "labels": Part(_label_tasks, _labels(_halves)),
    "shift": Part(_shift_tasks, _labels(_sources, "harmony", "scanvi")),
    "panels": Part(_panel_tasks, _labels(measured)),
    "impute": Part(
        lambda bench: _all_cells(bench) if PROTEIN in bench.cells.obsm else [],
        {OURS + "impute": _imputed, "knn": _imputed_by_pca},
    ),
    "mixing": Part(
        lambda bench: _all_cells(bench) if bench.has_sources else [],
        {
            OURS + "run": _mixed_by_ours,
            "harmony": partial(_mixed_by_peer, True),
            "pca": partial(_mixed_by_peer, False),
        },
    ),
}
