from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.layers.augmentation import Augmentation
from concerto_tf.layers.exchange import Crossover, CrossoverMany, RandomSwap
from concerto_tf.layers.masking import RandomMask
from concerto_tf.layers.noise import GaussianNoise, ScaledNoise

pytestmark = pytest.mark.stack

#: Layers of the family, made anew with further arguments.
FAMILY: dict[str, Callable[..., keras.layers.Layer]] = {
    "mask": lambda **kw: RandomMask(0.2, rescale=False, probability=0.5, **kw),
    "exact mask": lambda **kw: RandomMask(0.2, rescale=False, probability=0.5, exact=True, **kw),
    "noise": GaussianNoise,
    "scaled noise": ScaledNoise,
    "swap": RandomSwap,
    "crossover": Crossover,
    "crossover many": CrossoverMany,
    "all": Augmentation,
}
family = pytest.mark.parametrize("make", FAMILY.values(), ids=list(FAMILY))


def cells(n: int = 24, genes: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 1.0, (n, genes)).astype("float32") + 0.1


@family
def test_nothing_happens_at_inference_and_the_input_is_never_changed(make: Callable) -> None:
    layer, x = make(), tf.constant(cells())
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, training=False), x)
    out = layer(x, training=True)
    assert not np.array_equal(out, x)
    np.testing.assert_array_equal(x, cells())


@family
def test_every_call_draws_anew_and_the_seed_decides(make: Callable) -> None:
    x = cells()
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    a, b = first(x, training=True), first(x, training=True)
    assert not np.array_equal(a, b)
    np.testing.assert_array_equal(again(x, training=True), a)
    np.testing.assert_array_equal(again(x, training=True), b)
    assert not np.array_equal(other(x, training=True), a)


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, (5, 7)) for name in FAMILY), ("all", (24, 50)), ("all", (1, 9))]
)
def test_xla_computes_the_same_bytes(name: str, shape: tuple[int, int]) -> None:
    make = FAMILY[name]
    plain, compiled, x = make(seed=3), make(seed=3), tf.constant(cells(*shape))
    compiled.build(shape)
    call = tf.function(lambda x: compiled(x, training=True), jit_compile=True)
    for _ in range(3):
        np.testing.assert_array_equal(call(x), plain(x, training=True))


@family
def test_continues_where_saved_weights_left_off(make: Callable) -> None:
    x, first, resumed = cells(), make(seed=4), make(seed=4)
    first(x, training=True)
    resumed.build(x.shape)
    resumed.set_weights(first.get_weights())
    np.testing.assert_array_equal(resumed(x, training=True), first(x, training=True))
    assert not resumed.trainable_weights


@pytest.mark.parametrize("make", [Augmentation, ScaledNoise])
def test_survives_saving_in_somebody_elses_model(make: Callable, tmp_path: Path) -> None:
    inputs = keras.Input([50])
    model = keras.Model(inputs, keras.layers.Dense(3)(make(seed=5)(inputs)))
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(cells(), np.zeros((24, 3), "float32"), batch_size=12, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].get_config() == model.layers[1].get_config()
    np.testing.assert_array_equal(loaded(cells()), model(cells()))
    after = model(cells(), training=True)
    np.testing.assert_array_equal(loaded(cells(), training=True), after)
    assert not np.array_equal(after, model(cells()))


@family
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float64"])
def test_other_precisions_change_the_same_values(make: Callable, dtype: str) -> None:
    want = np.asarray(make(seed=6)(cells(), training=True))
    out = make(seed=6, dtype=dtype)(cells(), training=True)
    assert out.dtype == (tf.bfloat16 if "16" in dtype else tf.float64)
    np.testing.assert_allclose(tf.cast(out, tf.float32), want, rtol=0.01, atol=0.01)


@family
def test_one_gene_or_one_cell_is_no_trouble(make: Callable) -> None:
    for shape in ((1, 1), (3, 1), (1, 20)):
        out = np.asarray(make(seed=7)(cells(*shape), training=True))
        assert out.shape == shape and np.isfinite(out).all()


@pytest.mark.parametrize("make", [GaussianNoise, ScaledNoise, RandomSwap, Crossover, CrossoverMany])
def test_fraction_and_probability_are_checked(make: Callable) -> None:
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fraction must lie in"):
            make(fraction=wrong)
        with pytest.raises(ValueError, match="probability must lie in"):
            make(probability=wrong)
    with pytest.raises(ValueError, match="dense values"):
        make()(tf.ones([2, 3, 4]), training=True)
    for nothing in (make(fraction=0.0, probability=1.0), make(fraction=0.5, probability=0.0)):
        np.testing.assert_array_equal(nothing(cells(), training=True), cells())


STEPS = {
    "mask": RandomMask,
    "noise": GaussianNoise,
    "swap": RandomSwap,
    "crossover": Crossover,
    "crossover_many": CrossoverMany,
}
NONE = dict.fromkeys(STEPS, 0.0)


def test_defaults_are_the_papers() -> None:
    augment = Augmentation()
    assert [type(getattr(augment, name)) for name in STEPS] == list(STEPS.values())
    share = [augment.mask.rate, *(getattr(augment, n).fraction for n in list(STEPS)[1:])]
    assert share == [0.2, 0.8, 0.1, 0.25, 0.25]
    assert {getattr(augment, name).probability for name in STEPS} == {0.5}
    assert augment.noise.stddev == 0.2


@pytest.mark.parametrize("step", STEPS)
def test_one_step_alone_is_that_layer(step: str) -> None:
    augment = Augmentation(**{**NONE, step: 0.5}, probability=1.0, seed=8)
    layer = getattr(augment, step)
    alone = type(layer).from_config(layer.get_config())
    x = cells()
    np.testing.assert_array_equal(augment(x, training=True), alone(x, training=True))


@pytest.mark.parametrize("step", STEPS)
def test_leaving_a_step_out_changes_no_other(step: str) -> None:
    whole, without, x = Augmentation(seed=9), Augmentation(seed=9, **{step: 0.0}), cells()
    out, rest = (np.asarray(layer(x, training=True)) for layer in (whole, without))
    assert not np.array_equal(out, rest)
    # Every step touches half of the cells: many are as they would be with it.
    assert (out == rest).all(1).sum() > 4
    for name in STEPS:
        assert getattr(whole, name).seed == getattr(without, name).seed
    assert len({getattr(whole, name).seed for name in STEPS}) == 5


def test_steps_touch_cells_independently_of_each_other() -> None:
    x = tf.constant(cells(4000, 20))
    touched = {
        name: np.any(Augmentation(**{**NONE, name: 0.5})(x, training=True) != x, axis=1)
        for name in STEPS
    }
    share = np.array(list(touched.values()), float)
    assert np.abs(share.mean(1) - 0.5).max() < 5 * np.sqrt(0.25 / 4000)
    # Ten pairs, five standard deviations: once in 170,000.
    assert np.abs(np.corrcoef(share) - np.eye(5)).max() < 5 / np.sqrt(4000)
    # Half to the fifth power of the cells stay as they were.
    same = float(np.mean(np.asarray(Augmentation()(x, training=True) == x).all(1)))
    assert abs(same - 0.5**5) < 5 * np.sqrt(0.5**5 / 4000)


def test_crossover_reads_the_other_cells_as_they_came_in() -> None:
    # All is masked but what crossover brings back: values of other cells, not their masks.
    augment = Augmentation(**{**NONE, "mask": 0.98, "crossover": 0.5}, probability=1.0)
    out = np.asarray(augment(cells(), training=True))
    assert ((out > 0).sum(1) >= 25).all()
    buffer = np.full((3, 50), 9.0, "float32")
    out = np.asarray(augment(cells(), others=buffer, training=True))
    assert ((out == 9).sum(1) == 25).all()


def test_config_round_trip() -> None:
    augment = Augmentation(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, stddev=0.7, partners=8, seed=9)
    again = Augmentation.from_config(augment.get_config())
    assert again.get_config() == augment.get_config()
    np.testing.assert_array_equal(again(cells(), training=True), augment(cells(), training=True))
