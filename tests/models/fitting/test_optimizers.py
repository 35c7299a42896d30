"""Optimizers by name on every stack."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import KERAS_MAJOR, apply_gradient_step, keras
from concerto_tf.errors import InputError
from concerto_tf.models.fitting.optimizers import (
    _tensorflow_addons,
    cosine_schedule,
    make_optimizer,
)

ADDONS = _tensorflow_addons() is not None
LAMB = ADDONS or hasattr(keras.optimizers, "Lamb")


@pytest.mark.parametrize(
    "name",
    [
        "adam",
        "AdamW",
        "sgd",
        "momentum",
        pytest.param("lamb", marks=pytest.mark.skipif(not LAMB, reason="none here")),
        pytest.param("lazyadam", marks=pytest.mark.skipif(not ADDONS, reason="none here")),
    ],
)
def test_steps_downhill_with_a_schedule(name: str) -> None:
    optimizer = make_optimizer(name, cosine_schedule(0.1, steps=100))
    x = tf.Variable([1.0, -2.0]) if KERAS_MAJOR == 2 else keras.Variable([1.0, -2.0])
    for _ in range(50):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.convert_to_tensor(x)))
        apply_gradient_step(optimizer, tape, loss, [x])
    assert np.abs(np.array(x)).max() < 0.9


def test_tensorflow_addons_optimizers_are_taken_by_name() -> None:
    if not ADDONS:
        pytest.skip("tensorflow-addons is not installed here")
    import tensorflow_addons as tfa

    assert isinstance(make_optimizer("lamb", 1e-3), tfa.optimizers.LAMB)
    assert isinstance(make_optimizer("LazyAdam", 1e-3), tfa.optimizers.LazyAdam)


def test_what_is_not_here_is_said_and_how_to_get_it() -> None:
    if not ADDONS:
        with pytest.raises(InputError, match=r"lazyadam.*concerto_tf\[addons\]"):
            make_optimizer("lazyadam", 1e-3)
    with pytest.raises(InputError, match="no optimizer 'adma'; choose one of adam, adamw, lamb"):
        make_optimizer("adma", 1e-3)


@pytest.mark.parametrize("steps", [1, 5, 100])
def test_rate_rises_and_falls_to_zero(steps: int) -> None:
    schedule = cosine_schedule(0.5, steps)
    rates = [float(schedule(step)) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(0.5, rel=0.2) and rates[-1] == pytest.approx(0, abs=1e-6)
    peak = int(np.argmax(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak == int(0.1 * steps)
    assert float(cosine_schedule(0.5, steps, warmup=0.0)(0)) == pytest.approx(0.5)
