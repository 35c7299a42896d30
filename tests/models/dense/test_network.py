"""Any augmentation in front of any encoder with any loss: trains, saves, and starts as PCA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.layers import Augmentation, RandomMask
from concerto_tf.losses import NTXent, VICReg, info_nce, nt_xent, vicreg
from concerto_tf.models import Concerto, DenseModel, Ensemble, load_model, save_model
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.batches import first_cells
from concerto_tf.models.dense.mlp import MLP
from concerto_tf.numerics.components import noise_edge

pytestmark = pytest.mark.stack

NAMES = [f"G{i}" for i in range(30)]


def make(**arguments: Any) -> DenseModel:
    small = {"augmentation": RandomMask(0.5, rescale=False, seed=1), "backbone": (8,), "head": 6}
    return DenseModel(NAMES, **{"sources": ("a", "b"), **small, **arguments})


def by_hand() -> keras.Model:
    """An encoder that shares names with other layers, and one layer of it twice."""
    one = [keras.layers.Dense(8, activation="tanh", name="dense") for _ in range(1)]
    inner = keras.Sequential([keras.layers.Dense(8, name="dense"), *one[:0]], name="head")
    return keras.Sequential([*one, inner, keras.layers.Dense(5, name="last")], name="input_norm_")


@pytest.fixture(scope="module")
def data(make_batch: Callable) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(make_batch(64)).batch(32)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"augmentation": Augmentation(seed=3), "backbone": by_hand, "loss": VICReg(2.0, 3.0, 1.0)},
        {"standardize": False, "backbone": (9, 7), "head": None, "loss": "info_nce"},
    ],
    ids=["default", "of one's own", "plain"],
)
def test_combinations_learn_and_come_back(
    arguments: dict[str, Any], data: tf.data.Dataset, tmp_path: Path
) -> None:
    made = {
        key: of() if callable(of) and not isinstance(of, (keras.layers.Layer, VICReg)) else of
        for key, of in arguments.items()
    }
    model = make(genes=range(1, 29), **made)
    model.compile(learning_rate=0.01, jit_compile=False)
    history = model.fit(data, epochs=8, verbose=0).history["loss"]
    assert np.mean(history[-2:]) < history[0]
    save_model(model, tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.embed(data), model.embed(data))
    # The next step is the same, too: counters of the views and the optimizer's state came along.
    model.save(tmp_path / "whole.keras")
    again = keras.models.load_model(tmp_path / "whole.keras")
    first, second = (m.fit(data, verbose=0).history["loss"] for m in (model, again))
    assert first == second


def test_weights_of_nested_layers_have_names_of_their_own(data: tf.data.Dataset) -> None:
    from concerto_tf.models.weights import _named

    model = make(backbone=by_hand(), augmentation=Augmentation(name="augmentation"))
    metrics = {id(w) for metric in model.metrics for w in metric.variables}
    assert len(_named(model)) == len([w for w in model.weights if id(w) not in metrics])
    assert {"augmentation.0.draws", "augmentation.4.draws"} <= set(_named(model))


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("nt_xent", lambda a, b: nt_xent(a, b, 0.25)),
        ("info_nce", lambda a, b: info_nce(a, b, temperature=0.25)),
        ("vicreg", vicreg),
        (NTXent(0.7), lambda a, b: nt_xent(a, b, 0.7)),
        (keras.losses.MeanSquaredError(), lambda a, b: tf.reduce_mean((a - b) ** 2, -1)),
    ],
    ids=["nt_xent", "info_nce", "vicreg", "object", "keras"],
)
def test_any_model_takes_any_loss(loss: Any, reference: Callable) -> None:
    a, b = (tf.random.stateless_normal([6, 4], [i, 0]) for i in range(2))
    for model in (make(loss=loss, temperature=0.25), Concerto(NAMES, loss=loss, temperature=0.25)):
        again = type(model).from_config(model.get_config())
        for each in (model, again):
            found = tf.reduce_mean(each.contrastive_loss(a, b))
            np.testing.assert_allclose(found, tf.reduce_mean(reference(a, b)), rtol=1e-6)


def test_start_embeds_like_pca(make_batch: Callable) -> None:
    """Distances of a new model are those in the space of denoised principal components."""
    cells = make_batch(64)
    for backbone, head in (((12,), 4), ((16, 12), None), ((16, 14, 12), 4)):
        model = make(backbone=backbone, head=head, components=6)
        model.initialize([cells])
        [x], source = first_cells(lambda b, m=model: [m.dense(b)], [cells], 30)
        x = model.standardized_sample(x, source)
        z = model.encode(tf.constant(x)).numpy()
        _, s, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
        noise = noise_edge(x.var(0), 64) / (s[:6] ** 2 / 63)
        weight = np.sqrt(1 - 0.5 * np.minimum(1, noise))
        wanted = x @ v[:6].T * weight / np.sqrt(((s[:6] * weight) ** 2).mean() / 63)
        pairs = z[:, :12] if head else z[:, :6]
        np.testing.assert_allclose(
            pairs @ pairs.T, (wanted @ wanted.T) * (2 if head else 1), atol=0.1
        )
    plain = make(components=0)
    before = plain.backbone.steps[0].kernel.numpy()
    plain.initialize([cells])
    np.testing.assert_array_equal(before, plain.backbone.steps[0].kernel.numpy())


@pytest.mark.parametrize(("head", "held"), [(4, 12), (None, 6)])
def test_offset_of_the_embedding_is_in_the_readout_alone(
    make_batch: Callable, head: int | None, held: int
) -> None:
    cells = make_batch(64)
    model = make(backbone=(14,), head=head, components=6, readout_offset=0.25)
    model.initialize([cells])
    origin, spread = model.geometry
    np.testing.assert_array_equal(origin, 0.25 * (np.arange(14) < held))
    inside, _ = model.represent(cells)
    np.testing.assert_allclose(model(cells) - inside, np.tile(origin, (64, 1)), atol=1e-6)
    many = Ensemble([model, model.with_sources(model.sources)])
    np.testing.assert_allclose(many.geometry.origin, np.tile(origin, 2) / np.sqrt(2), atol=1e-6)
    model.calibrate([cells])
    seen = model(cells).numpy().std(0)[:held]
    np.testing.assert_allclose(spread[0, :held], seen, rtol=0.1)
    assert (spread[1, :held] < spread[0, :held]).all()
    np.testing.assert_allclose(many.geometry.spread, np.tile(spread, 2) / np.sqrt(2), atol=1e-6)


def test_scaled_inputs_change_the_steps_and_not_the_start(make_batch: Callable) -> None:
    cells, found = make_batch(64), []
    for scaled in (True, False):
        model = make(backbone=(16, 12), components=4, scale_inputs=scaled)
        model.initialize([cells])
        found.append((model.backbone.steps[0].kernel.numpy(), model(cells).numpy()))
    (kernel, z), (plain, plain_z) = found
    np.testing.assert_allclose(kernel, plain * np.sqrt(30), rtol=1e-4)
    np.testing.assert_allclose(z, plain_z, rtol=1e-4, atol=1e-5)


def test_gene_that_was_not_measured_stands_at_its_mean(make_batch: Callable) -> None:
    cells = make_batch(64)
    measured = np.arange(30) != 4
    without = {**cells, "values": np.where(cells["genes"] == 4, 0, cells["values"])}
    for standardize in (True, False):
        model = make(standardize=standardize, align_sources=False)
        model.fit_once = model.initialize([cells])
        for _ in range(3):
            model.view_inputs(cells)
        batch = {**without, "measured": measured}
        # The total is made up for the gene, and so the other values change by the same factor.
        x = model.prepare(model.dense(batch), batch).numpy()
        assert np.ptp(x[cells["source"] == 0, 4]) < 1e-6
        if standardize:
            # Where cells stand on average that were measured, and not at the mean of masked views.
            whole = model.prepare(model.dense(cells), cells).numpy()
            assert np.abs(x[:, 4] - whole[:, 4].mean()).max() < 0.3
        else:
            np.testing.assert_allclose(x[:, 4], model.dense(cells).numpy()[:, 4].mean(), rtol=1e-5)
        assert model.embed([without], {"rna": measured}).shape == (64, 8)


def test_sources_keep_their_statistics(data: tf.data.Dataset) -> None:
    model = make()
    model.compile(jit_compile=False)
    model.fit(data, verbose=0)
    other = model.with_sources(["b", "new"])
    np.testing.assert_array_equal(
        other.input_norm.moving_mean.numpy()[0], model.input_norm.moving_mean.numpy()[1]
    )
    np.testing.assert_array_equal(other.backbone.steps[0].kernel, model.backbone.steps[0].kernel)


def test_looking_leaves_no_trace(data: tf.data.Dataset) -> None:
    model = make(augmentation=Augmentation())
    model.compile(jit_compile=False)
    model.fit(data, verbose=0)
    counted = {id(w) for metric in model.metrics for w in metric.variables}  # Keras 2: weights too
    weights = [w for w in model.weights if id(w) not in counted]
    before = [w.numpy() for w in weights]
    model.evaluate(data, verbose=0)
    model.embed(data)
    for old, weight in zip(before, weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


def test_replicas_agree_with_one(strategy: tf.distribute.Strategy, data: tf.data.Dataset) -> None:
    def trained(scope: Any) -> np.ndarray:
        with scope:
            # Nothing random: every replica would draw its own.
            model = make(augmentation=None)
            model.compile("sgd", 0.1, jit_compile=False)
        model.fit(data, epochs=2, verbose=0)
        return model.embed(data)

    from contextlib import nullcontext

    np.testing.assert_allclose(trained(strategy.scope()), trained(nullcontext()), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be positive"),
        ({"loss": "triplet"}, "no loss 'triplet'; choose one of nt_xent, info_nce, vicreg"),
        ({"loss": "vicreg", "negatives": "source"}, "only are possible with loss nt_xent"),
        ({"backbone": (8, 0)}, "widths of an encoder must be positive"),
        ({"backbone": "mlp"}, "expected a Keras layer"),
        ({"components": -1}, "components must be 0 or more"),
        ({"input_epsilon": 0}, "input_epsilon is 0; it must be a number above 0"),
        ({"backbone": keras.layers.Reshape((3, 10))}, "one embedding per cell"),
    ],
)
def test_unsuitable_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_mixed_precision(data: tf.data.Dataset) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = make(augmentation=Augmentation())
        model.compile()
        loss = model.fit(data, epochs=2, verbose=0).history["loss"]
        assert np.isfinite(loss).all() and model.embed(data).dtype == np.float32
    finally:
        keras.mixed_precision.set_global_policy("float32")


def test_base_class_asks_for_views() -> None:
    with pytest.raises(NotImplementedError):
        ContrastiveModel(NAMES).views({})
    assert MLP([4, 2]).compute_output_shape((3, 9)) == (3, 2)
