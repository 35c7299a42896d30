"""Cells taken by turns, so that no group of many crowds out one of few."""

from __future__ import annotations

import numpy as np


def place_in_group(codes: np.ndarray) -> np.ndarray:
    """The place of each cell among those of its group, from 0.

    Sorted by it, stably, the first cells of all groups come first, then their second ones.

    Args:
        codes: Group of each cell [n].

    Returns:
        Places [n], int64.

    Example:

    >>> place_in_group(np.array([7, 7, 2, 7, 2])).tolist()
    [0, 1, 0, 2, 1]
    """
    place = np.empty(len(codes), np.int64)
    for code in np.unique(codes):
        own = codes == code
        place[own] = np.arange(own.sum())
    return place
