"""Several networks as one model: each learns as if alone, one file, one embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models import CLEAR, Concerto, ContrastiveSC, Ensemble, load_model, save_model

pytestmark = pytest.mark.stack

NAMES = [f"G{i}" for i in range(30)]


def make(cls: type, seed: int, **arguments: object) -> Concerto:
    small = {
        Concerto: {"units": 6, "attention_units": 4, "hidden_units": 5, "head_units": 4},
        CLEAR: {"backbone": (6, 5), "batch_size": 16, "queue": 64},
        ContrastiveSC: {"backbone": (6, 5)},
    }[cls]
    return cls(
        NAMES,
        sources=("a", "b"),
        components=2,
        seed=seed,
        name=f"member_{seed}",
        **{**small, **arguments},
    )


@pytest.fixture(scope="module")
def data(make_batch: Callable) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(make_batch(64)).batch(16, drop_remainder=True)


@pytest.mark.parametrize("cls", [Concerto, CLEAR])
def test_members_learn_as_if_alone(cls: type, data: tf.data.Dataset, tmp_path: Path) -> None:
    together = Ensemble([make(cls, 0), make(cls, 1)])
    alone = [make(cls, 0), make(cls, 1)]
    for model in (together, *alone):
        model.compile("sgd", 0.1, jit_compile=False)
        model.fit(data, epochs=2, verbose=0)
    # One gradient of a sum may be added up in another order than the gradients.
    for member, single in zip(together.models, alone, strict=True):
        np.testing.assert_allclose(member.embed(data), single.embed(data), atol=1e-4)
    z, parts = together.embed(data), [single.embed(data) for single in alone]
    np.testing.assert_allclose(z, np.concatenate(parts, 1) / np.sqrt(2), atol=1e-4)
    assert z.shape == (64, together.embedding_dim) and np.abs(parts[0] - parts[1]).max() > 0.01
    save_model(together, tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.embed(data), z)
    other = again.with_sources(["b", "c"])
    assert other.sources == other.models[0].sources == ("b", "c")
    assert other.embed(data).shape == z.shape


def test_members_follow_the_minibatch() -> None:
    model = Ensemble([make(CLEAR, i, queue=None) for i in range(2)])
    assert model.for_batches(16) is model
    assert [m.queue.size for m in model.for_batches(90).models] == [900, 900]


def test_unsuitable_members() -> None:
    with pytest.raises(InputError, match="at least one model"):
        Ensemble([])
    with pytest.raises(InputError, match="differ in their genes"):
        Ensemble([make(ContrastiveSC, 0), make(ContrastiveSC, 1, genes=[1, 2])])
