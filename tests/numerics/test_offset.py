"""The offset of a query: found whatever types it lacks, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.numerics.offset import query_offset

D = 12
TYPES = 8 * np.random.default_rng(5).normal(size=(8, D))
OFF = 3 * np.random.default_rng(6).normal(size=D)


def cells(types: tuple[int, ...], n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return TYPES[rng.choice(types, n)] + rng.normal(0, 1, (n, D))


@pytest.mark.parametrize(
    ("of_reference", "of_query", "n"),
    [
        (range(8), range(8), 400),
        (range(8), (0, 1, 2), 400),  # the query lacks types
        (range(5), range(8), 400),  # and has others
        (range(8), (3,), 60),  # of one type alone
        (range(8), range(8), 40),
    ],
)
@pytest.mark.parametrize("off", [0, 1])
def test_the_offset_is_found_whatever_types_are_missing(
    of_reference: tuple[int, ...], of_query: tuple[int, ...], n: int, off: int
) -> None:
    reference = cells(tuple(of_reference), 600, 0)
    query = cells(tuple(of_query), n, 1) + off * OFF
    found, _ = query_offset(reference, query)
    # A standard error of the means, and what a few cells are drawn to none by.
    assert np.linalg.norm(found - off * OFF) < 0.12 * np.linalg.norm(OFF)
    shift_of_means = query.mean(0) - reference.mean(0) - off * OFF
    if tuple(of_query) != tuple(range(8)):
        assert np.linalg.norm(shift_of_means) > 3 * np.linalg.norm(found - off * OFF)


def test_the_same_seed_finds_the_same() -> None:
    reference, query = cells((0, 1), 200, 0), cells((0, 1), 90, 1) + OFF
    one, other = (query_offset(reference, query, 3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_values_of_the_same_cells_lie_off_as_the_cells_do() -> None:
    reference, query = cells((0, 1, 2), 400, 0), cells((0, 1), 200, 1)
    turned = np.random.default_rng(0).normal(size=(len(OFF), 30)) / np.sqrt(len(OFF))
    values = reference @ turned, (query + OFF) @ turned
    found, of_values = query_offset(reference, query + OFF, values=values)
    assert np.linalg.norm(of_values - OFF @ turned) < 0.2 * np.linalg.norm(OFF @ turned)
    np.testing.assert_allclose(of_values, found @ turned, atol=0.1 * np.abs(OFF @ turned).max())
