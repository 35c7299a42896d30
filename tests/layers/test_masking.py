from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.layers import RandomMask

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_hides_the_stated_share(jit: bool, rescale: bool) -> None:
    layer = RandomMask(0.3, rescale=rescale, seed=5)
    call = tf.function(lambda x: layer(x, training=True), jit_compile=jit)
    out = call(tf.ones([200, 500])).numpy()
    n = out.size
    # Five standard deviations: fails by chance once in 1.7 million runs.
    assert abs((out == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)
    assert np.allclose(out[out > 0], 1 / 0.7 if rescale else 1)


def test_every_call_draws_anew_and_the_seed_decides() -> None:
    x = tf.ones([10, 100])
    first, again, other = RandomMask(0.5, seed=1), RandomMask(0.5, seed=1), RandomMask(0.5, seed=2)
    a, b = first(x, training=True), first(x, training=True)
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(again(x, training=True), a)
    np.testing.assert_array_equal(again(x, training=True), b)
    assert not np.array_equal(other(x, training=True), a)


@pytest.mark.parametrize("shape", [(7, 3), (32, 25), (10, 100)])
def test_xla_hides_the_same(shape: tuple[int, int]) -> None:
    plain, compiled = RandomMask(0.3, seed=3), RandomMask(0.3, seed=3)
    call = tf.function(compiled.call, jit_compile=True)
    compiled.build(shape)
    for _ in range(2):
        want = plain(tf.ones(shape), training=True)
        np.testing.assert_array_equal(call(tf.ones(shape), training=True), want)


def test_continues_where_saved_weights_left_off() -> None:
    x = tf.ones([10, 100])
    first = RandomMask(0.5)
    first(x, training=True)
    resumed = RandomMask(0.5)
    resumed.build(x.shape)
    resumed.set_weights(first.get_weights())
    np.testing.assert_array_equal(resumed(x, training=True), first(x, training=True))


def test_does_nothing_at_inference() -> None:
    x = tf.ones([3, 4])
    np.testing.assert_array_equal(RandomMask(0.9)(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rate_is_checked(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must lie in"):
        RandomMask(rate)


def test_bytes_are_those_of_the_first_version() -> None:
    # Trained models resume with the masks they would have had.
    out = RandomMask(0.5, rescale=False, seed=7)(tf.ones([2, 8]), training=True)
    bits = tf.random.stateless_uniform([2, 8], [7, 0], None, None, tf.uint32, alg="philox")
    np.testing.assert_array_equal(out, (bits.numpy() >= 2**31).astype("float32"))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_hides_in_the_stated_share_of_cells(exact: bool, rescale: bool) -> None:
    layer = RandomMask(0.2, rescale=rescale, seed=1, probability=0.25, exact=exact)
    out = layer(tf.ones([2000, 100]), training=True).numpy()
    touched = (out == 0).any(1)
    # Five standard deviations: once in 1.7 million.
    assert abs(touched.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    assert (out[~touched] == 1).all()
    hidden = (out[touched] == 0).sum(1)
    assert abs(hidden.mean() - 20) < 5 * np.sqrt(100 * 0.2 * 0.8 / touched.sum())
    assert (hidden == 20).all() == exact
    assert np.allclose(out[touched][out[touched] > 0], 1 / 0.8 if rescale else 1)


def test_cells_of_any_shape_take_part_or_not() -> None:
    out = RandomMask(0.5, rescale=False, probability=0.5)(tf.ones([100, 4, 5]), training=True)
    touched = (out.numpy() == 0).any((1, 2))
    assert 20 < touched.sum() < 80


def test_exact_takes_cells_and_genes() -> None:
    with pytest.raises(ValueError, match="takes values .cells, genes."):
        RandomMask(0.5, exact=True)(tf.ones([2, 3, 4]), training=True)
    with pytest.raises(ValueError, match="probability must lie in"):
        RandomMask(0.5, probability=1.5)


@pytest.mark.parametrize(("rate", "genes"), [(0.5, 1), (0.99, 30)])
def test_exact_leaves_something_of_every_cell(rate: float, genes: int) -> None:
    out = RandomMask(rate, exact=True)(tf.ones([50, genes]), training=True).numpy()
    np.testing.assert_array_equal((out > 0).sum(1), 1)
