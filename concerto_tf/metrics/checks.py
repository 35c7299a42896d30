"""Checks of the input of every metric, and thinning of large input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from concerto_tf.errors import InputError

#: One value for each cell, a name or a code.
PerCell: TypeAlias = Sequence[Any] | np.ndarray


def as_embedding(embedding: np.ndarray) -> np.ndarray:
    """The embedding as float32 [n, d].

    Raises:
        InputError: it is not a matrix, is empty, or has values that are not finite.
    """
    z = np.asarray(embedding)
    if z.ndim != 2 or not z.size:
        raise InputError(f"the embedding has shape {z.shape}: it must be cells x dimensions.")
    z = np.asarray(z, np.float32)
    bad = ~np.isfinite(z).all(axis=1)
    if bad.any():
        raise InputError(
            f"the embedding is not finite in {bad.sum()} of {len(z)} cells, the first being cell "
            f"{int(bad.argmax())}: leave these cells out or train again."
        )
    return z


def as_codes(values: PerCell, n: int, what: str, least: int = 1) -> np.ndarray:
    """Categories as int64 [n] codes 0, 1, ... without gaps; -1 where missing.

    Args:
        values: n names or codes. None, NaN, pandas' missing values and empty text are missing.
        n: number of cells.
        what: "labels" or "sources", for messages.
        least: how many different categories there must be.

    Raises:
        InputError: the number of values is not n, or they have too few categories.
    """
    import pandas as pd

    if len(values) != n:
        raise InputError(f"{len(values)} {what} for an embedding of {n} cells: one each is needed.")
    given = np.array(values, object)
    given[[isinstance(value, str) and not value for value in given]] = None
    codes, names = pd.factorize(given, sort=True)
    if len(names) < least:
        found = f"only {names[0]!r}" if len(names) else "none"
        raise InputError(
            f"the {what} have {found}: at least {least} different {what} are needed here."
        )
    return codes.astype(np.int64)


def complete_codes(values: PerCell, n: int, what: str, least: int = 1) -> np.ndarray:
    """The same, where each cell must have a value; raises InputError if one is missing."""
    codes = as_codes(values, n, what, least)
    missing = int((codes < 0).sum())
    if missing:
        raise InputError(f"{missing} of {len(codes)} {what} are missing: leave these cells out.")
    return codes


def labelled_cells(
    embedding: np.ndarray, labels: PerCell, cap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checked embedding and label codes, of a random sample where there are more than `cap`."""
    z = as_embedding(embedding)
    codes = complete_codes(labels, len(z), "labels", least=2)
    chosen = thinned(len(z), cap, seed)
    return z[chosen], codes[chosen]


def check_clusters(n_clusters: float | None, n: int) -> int:
    """The number of clusters that n cells are to be cut into; InputError if they cannot be."""
    if n_clusters is None or int(n_clusters) != n_clusters or not 1 <= n_clusters <= n:
        raise InputError(
            f"the number of clusters is {n_clusters!r}; it must be a whole number from 1 to the "
            f"{n} cells",
            "n_clusters",
        )
    return int(n_clusters)


def sample(n: int, cap: int, seed: int) -> np.ndarray:
    """Positions of at most `cap` of `n` cells, drawn without replacement, in random order."""
    return np.random.default_rng(seed).permutation(n)[:cap]


def thinned(n: int, cap: int, seed: int) -> np.ndarray | slice:
    """All cells in their order where they are at most `cap`, else a sorted random sample."""
    return slice(None) if n <= cap else np.sort(sample(n, cap, seed))
