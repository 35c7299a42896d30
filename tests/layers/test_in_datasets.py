"""The random layers as preprocessing: within datasets, on single cells, on whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.layers import (
    Augmentation,
    Crossover,
    CrossoverMany,
    GaussianNoise,
    RandomMask,
    RandomSwap,
    ScaledNoise,
)

pytestmark = pytest.mark.stack

GENES = 40
OTHERS = tf.random.stateless_uniform([30, GENES], [0, 1], 5, 9)
MAKE: dict[str, Callable[[], Any]] = {
    "mask": lambda: RandomMask(0.5, rescale=False),
    "exact mask": lambda: RandomMask(0.5, rescale=False, exact=True),
    "noise": lambda: GaussianNoise(0.5, 0.5, 1.0),
    "scaled noise": lambda: ScaledNoise(0.5),
    "swap": lambda: RandomSwap(0.5, 1.0),
    "crossover": lambda: Crossover(0.5, 1.0),
    "crossover many": lambda: CrossoverMany(0.5, 1.0),
    "all": lambda: Augmentation(probability=1.0),
}
each = pytest.mark.parametrize("name", MAKE)


def with_whom(name: str) -> dict[str, Any]:
    """Other cells, for the layers that exchange with some: a single cell has none."""
    return {"others": OTHERS} if name in ("crossover", "crossover many", "all") else {}


def cells(n: int = 24) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 4, (n, GENES)).astype("float32")


@each
def test_single_cells_before_batching(name: str) -> None:
    layer = MAKE[name]()  # not yet built: a dataset must be able to
    data = tf.data.Dataset.from_tensor_slices(cells())
    views = np.stack(
        list(data.map(lambda x: layer(x, training=True, **with_whom(name))).as_numpy_iterator())
    )
    assert views.shape == (24, GENES) and (views != cells()).any(axis=1).all()
    same = data.map(lambda x: layer(x, training=False, **with_whom(name)))
    np.testing.assert_array_equal(np.stack(list(same.as_numpy_iterator())), cells())


@each
def test_a_parallel_map_with_an_index_gives_the_same_again(name: str) -> None:
    def views(parallel: int | None) -> np.ndarray:
        layer = MAKE[name]()
        data = tf.data.Dataset.from_tensor_slices(np.tile(cells(), (8, 1))).enumerate()
        data = data.map(
            lambda i, x: layer(x, training=True, index=i, **with_whom(name)),
            num_parallel_calls=parallel,
        )
        assert int(tf.convert_to_tensor(next(iter(_counters(layer)), 0))) == 0, "no state"
        return np.stack(list(data.as_numpy_iterator()))

    first = views(8)
    np.testing.assert_array_equal(views(8), first)
    np.testing.assert_array_equal(views(None), first)
    assert (first[:24] != first[24:48]).any(axis=1).all(), "another index, another view"


def _counters(layer: Any) -> list[Any]:
    parts = [layer.mask, layer.noise, layer.swap] if isinstance(layer, Augmentation) else [layer]
    return [part.draws for part in parts]


@each
def test_an_index_is_the_call_of_that_number(name: str) -> None:
    layer, again = MAKE[name](), MAKE[name]()
    calls = [layer(cells(), training=True, **with_whom(name)) for _ in range(3)]
    np.testing.assert_array_equal(
        again(cells(), training=True, index=2, **with_whom(name)), calls[2]
    )


@each
def test_whole_numbers_are_cast(name: str) -> None:
    whole = np.arange(3 * GENES).reshape(3, GENES) + 1
    want = MAKE[name]()(whole.astype("float32"), training=True, **with_whom(name)).numpy()
    for dtype in ("int32", "int64", "uint8"):
        got = MAKE[name]()(whole.astype(dtype), training=True, **with_whom(name))
        assert got.dtype == tf.float32
        np.testing.assert_array_equal(got, want)
    assert (want != whole).any()


@each
def test_what_is_not_dense_numbers_is_refused_with_words(name: str) -> None:
    layer = MAKE[name]()
    with pytest.raises(
        InputError, match=r"takes dense values, not a SparseTensor; call tf\.sparse"
    ):
        layer(tf.sparse.from_dense(cells()), training=True)
    with pytest.raises(InputError, match="not a RaggedTensor"):
        layer(tf.RaggedTensor.from_tensor(cells()), training=True)
    with pytest.raises(InputError, match="takes numbers, not string"):
        layer(tf.constant([["a"] * GENES]), training=True)


@pytest.mark.parametrize(("genes", "hidden"), [(2000, 0.5), (1500, 0.8), (997, 0.2)])
def test_cells_of_a_call_overlap_as_independent_ones_do(genes: int, hidden: float) -> None:
    mask = RandomMask(hidden, rescale=False, exact=True)
    shares = []
    for _ in range(12):
        kept = (mask(tf.ones([48, genes]), training=True).numpy() != 0).astype(float)
        count = kept[0].sum()
        shares.append(((kept @ kept.T) / count)[np.triu_indices(48, 1)])
    share = count / genes
    # Of a hypergeometric distribution. Turning a single order alone gives .29 and more.
    independent = np.sqrt(share * (1 - share) * (genes - count) / (genes - 1) / count)
    assert np.mean(shares) == pytest.approx(share, abs=0.01)
    assert np.std(shares) < 1.6 * independent


def test_cells_of_a_call_are_swapped_in_pairs_of_their_own() -> None:
    values = tf.tile(tf.range(100.0)[tf.newaxis], [40, 1])
    swapped = RandomSwap(1.0, 1.0)(values, training=True).numpy().astype(int)
    np.testing.assert_array_equal(np.take_along_axis(swapped, swapped, 1), values.numpy())
    assert (swapped != values.numpy()).all(), "an even number of genes leaves none alone"
    shared = [(a == b).mean() for i, a in enumerate(swapped) for b in swapped[:i]]
    # Two cells that turn alike share all pairs, all others none.
    assert np.median(shared) == 0 and np.mean(shared) < 0.1
