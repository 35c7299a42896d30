"""Entries of minibatches put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from concerto_tf.records.batch import Batch


def gather(
    batches: Iterable[Batch], keys: Sequence[str], cells: int | None = None
) -> dict[str, np.ndarray]:
    """Some entries of minibatches, one after the other.

    Args:
        batches: Minibatches of tensors [B, ...].
        keys: Which entries.
        cells: Stop at the minibatch that reaches this number of cells.

    Returns:
        Arrays [n, ...] by key; without an entry where there is no minibatch.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for key in keys:
            parts.setdefault(key, []).append(batch[key].numpy())
        if cells is not None and sum(map(len, parts[keys[0]])) >= cells:
            break
    return {key: np.concatenate(found) for key, found in parts.items()}
