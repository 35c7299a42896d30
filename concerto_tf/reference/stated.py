"""What is to be expected of a reference: known cells lost, and cells of new types caught."""

from __future__ import annotations

from typing import Any

import numpy as np

from concerto_tf._progress import stage
from concerto_tf.expected import FEWEST_STATED, p_by_type, rounded
from concerto_tf.novelty import novelty_together
from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.conformity import calibrated, query_like
from concerto_tf.reference.transfer import transfer

#: Cells that are looked at, at most: half of them are the reference, half the query. Company among
#: more query cells is looked for in parts of this size, too.
_MOST = 4_000
#: Neighbours that vote; how many hardly matters here.
_VOTERS = 5


def stated(reference: Reference, key: str) -> dict[str, Any]:
    """Novelty p-values that a query of the reference's own kind of cells would have.

    Half of the reference's cells, of many a random sample, are judged by the other half. Of a new
    type: each label is left out in turn of the half that judges, of its votes and its calibration.
    The embedding is not made anew, and may know the type.

    Args:
        reference: The reference, which keeps the answer.
        key: Key of the labels; cells without one are left out.

    Returns:
        ``known``: p-values of all judged cells; ``of_type``: those of each label; ``new``: by
        label, those of its cells were it not known. Labels of fewer than five judged cells are left
        out of both. See `concerto_tf.expected.expected`.
    """
    if key not in reference.stated:
        with stage("each label left out of the reference in turn"):
            reference.stated[key] = _stated(reference.labelled(key), key)
    return reference.stated[key]


def _stated(reference: Reference, key: str) -> dict[str, Any]:
    held = reference.labels_of(key)
    # The same cells every time; of those learned from is known what others say.
    voices = reference.voices.get(key)
    cells = np.arange(reference.n_cells) if voices is None else voices.rows
    order = np.random.default_rng(0).permutation(cells)[:_MOST]
    judging, judged = order[::2], order[1::2]
    if not len(judged):
        return {}
    embedded = reference.embedded
    z = query_like(embedded, embedded.from_middle(judged)) + embedded.origin
    heard = None if voices is None else voices.of_cells(judged)
    known = _judged(reference, judging, z, key, heard)
    new = {}
    for code, name in enumerate(held.names):
        own, others = held.codes[judged] == code, judging[held.codes[judging] != code]
        if own.sum() >= FEWEST_STATED and len(np.unique(held.codes[others])) > 1:
            new[name] = rounded(_judged(reference, others, z, key, heard)[own])
    of_type = p_by_type(known, held.codes[judged], held.names)
    return {"known": rounded(known), "of_type": of_type, "new": new}


def _judged(
    reference: Reference, rows: np.ndarray, z: np.ndarray, key: str, heard: np.ndarray | None
) -> np.ndarray:
    """Novelty p-values [n] of embeddings, where some of the cells are all of the reference."""
    part, held = reference.part(rows), reference.labels_of(key)
    there, codes = np.unique(held.codes[rows], return_inverse=True)
    part.labels = {key: Labels(codes.astype(np.int32), tuple(held.names[i] for i in there))}
    part.voices = {of: voices.of_labels(there) for of, voices in part.voices.items() if of == key}
    said = None if heard is None else heard[:, there]
    p_value = transfer(part, z, key, min(_VOTERS, part.n_cells), said)["novelty"]
    return novelty_together(p_value, part.embedded.compared(z), calibrated(part, key).together)
