"""Makes a query and its reference comparable: same genes, same depth, no shift."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from concerto_tf._progress import stage
from concerto_tf.errors import Argument, InputError
from concerto_tf.models.encoder import (
    Encoder,
    SourceAware,
    geometry_of,
    looks_at,
    modality_input,
)
from concerto_tf.numerics.offset import MOST_CELLS, query_offset
from concerto_tf.numerics.readout import OTHERWISE
from concerto_tf.numerics.turns import place_in_group
from concerto_tf.records import CellSet
from concerto_tf.records.batch import ROW, SOURCE, Batch
from concerto_tf.records.lens import Lens
from concerto_tf.reference.cells import Embedded, Labels, Reference
from concerto_tf.reference.transfer import heard_of, transfer
from concerto_tf.tasks.adapt import with_own_statistics
from concerto_tf.tasks.embed import Progress
from concerto_tf.tasks.hearing import Heard, hear, read_reference
from concerto_tf.tasks.io.agreement import BATCH_CELLS, cell_batches, mean_depth, seen_modalities
from concerto_tf.tasks.io.reading import Reading, open_cells

_log = logging.getLogger("concerto_tf")
ADAPTATIONS = ("auto", "none", "source", "align")
#: Share of a reference's counts in the genes measured, and of its depth, below which a query is
#: not compared with whole reference cells.
_LEAST_GENES, _LEAST_DEPTH = 0.9, 0.6
#: How far reference cells that are looked at anew are drawn together as cells trained on are.
_OLD_NOISE = 0.5
#: Reference cells that are looked at anew, at most.
_MOST_CELLS = 20_000
#: Mean novelty p-value of a query (0.5 where it is like the reference) below which moving it is
#: tried, and by how much it has to rise for the query to be moved.
UNLIKE, WORTH_MOVING = 0.4, 0.1
#: Longest offset that is a shift, in distances of the query's cells from their mean. Those of other
#: studies of a tissue were up to 0.68 long; of noise and other tissues 0.88 and more in embeddings
#: as they are initialized, 0.67 and more in trained ones.
MOST_OFFSET = 0.7
#: Cells of a query, below which nothing tells a shift from what they are.
FEW_CELLS = 20

#: Opens the cells of a reference, where they are at hand.
Open = Callable[[], AbstractContextManager[CellSet]]


@dataclass(frozen=True)
class Match:
    """A query beside its reference.

    Attributes:
        reference: What to compare with; None where there is none.
        heard: The query, as it is compared.
        lines: What was seen and done, for the user.
    """

    reference: Reference | None
    heard: Heard
    lines: tuple[str, ...] = ()


def match(
    model: Encoder,
    records: CellSet,
    reference: Reference | None,
    *,
    cells: Open | None = None,
    key: str | None = None,
    k: int = 5,
    how: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Match:
    """Embeds a query, and makes it comparable with its reference.

    Where the query was measured for a part of the genes, or at most 0.6 times as deeply, the
    reference is looked at anew: by these genes alone, and thinned to that depth, by a model that
    has the statistics of such cells. A query that lies off as a whole is moved by what its cells
    share with the reference, or normalized by statistics of its own.

    Args:
        model: A trained model.
        records: The query, with the model's genes.
        reference: The reference as it was measured.
        cells: Opens its cells, with the labels that are needed.
        key: Labels by which it is judged whether moving helps; with none ``auto`` moves nothing.
        k: Number of neighbours that vote for these.
        how: ``none`` takes the query as it is, ``source`` normalizes it by its own statistics,
            ``align`` moves it; ``auto`` moves it where that makes it much more like the reference.
        seed: Seed of all draws.
        progress: Called with the number of cells embedded and of all cells.

    Returns:
        Both, seen alike.
    """
    lines = []
    lens, reasons = (
        (None, []) if reference is None else query_lens(model, records, reference.depth, seed)
    )
    if lens is not None and cells is not None and reference is not None:
        with cells() as origin:
            model, reference = _through(model, origin, reference, lens, records, reasons)
        lines.append(f"{', '.join(reasons)}; reference cells are looked at in the same way")
        _log.info("%s: %s", records.name, lines[-1])
    elif lens is not None:
        again = f"give {Argument('reference')} again for it to be looked at so, too"
        lines.append(f"{', '.join(reasons)}; {again}")
        _log.warning("%s: %s", records.name, lines[-1])
    if how == "source":
        model = with_own_statistics(model, records)
    # Statistics of the query's own cells know of no gene that was not measured.
    heard = hear(model, records, reference, progress, fill_unmeasured=how != "source")
    if reference is None or how in ("none", "source") or len(heard.z) < FEW_CELLS:
        return Match(reference, heard, tuple(lines))
    with stage("whether the query lies off the reference"):
        moved, line = _moved(reference, heard, key, k, how, seed)
    if line:
        _log.info("%s: %s", records.name, line)
    return Match(reference, moved, (*lines, *([line] if line else [])))


def check_adapt(adapt: str) -> None:
    """Raises InputError if there is no such adaptation."""
    if adapt not in ADAPTATIONS:
        raise InputError(
            f"no adaptation {adapt!r}; choose one of {', '.join(ADAPTATIONS)}", "adapt"
        )


def reopened(model: Encoder, cells: Any, reading: Reading) -> Open | None:
    """How to open the cells of a reference again; None where it is given without."""
    if cells is None or isinstance(cells, Reference):
        return None
    return lambda: open_cells(model, cells, reading)


# --- measured alike -------------------------------------------------------------------------


def query_lens(
    model: Encoder, records: CellSet, depth: float | None, seed: int
) -> tuple[Lens | None, list[str]]:
    """What reference cells are to be looked at through, and why; None where as they are.

    Args:
        model: The model that embeds both.
        records: The query.
        depth: Mean number of molecules of reference cells; None where it is unknown.
        seed: Seed of the molecules drawn.
    """
    named = seen_modalities(model, records)
    name, reasons = named[0], []
    measured = {of: found for of in named if not (found := records.measured(of)).all()}
    if name in measured:
        of_counts = np.asarray(modality_input(model, name).gene_share)
        share = of_counts[measured[name]].sum() / max(of_counts.sum(), 1e-12)
        if share < _LEAST_GENES:
            reasons.append(f"its genes hold {share:.0%} of the reference's counts")
    left = 1.0
    if not reasons and depth and records.modalities[name].scales_with_depth:
        left = _depth(mean_depth(cell_batches(model, records), name) / depth, reasons)
    reasons += [f"it has no {other}" for other in looks_at(model) if other not in named]
    counts = tuple(of for of in named if records.modalities[of].scales_with_depth)
    return Lens(measured, left, counts, seed=seed) if reasons else None, reasons


def deepened(
    lens: Lens, cells: Iterable[Batch], model: Encoder, records: CellSet, reasons: list[str]
) -> Lens:
    """The lens, thinning too where a query for some genes is less deep in these.

    Args:
        lens: From `query_lens`.
        cells: Reference cells through it.
        model: The model that embeds both.
        records: The query.
        reasons: What is to be said, which is added to.
    """
    name = seen_modalities(model, records)[0]
    if lens.depth < 1 or name not in lens.modalities or name not in lens.measured:
        return lens
    own = mean_depth(cell_batches(model, records), name)
    return replace(lens, depth=_depth(own / max(mean_depth(cells, name), 1e-12), reasons))


def _depth(depth: float, reasons: list[str]) -> float:
    """The share of their molecules that reference cells keep, and a reason where not all."""
    if depth >= _LEAST_DEPTH:
        return 1.0
    reasons.append(f"its cells have {depth:.0%} of the reference's depth")
    return depth


def _through(
    model: Encoder,
    origin: CellSet,
    whole: Reference,
    lens: Lens,
    records: CellSet,
    reasons: list[str],
) -> tuple[Encoder, Reference]:
    """The model and the reference that see the reference's cells through a lens."""
    named, of_cells = seen_modalities(model, records), origin.obs()
    chosen = _some(whole, origin.n_cells, lens.seed)
    known = {name: of_cells[name][chosen] for name in (ROW, SOURCE)}
    lens = replace(lens, rows=known[ROW])

    def cells() -> Any:  # which may be read once only
        return lens.look(
            origin.dataset(
                min(BATCH_CELLS, origin.n_cells), modalities=named, sources=model.sources
            )
        )

    lens = deepened(lens, cells(), model, records, reasons)
    if isinstance(model, SourceAware):
        model = model.with_sources(origin.sources)
        model.calibrate(cells())
    labels = {key: Labels(of.codes[chosen], of.names) for key, of in whole.labels.items()}
    z, genes = read_reference(model, cells(), None, labels, known)
    values = {name: replace(of, matrix=of.matrix[chosen]) for name, of in whole.values.items()}
    # A part of the noise that they are seen with is new to the model, as it is in other cells.
    factor = whole.embedded.factor**_OLD_NOISE
    embedded = Embedded.of(z, *geometry_of(model), factor=factor)
    seen = Reference(embedded, labels, values, model=whole.model)
    for key in whole.voices:
        seen.learn(key, genes, OTHERWISE)
    return model, seen


def _some(reference: Reference, n_cells: int, seed: int) -> np.ndarray:
    """Indices of the reference cells to look at anew: all, or of many as many of each label."""
    if n_cells <= _MOST_CELLS:
        return np.arange(n_cells)
    order = np.random.default_rng(seed).permutation(n_cells)
    if not reference.labels:
        return np.sort(order[:_MOST_CELLS])
    codes = next(iter(reversed(reference.labels.values()))).codes[order]
    return np.sort(order[np.argsort(place_in_group(codes), kind="stable")[:_MOST_CELLS]])


# --- shift ----------------------------------------------------------------------------------


def _moved(
    reference: Reference, heard: Heard, key: str | None, k: int, how: str, seed: int
) -> tuple[Heard, str]:
    """The query, moved or not, and what to say of that."""
    if how == "auto" and key is None:
        return heard, ""
    rng, embedded = np.random.default_rng(seed), reference.embedded
    own = rng.permutation(reference.n_cells)[:MOST_CELLS]
    some = rng.permutation(len(heard.z))[:MOST_CELLS]
    z = embedded.compared(heard.z[some]) - embedded.middle
    offset, _ = query_offset(embedded.from_middle(own), z, seed)
    if how == "auto" and np.linalg.norm(offset) > MOST_OFFSET * np.sqrt(z.var(axis=0).sum()):
        return heard, ""  # of no type of the reference; they would be moved onto the nearest one
    shifts = {}
    for of, said in heard.by_genes.items():
        voices = reference.voices[of]
        sides = embedded.from_middle(voices.rows), z
        shifts[of] = query_offset(*sides, seed, (voices.by_genes, said[some]))[1]
    moved = Heard(heard.z - offset, {of: said - shifts[of] for of, said in heard.by_genes.items()})
    if how == "align" or key is None:
        return moved, "the query was moved by what its cells share with the reference"
    part = reference.labelled(key)

    def likeness(cells: Heard) -> float:
        z, said = cells.z[some], cells.by_genes.get(key)
        beside = heard_of(part, z, key, said, some)
        return float(transfer(part, z, key, min(k, part.n_cells), beside)["novelty"].mean())

    as_is = likeness(heard)
    if as_is >= UNLIKE or (then := likeness(moved)) < as_is + WORTH_MOVING:
        return heard, ""
    return moved, (
        f"the query lay off as a whole (mean novelty p-value {as_is:.2f}; cells like the "
        f"reference have 0.5) and was moved by what its cells share with it ({then:.2f})"
    )
