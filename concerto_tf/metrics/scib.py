"""scib-metrics, the field's implementation of integration metrics, where it is installed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np


@cache
def installed() -> bool:
    """Whether scib-metrics is there; it brings jax, and is imported when first needed."""
    return find_spec("scib_metrics") is not None


@contextlib.contextmanager
def quietly() -> Iterator[Any]:
    """The package, with its warnings and those of what it brings left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scib_metrics

        yield scib_metrics


def neighbours(distances: np.ndarray, others: np.ndarray) -> Any:
    """scib-metrics' table of neighbours, of which each cell is its own first.

    Args:
        distances: [n, k] to other cells, nearest first.
        others: [n, k] which cells these are.
    """
    with quietly():
        from scib_metrics.nearest_neighbors import NeighborsResults

        return NeighborsResults(*with_itself(distances, others))


def with_itself(distances: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells [n, k + 1] in each cell's neighbourhood and their distances, itself being the first."""
    n = len(others)
    indices = np.concatenate([np.arange(n)[:, None], others], axis=1)
    return indices, np.concatenate([np.zeros((n, 1), distances.dtype), distances], axis=1)
