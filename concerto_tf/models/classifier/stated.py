"""What is to be expected of a classifier: known cells lost, and new types caught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf.expected import FEWEST_STATED, p_by_type, rounded
from concerto_tf.models.classifier.type_distance import (
    measured_types,
    type_conformity,
    type_novelty,
)
from concerto_tf.novelty import (
    calibrated_on_all,
    mean_together,
    novelty_together,
    scale_by_type,
)

#: Parts of the held-out cells; most cells learned from.
_PARTS, MOST_LEARNED = 5, 3_000


def stated_novelty(
    found: Mapping[str, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    learned: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    components: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Novelty p-values of held-out cells as other cells like them would have.

    Of known cells: beside held-out cells of other parts than their own. Of cells of a new type:
    each type is left out in turn, of the components, the covariance and the limits. The network is
    not trained anew; the odds are those of linear discriminants along the components.

    Args:
        found: What `Classifier.annotate` says of the held-out cells.
        held_out: Their standardized values [n, F] and types [n].
        learned: Those of cells that were learned from.
        classes: Names of the types.
        components: Components in which types are compared.
        seed: Seed of the parts.

    Returns:
        ``known``: p-values of all held-out cells; ``of_type``: those of each type; ``new``: by
        type, those of its held-out cells were it not known. Types of fewer than five are left out
        of both, and of the last all where there are but two.
    """
    y, label = held_out
    part = np.random.default_rng(seed).permutation(len(label)) % _PARTS
    z, nobody = found["embedding"], np.zeros(len(label), bool)
    known = _p_values(found["scores"], found["code"], z, part, nobody)
    new = {}
    for code in range(len(classes)) if len(classes) > 2 else ():
        own, rest = label == code, learned[1] != code
        if own.sum() < FEWEST_STATED or len(np.unique(learned[1][rest])) < 2:
            continue
        others = learned[0][rest], learned[1][rest]
        measure = measured_types([others].copy, len(classes), seed, components)
        count = np.bincount(others[1], minlength=len(classes))
        log_p = np.full((len(y), len(classes)), -1e6, np.float32)
        log_p[:, count > 0] = np.log(count[count > 0]) - 0.5 * np.square(
            (y @ measure[0])[:, np.newaxis] - measure[1][count > 0]
        ).sum(axis=-1)
        told = log_p.argmax(axis=1).astype(np.int32)
        arrays = (tf.constant(of, tf.float32) for of in measure)
        scores = type_conformity(tf.constant(y), tf.constant(log_p), tf.constant(told), *arrays)
        p_value = _p_values(scores.numpy(), told, z, part, own)
        new[classes[code]] = rounded(p_value[own])
    return {"known": rounded(known), "of_type": p_by_type(known, label, classes), "new": new}


def _p_values(
    scores: np.ndarray, code: np.ndarray, z: np.ndarray, part: np.ndarray, new: np.ndarray
) -> np.ndarray:
    """P-values [n] beside the cells of other parts that are not new, by company too."""
    p_value = np.ones(len(scores), np.float32)
    for of in np.unique(part):
        limits, cells = (part != of) & ~new, part == of
        if not limits.any():
            continue
        scale = scale_by_type(scores[limits], code[limits], int(code.max()) + 1)
        beside = type_novelty(scores[limits], code[limits], scale, ((), ()))[0].numpy()
        held = np.sort(beside, axis=0).T.tolist()
        p_value[cells] = type_novelty(scores[cells], code[cells], scale, held)[1].numpy()
    together = calibrated_on_all(mean_together(p_value[~new], z[~new]))
    return novelty_together(p_value, z, together)
