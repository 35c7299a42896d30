"""Clusters that stay apart by source, and those that are of one source alone."""

from __future__ import annotations

import numpy as np

from concerto_tf.numerics.islands import drawn_together, islands

MEANS = np.zeros((5, 10))
MEANS[np.arange(5), np.arange(5)] = 6.0


def make_cells(missing: tuple[tuple[int, int], ...], response: float) -> tuple[np.ndarray, ...]:
    """Five types in two sources; the last answers in the second one."""
    rng = np.random.default_rng(0)
    kind, source = rng.integers(0, 5, 1200), rng.integers(0, 2, 1200)
    kept = np.ones(1200, bool)
    for absent, where in missing:
        kept &= (kind != absent) | (source != where)
    z = MEANS[kind] + rng.normal(size=(1200, 10))
    answers = (kind == 4) & (source == 1)
    z[answers, 8] += response
    cluster = np.where(answers, 5, kind) if response else kind
    return tuple(x[kept] for x in (z, source, cluster, kind))


def test_a_type_that_answers_strongly_is_found_and_drawn_together() -> None:
    z, source, cluster, kind = make_cells((), 7.0)
    [pair] = islands(z, source, cluster)
    assert pair.clusters == (4, 5) and pair.sources == (0, 1)
    assert pair.cells == tuple(((kind == 4) & (source == of)).sum() for of in (0, 1))
    for weight, left in ((0.0, 7.0), (0.5, 3.5), (1.0, 0.0)):
        moved = drawn_together(z, cluster, [pair], weight)
        apart = moved[cluster == 5].mean(axis=0) - moved[cluster == 4].mean(axis=0)
        assert abs(np.linalg.norm(apart) - left) < 0.5
        np.testing.assert_array_equal(moved[kind < 4], z[kind < 4])


def test_types_of_one_source_alone_are_left_alone() -> None:
    z, source, cluster, _ = make_cells(((0, 0), (1, 1)), 0.0)
    assert islands(z, source, cluster) == []
    # Beside a type that answers, too.
    z, source, cluster, _ = make_cells(((0, 0), (1, 1)), 7.0)
    assert [pair.clusters for pair in islands(z, source, cluster)] == [(4, 5)]


def test_few_cells_and_one_source_say_nothing() -> None:
    z, source, cluster, _ = make_cells((), 7.0)
    assert islands(z[:30], source[:30], cluster[:30]) == []
    assert islands(z, np.zeros_like(source), cluster) == []
