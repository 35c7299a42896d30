"""Two replicas compute what one does on the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from anndata import AnnData

from concerto_tf._keras import keras, replica_index
from concerto_tf.layers import RandomMask, SourceBatchNormalization
from concerto_tf.models import Concerto, load_model, save_model
from concerto_tf.records import Records, convert

pytestmark = pytest.mark.stack

N_CELLS, N_GENES, B = 160, 40, 32


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Cells of two sources of very different sizes, with very different numbers of genes."""
    rng = np.random.default_rng(0)
    kind, small = rng.integers(0, 3, N_CELLS), rng.random(N_CELLS) < 0.3
    profiles = rng.gamma(0.5, 2.0, (3, N_GENES))
    counts = rng.poisson(profiles[kind] * rng.gamma(1.0, 1.0, (N_CELLS, 1)) * (1 + small[:, None]))
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.obs["donor"] = np.where(small, "small", "large")
    return convert(cells, tmp_path_factory.mktemp("records"), source_key="donor", shards=2)


def test_normalization_and_its_gradient_are_those_of_the_global_batch(
    strategy: tf.distribute.Strategy, on_both: Callable
) -> None:
    rng = np.random.default_rng(1)
    source = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0], "float64")  # 7+0 and 1+6
    x = np.c_[source, rng.normal(3 * source[:, None], 1 + source[:, None], (14, 3))]
    weight = rng.normal(size=(14, 3))
    x = np.c_[x, weight]

    def layer() -> SourceBatchNormalization:
        made = SourceBatchNormalization(2, dtype="float64")
        made.build((None, 3))
        return made

    def run(made: SourceBatchNormalization, part: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(part)
            out = made(part[:, 1:4], source=tf.cast(part[:, 0], tf.int32), training=True)
            loss = tf.reduce_sum(out * part[:, 4:])
        return out, tape.gradient(loss, part)[:, 1:4]

    alone = layer()
    want = run(alone, tf.constant(x))
    with strategy.scope():
        together = layer()
    got = on_both(x, lambda part: run(together, part))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.concatenate(a), b, atol=1e-10)
    for a, b in zip(together.moving_moments, alone.moving_moments, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    assert np.array(alone.moving_count).tolist() == [8, 6]


def test_replicas_hide_different_genes(strategy: tf.distribute.Strategy, on_both: Callable) -> None:
    with strategy.scope():
        mask = RandomMask(0.5)
        mask.build((None, 50))
    first, second = on_both(np.ones((8, 50), "float32"), lambda part: mask(part, training=True))
    assert 0.2 < float(tf.reduce_mean(tf.cast(first != second, tf.float32))) < 0.8
    assert int(np.array(tf.convert_to_tensor(mask.draws))) == 1
    assert replica_index() == 0


def trained(
    data: tf.data.Dataset, strategy: tf.distribute.Strategy | None, **arguments: Any
) -> tuple[Concerto, list[float], list[np.ndarray]]:
    """A model after 10 steps, its losses, and its weights before calibration."""
    small = {
        "units": 8,
        "hidden_units": 8,
        "attention_units": 4,
        "head_units": 6,
        "components": 0,
        "mask_rate": 0.0,
        "dropout": 0.0,
        "sources": ("large", "small"),
    }
    names = [str(i) for i in range(N_GENES)]
    with strategy.scope() if strategy else nullcontext():
        model = Concerto(names, **{**small, **arguments})
        model.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
    assert model.distribute_strategy.num_replicas_in_sync == (2 if strategy else 1)
    options = {"steps_per_epoch": 2, "epochs": 5, "verbose": 0}
    history = model.fit(data, **options).history
    # Keras 2 counts the state of metrics among the weights.
    metrics = {id(v) for metric in model.metrics for v in metric.variables}
    weights = [w for w in model.weights if id(w) not in metrics]
    return model, history["loss"], [np.array(tf.convert_to_tensor(w)) for w in weights]


def test_training_on_two_replicas_is_training_on_one(
    records: Records, strategy: tf.distribute.Strategy, tmp_path: Path
) -> None:
    data = records.dataset(
        B, shuffle=True, repeat=True, sources=("large", "small"), packed=True, replicas=2
    )
    assert "offset" in data.element_spec
    shares = [
        np.bincount(half, minlength=2).tolist()
        for batch in data.take(5)
        for half in np.split(batch["source"].numpy(), 2)
    ]
    assert len({tuple(share) for share in shares}) > 2  # sources lie unevenly
    alone, want, weights = trained(data, None)
    both, got, others = trained(data, strategy)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(others, weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # What comes after training works on many replicas too.
    both.calibrate(data.take(5))
    alone.calibrate(data.take(5))
    cells = records.dataset(B, sources=("large", "small"))
    np.testing.assert_allclose(both.embed(cells), alone.embed(cells), atol=1e-4)
    save_model(both, tmp_path / "model.keras")
    np.testing.assert_allclose(
        load_model(tmp_path / "model.keras").embed(cells), both.embed(cells), atol=1e-6
    )


def test_plain_fit_with_views_works_on_two_replicas(
    records: Records, strategy: tf.distribute.Strategy
) -> None:
    data = records.dataset(
        B,
        shuffle=True,
        repeat=True,
        sources=("large", "small"),
        packed=True,
        replicas=2,
        cells=True,
    )
    with strategy.scope():
        model = Concerto(
            records.vocabulary.ids,
            sources=("large", "small"),
            units=8,
            hidden_units=8,
            attention_units=4,
            head_units=8,
            components=3,
        )
        model.compile()
    history = model.fit(data, steps_per_epoch=5, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    before = model.embed(records.dataset(B))
    found = model.evaluate(data.take(2), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(history["loss"][-1], abs=0.5)
    np.testing.assert_array_equal(model.embed(records.dataset(B)), before)
