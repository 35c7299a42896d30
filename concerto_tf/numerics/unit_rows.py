"""Directions of vectors."""

from __future__ import annotations

import numpy as np


def unit_rows(z: np.ndarray) -> np.ndarray:
    """Vectors of length 1 in the same directions; those of length 0 stay as they are.

    Args:
        z: Vectors [n, d].

    Returns:
        Unit vectors [n, d].

    Example:

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
