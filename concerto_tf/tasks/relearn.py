"""A classifier beside a query that was measured otherwise: types told anew, cells moved."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._progress import stage
from concerto_tf.models.batches import by_batch
from concerto_tf.models.classifier import Classifier, Exemplars, Relearned, relearned, with_encoder
from concerto_tf.models.encoder import geometry_of
from concerto_tf.numerics.offset import MOST_CELLS, query_offset
from concerto_tf.records import CellSet
from concerto_tf.records.batch import Batch
from concerto_tf.records.lens import Lens
from concerto_tf.tasks.adapt import with_own_statistics
from concerto_tf.tasks.embed import Progress, whole_cells
from concerto_tf.tasks.io.agreement import cell_batches, check_measured, mean_depth
from concerto_tf.tasks.matching import (
    FEW_CELLS,
    MOST_OFFSET,
    UNLIKE,
    WORTH_MOVING,
    deepened,
    query_lens,
)

_log = logging.getLogger("concerto_tf")


@dataclass(frozen=True)
class Told:
    """What a classifier says of a query.

    Attributes:
        model: The classifier that says it.
        found: As `Classifier.annotate`.
        lines: What was seen and done, for the user.
    """

    model: Classifier
    found: dict[str, np.ndarray]
    lines: tuple[str, ...] = ()


def tell(
    model: Classifier,
    records: CellSet,
    how: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Told:
    """Tells the types of a query as it was measured.

    Where it was measured for a part of the genes, or at most 0.6 times as deeply, types are told
    anew from the exemplars of the model, which are looked at in the same way.

    Args:
        model: The classifier.
        records: The query, with the model's genes.
        how: As ``adapt`` of `annotate`.
        seed: Seed of all draws.
        progress: Called with the number of cells done and of all cells.
    """
    lines: list[str] = []
    exemplars = model.exemplars
    model = _measured_alike(model, records, seed, lines)
    if how == "source":
        model = with_encoder(model, with_own_statistics(model.encoder, records))
        # Statistics of the query's own cells know of no gene that was not measured.
        found = _annotated(model, records, progress, filled=False)
        return Told(model, found, tuple(lines))
    found = _annotated(model, records, progress)
    if how == "none" or records.n_cells < FEW_CELLS:
        return Told(model, found, tuple(lines))
    if exemplars is None:
        if how == "align":
            lines.append("the query was not moved, as the model keeps no cells of its reference")
            _log.warning("%s: %s", records.name, lines[-1])
        return Told(model, found, tuple(lines))
    with stage("what the query shares with the reference"):
        then = _moved(model, exemplars, records, found, how, seed, lines)
    return Told(*(then or (model, found)), tuple(lines))


def _annotated(
    model: Classifier, records: CellSet, progress: Progress | None = None, filled: bool = True
) -> dict[str, np.ndarray]:
    data, measured = whole_cells(model.encoder, records, progress)
    with records.naming_damage():
        return model.annotate(data, measured if filled else None)


def _measured_alike(model: Classifier, records: CellSet, seed: int, lines: list[str]) -> Classifier:
    """The classifier, which learned types anew where exemplars have to be looked at otherwise."""
    encoder, exemplars = model.encoder, model.exemplars
    depth = None
    if exemplars is not None:
        depth = mean_depth(exemplars, encoder.modality_inputs[0].name)
    lens, reasons = query_lens(encoder, records, depth, seed)
    if lens is None:
        return model
    if exemplars is None:
        why = "the model keeps no cells of its reference to look at in the same way"
        lines.append(f"{', '.join(reasons)}, and {why}")
        _log.warning("%s: %s", records.name, lines[-1])
        return model
    lens = deepened(lens, lens.look(exemplars), encoder, records, reasons)
    lines.append(
        f"{', '.join(reasons)}; types are told from labelled cells looked at in the same way"
    )
    _log.info("%s: %s", records.name, lines[-1])
    with stage("cell types learned anew"):
        return relearned(model, exemplars, lens.look(exemplars))


def _moved(
    model: Classifier,
    exemplars: Exemplars,
    records: CellSet,
    found: dict[str, np.ndarray],
    how: str,
    seed: int,
    lines: list[str],
) -> tuple[Classifier, dict[str, np.ndarray]] | None:
    """The classifier that takes the query to lie off, and what it says; None where it does not."""
    as_is = float(found["novelty"].mean())
    if how == "auto" and as_is >= UNLIKE:
        return None
    new = (
        model
        if isinstance(model, Relearned)
        else relearned(model, exemplars, Lens().look(exemplars))
    )
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(records.n_cells)[:MOST_CELLS])
    own = _compared(new, new.seen, None)
    query = _compared(
        new,
        cell_batches(new.encoder, records, packed=True),
        check_measured(new.encoder, records),
        rows,
    )
    offset, shift = query_offset(own[0], query[0], seed, (own[1], query[1]))
    wide = np.sqrt(query[0].var(axis=0).sum())
    if how == "auto" and np.linalg.norm(offset) > MOST_OFFSET * wide:
        return None  # cells of no type of the reference, which would be moved onto the nearest
    new.move(shift)
    then = _annotated(new, records)
    likeness = float(then["novelty"].mean())
    if how == "auto" and likeness < as_is + WORTH_MOVING:
        return None
    lines.append(
        f"the query lay off as a whole (mean novelty p-value {as_is:.2f}; cells like the "
        f"reference have 0.5) and was moved by what its cells share with it ({likeness:.2f})"
    )
    _log.info("%s: %s", records.name, lines[-1])
    return new, then


def _compared(
    model: Classifier, data: Any, measured: Any, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, seen from their middle [n, d], and standardized values of cells [n, F]."""
    origin = geometry_of(model.encoder).origin

    @tf.function(reduce_retracing=True)
    def look(batch: Batch) -> dict[str, tf.Tensor]:
        z = tf.cast(model.encoder(batch, training=False), tf.float32) - origin
        return {"z": z, "y": model.standardized(batch)}

    zs, ys = [], []
    for row, found in by_batch(look, data, measured):
        mine = slice(None) if rows is None else np.isin(row, rows)
        zs.append(found["z"][mine])
        ys.append(found["y"][mine])
    return np.concatenate(zs), np.concatenate(ys)
