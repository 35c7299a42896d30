"""Held-out cells as if their own cell type were not known: what a new type would look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from concerto_tf.models.classifier.type_distance import type_conformity

_LEAST_PROBABILITY = 1e-30


def own_type_left_out(
    found: Mapping[str, np.ndarray],
    y: np.ndarray,
    label: np.ndarray,
    measure: Sequence[np.ndarray],
) -> dict[str, np.ndarray]:
    """What would be said of cells, were their own types not among the known ones.

    Each cell is taken for the most probable of the other types and measured by that. The network
    is not trained anew: it has seen the type, and its components hold what tells it.

    Args:
        found: What `Classifier.annotate` says of the cells, of three types or more.
        y: Their standardized values [n, F].
        label: Their types [n].
        measure: The three arrays of `measured_types`.

    Returns:
        ``found`` with other ``probabilities``, ``code`` and ``scores``.
    """
    others = np.where(
        np.eye(found["probabilities"].shape[1], dtype=bool)[label], 0, found["probabilities"]
    )
    log_p = np.log(np.maximum(others, _LEAST_PROBABILITY)).astype(np.float32)
    log_p -= np.where(others > 0, 0, 1e3).astype(np.float32)  # which is no type at all
    code = log_p.argmax(axis=1).astype(np.int32)
    tensors = (tf.constant(x, tf.float32) for x in measure)
    scores = type_conformity(tf.constant(y), tf.constant(log_p), tf.constant(code), *tensors)
    total = np.maximum(others.sum(axis=1, keepdims=True), _LEAST_PROBABILITY)
    return {
        **found,
        "probabilities": (others / total).astype(np.float32),
        "code": code,
        "scores": scores.numpy(),
    }
