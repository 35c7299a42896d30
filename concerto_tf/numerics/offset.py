"""The shift of a query against a reference in an embedding."""

from __future__ import annotations

import numpy as np

from concerto_tf.numerics.alignment import clustered_offsets, fine_clusters, matched_offsets
from concerto_tf.numerics.unit_rows import unit_rows

#: Cells of each side that are looked at: an offset is a mean, which needs no more.
MOST_CELLS = 4_000
_MATCHED_ROUNDS, _CLUSTERED_ROUNDS = 2, 2


def query_offset(
    reference: np.ndarray,
    query: np.ndarray,
    seed: int = 0,
    values: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The shift of a whole query against its reference, estimated from shared cell types.

    No labels are used. A query may lack types of the reference, or have others. As in the alignment
    of sources, cells are matched by mutual nearest neighbours, then by shared clusters.

    Args:
        reference: Embeddings of the reference's cells [n, d], seen from the middle.
        query: Embeddings of the query's cells [m, d], seen from there too.
        seed: Seed of the cells that are looked at, and of clusters.
        values: Values of the same cells [n, F] and [m, F] whose shift is asked for too; by default
            the embeddings.

    Returns:
        The offset [d], float32, to be taken from the query's embeddings, and that of the values
        [F].

    Example:

    The query lacks half of the types, and lies off by 1 along the last unit.

    >>> rng = np.random.default_rng(0)
    >>> types = 9 * np.eye(6, 7)
    >>> cells = types[rng.integers(0, 6, 600)] + rng.normal(0, 1, (600, 7))
    >>> query = types[rng.integers(0, 3, 300)] + rng.normal(0, 1, (300, 7)) + np.eye(7)[6]
    >>> off, _ = query_offset(cells, query)
    >>> bool(np.linalg.norm(off - np.eye(7)[6]) < 0.3)
    True
    """
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(len(x))[:MOST_CELLS] for x in (reference, query)]
    source = np.repeat([0, 1], [len(rows) for rows in chosen])
    order = rng.permutation(len(source))
    source = source[order]

    def of_both(sides: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        parts = [side[rows] for side, rows in zip(sides, chosen, strict=True)]
        return np.concatenate(parts)[order].astype(np.float32)

    x = of_both((reference, query))
    offsets = np.zeros((2, x.shape[1]), np.float32)
    for turn in range(_MATCHED_ROUNDS + _CLUSTERED_ROUNDS):
        rest = x - offsets[source]
        z = unit_rows(rest - rest.mean(0))
        if turn < _MATCHED_ROUNDS:
            few = slice(MOST_CELLS)
            offsets += matched_offsets(rest[few], z[few], source[few], 2)
        else:
            clusters = fine_clusters(z, seed + turn)
            offsets += clustered_offsets(rest, source, clusters, 2)
    offset = offsets[1] - offsets[0]
    if values is None:
        return offset, offset
    offsets = clustered_offsets(of_both(values), source, clusters, 2, prior=0)
    return offset, offsets[1] - offsets[0]
