"""Training with plain Keras: what every contrastive model gets from its base."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.layers.source_normalization import pool_moments
from concerto_tf.models import Concerto
from concerto_tf.records.batch import Minibatch

pytestmark = pytest.mark.stack

NAMES = {"loss", "alignment", "uniformity", "effective_rank"}


@pytest.fixture(scope="module")
def data(make_batch: Callable) -> tf.data.Dataset:
    """Two batches that somebody made without this package."""
    cells = make_batch(64)
    keys = ("genes", "values", "source")
    return tf.data.Dataset.from_tensor_slices({key: cells[key] for key in keys}).batch(32)


def compiled(make_model: Callable, **arguments: Any) -> Concerto:
    model = make_model(**arguments)
    model.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    return model


@pytest.fixture(scope="module")
def trained(make_model: Callable, data: tf.data.Dataset) -> tuple[Concerto, dict]:
    model = compiled(make_model)
    return model, model.fit(data, epochs=15, verbose=0).history


def test_plain_fit_on_a_dict_dataset_learns(trained: tuple) -> None:
    _, history = trained
    assert set(history) == NAMES
    assert history["loss"][-1] < history["loss"][0] - 0.3
    assert 0 <= min(history["alignment"]) and max(history["uniformity"]) <= 0
    assert 1 <= min(history["effective_rank"]) <= max(history["effective_rank"]) <= 6


def test_logged_loss_is_the_loss(make_model: Callable, data: tf.data.Dataset) -> None:
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)  # weights stay as they are
    history = model.fit(data, epochs=1, verbose=0).history
    again, losses, ranks = make_model(), [], []
    for batch in data:
        views = again.views(batch)
        losses.append(tf.reduce_mean(again.contrastive_loss(*views)))
        ranks.append(model.diagnostics[2].measure(*views))
    assert history["loss"][0] == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert history["effective_rank"][0] == pytest.approx(float(np.mean(ranks)), rel=1e-4)
    assert history["loss"][0] > 1


def test_xla_changes_nothing_but_the_speed(make_model: Callable, data: tf.data.Dataset) -> None:
    histories, embeddings = [], []
    for jit_compile in (False, True):
        model = make_model()
        model.compile(keras.optimizers.SGD(0.01), jit_compile=jit_compile)
        histories.append(model.fit(data, epochs=2, verbose=0).history)
        embeddings.append(model.embed(data))
    for name in NAMES:
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=1e-4)
    np.testing.assert_allclose(embeddings[1], embeddings[0], atol=1e-4)


@pytest.mark.xla
def test_xla_is_on_with_one_replica_unless_said_otherwise(make_model: Callable) -> None:
    model = make_model()
    model.compile()
    assert model.jit_compile or getattr(model, "_jit_compile", False)
    model.compile(jit_compile=False)
    assert not (model.jit_compile or getattr(model, "_jit_compile", False))


def test_evaluate_gives_the_loss_and_leaves_no_trace(trained: tuple, data: tf.data.Dataset) -> None:
    model, history = trained
    before = [np.array(w) for w in model.trainable_weights] + [model.embed(data)]
    draws = int(model.networks.branches[0].student_mask.draws)
    first = model.evaluate(data, verbose=0, return_dict=True)
    again = model.evaluate(data, verbose=0, return_dict=True)
    assert set(first) == NAMES and first == again
    assert first["loss"] == pytest.approx(history["loss"][-1], abs=0.5)
    after = [np.array(w) for w in model.trainable_weights] + [model.embed(data)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(model.networks.branches[0].student_mask.draws) == draws


def test_predict_is_embed(trained: tuple, data: tf.data.Dataset) -> None:
    model, _ = trained
    np.testing.assert_allclose(model.predict(data, verbose=0), model.embed(data), atol=1e-5)


def test_barcodes_and_targets_in_the_batches_do_no_harm(
    make_model: Callable, data: tf.data.Dataset
) -> None:
    def dressed(batch: dict) -> tuple:
        batch["cell"] = tf.strings.as_string(batch["source"])
        return batch, batch["source"]

    model = make_model()
    model.compile(keras.optimizers.SGD(0.01), jit_compile=True)  # XLA takes no text
    given = data.map(dressed)
    assert set(model.fit(given, verbose=0).history) == NAMES
    assert model.evaluate(given, verbose=0, return_dict=True)["loss"] > 0
    np.testing.assert_allclose(model.predict(given, verbose=0), model.embed(data), atol=1e-5)


def test_embeddings_come_in_the_order_of_rows_without_padding(
    trained: tuple, make_batch: Callable
) -> None:
    model, _ = trained
    cells = make_batch(30)
    want = model(cells).numpy()
    order = np.random.default_rng(0).permutation(30)
    mixed = {key: value[order] for key, value in cells.items()}
    mixed["row"][order >= 28] = -1  # padding of a last batch
    batches = tf.data.Dataset.from_tensor_slices(mixed).batch(10)
    np.testing.assert_allclose(model.embed(batches), want[:28], atol=1e-5)
    assert model.embed([]).shape == (0, 8)


def test_embed_takes_batches_of_arrays(trained: tuple, make_batch: Callable) -> None:
    model, _ = trained
    cells = make_batch(12)
    del cells["row"]
    np.testing.assert_allclose(model.embed([cells]), model(cells), atol=1e-5)


# --- precision ------------------------------------------------------------------------------


@pytest.fixture
def half_precision() -> Iterator[None]:
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy(policy)


@pytest.mark.xla
def test_half_precision_trains(
    half_precision: None, make_model: Callable, data: tf.data.Dataset
) -> None:
    model = make_model(components=3)
    model.compile(keras.optimizers.Adam(0.01), jit_compile=True)
    model.initialize(data)
    history = model.fit(data, epochs=15, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] - 0.1
    assert all(tf.as_dtype(w.dtype) == tf.float32 for w in model.trainable_weights)
    z = model.embed(data)
    assert z.dtype == np.float32 and np.isfinite(z).all()


def test_half_precision_sees_whole_counts(
    half_precision: None, make_model: Callable, make_batch: Callable
) -> None:
    cells = make_batch(8)
    cells["values"] *= 1001  # bfloat16 has 8 bits; the embedding must not depend on the scale
    cells["total"] *= 1001
    model, seen = make_model(), []
    [modality] = model.modality_inputs
    look = modality.cells
    modality.cells = lambda batch: (seen.append(batch.modality("rna").values), look(batch))[1]
    model(cells)
    np.testing.assert_array_equal(np.asarray(seen[0], "float64"), cells["values"])


# --- Keras' callbacks -----------------------------------------------------------------------


def test_keras_callbacks_work(make_model: Callable, data: tf.data.Dataset, tmp_path: Path) -> None:
    model = compiled(make_model)
    callbacks = [
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.TensorBoard(str(tmp_path / "board"), write_graph=False),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "best.keras"), monitor="loss"),
        keras.callbacks.EarlyStopping("loss", min_delta=1e6, patience=1),
    ]
    history = model.fit(
        data, epochs=9, validation_data=data, callbacks=callbacks, verbose=0
    ).history
    assert len(history["loss"]) in (2, 3)  # nothing gains a million: the first, and its patience
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx(history["loss"])
    assert set(rows[0]) == {"epoch", *NAMES, *(f"val_{name}" for name in NAMES)}
    written = list((tmp_path / "board").rglob("events.*"))
    assert written and all(file.stat().st_size > 0 for file in written)
    saved = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(
        np.array(saved.networks.student_dense.kernel), np.array(model.networks.student_dense.kernel)
    )


# --- statistics of sources ------------------------------------------------------------------


def layer_inputs(model: Concerto, cells: dict) -> list[tuple[Any, np.ndarray]]:
    """The source-aware layers and what each is given of whole cells."""
    [branch], own = model.networks.branches, model.modality_inputs[0].cells(Minibatch(cells))
    return [
        (model.networks.teacher_norm, branch.attended(own).numpy()),
        (model.networks.branches[0].student_norm, branch.spread(own).numpy()),
    ]


def test_calibrated_statistics_are_those_of_the_cells(
    make_model: Callable, data: tf.data.Dataset, make_batch: Callable
) -> None:
    model, cells = make_model(mask_rate=0.0), make_batch(64)
    for layer, _ in layer_inputs(model, cells):
        layer.momentum = 1.0  # no cell is forgotten
    model.calibrate(data)
    for layer, x in layer_inputs(model, cells):
        np.testing.assert_array_equal(layer.moving_count, np.bincount(cells["source"]))
        for code in (0, 1):
            own = x[cells["source"] == code]
            scale = np.abs(own).max()
            np.testing.assert_allclose(
                layer.moving_mean[code], own.mean(0), rtol=1e-4, atol=1e-5 * scale
            )
            np.testing.assert_allclose(
                layer.moving_variance[code], own.var(0), rtol=1e-4, atol=1e-5 * scale**2
            )


def test_calibration_sees_cells_as_training_does(
    make_model: Callable, data: tf.data.Dataset, make_batch: Callable
) -> None:
    model, cells = make_model(mask_rate=0.5), make_batch(64)
    draws = [layer.draws for layer in model.layers if hasattr(layer, "draws")]
    before = [int(draw) for draw in draws]
    (teacher, _), (student, x) = layer_inputs(model, cells)
    teacher.momentum = student.momentum = 1.0  # no cell is forgotten
    model.calibrate(data.repeat(30))
    assert [int(draw) for draw in draws] == before  # a training that goes on is not disturbed
    first = cells["source"] == 0
    # The student's genes are hidden behind the statistics, which are those of the whole cells.
    np.testing.assert_allclose(student.moving_variance[0], x[first].var(0), rtol=1e-3, atol=1e-5)
    # The teacher's are hidden before, and its statistics those of such views.
    [branch], own = model.networks.branches, model.modality_inputs[0].cells(Minibatch(cells))
    views = np.concatenate([branch.attended(own, training=True)[first] for _ in range(300)])
    found = np.array(teacher.moving_variance)[0]
    np.testing.assert_allclose(found, views.var(0), rtol=0.1)
    assert np.median(found / branch.attended(own).numpy()[first].var(0)) > 1.2


def test_calibration_leaves_padding_out_and_keeps_what_it_does_not_see(
    make_model: Callable, make_batch: Callable
) -> None:
    model, cells = make_model(mask_rate=0.0), make_batch(40)
    model.calibrate([cells])
    second = np.array(model.networks.branches[0].student_norm.moving_mean)[1]
    only = {key: value[cells["source"] == 0] for key, value in cells.items()}
    only["row"][5:] = only["source"][5:] = -1
    model.calibrate([only])
    assert np.array(model.networks.branches[0].student_norm.moving_count).tolist() == [
        5,
        (cells["source"] == 1).sum(),
    ]
    np.testing.assert_array_equal(
        np.array(model.networks.branches[0].student_norm.moving_mean)[1], second
    )
    x = layer_inputs(model, {key: value[:5] for key, value in only.items()})[1][1]
    np.testing.assert_allclose(
        model.networks.branches[0].student_norm.moving_mean[0], x.mean(0), atol=1e-5
    )


def test_other_sources_keep_the_weights_and_their_own_statistics(
    trained: tuple, make_batch: Callable
) -> None:
    model, _ = trained
    other = model.with_sources(["new", "b"])
    assert other.sources == ("new", "b") and model.sources == ("a", "b")
    cells = make_batch(20)
    cells["source"][:] = 1
    np.testing.assert_array_equal(other(cells), model(cells))
    # A source that nobody has seen begins with what a cell of no known source is given.
    strange = {**cells, "source": np.full(20, -1, np.int32)}
    new = {**cells, "source": np.zeros(20, np.int32)}
    np.testing.assert_allclose(other(new), model(strange), atol=1e-5)
    layer, old = other.networks.branches[0].student_norm, model.networks.branches[0].student_norm
    np.testing.assert_allclose(layer.moving_mean[0], pool_moments(old.moving_moments)[0])
    assert np.array(layer.moving_count).tolist() == [4, float(old.moving_count[1])]


def test_other_sources_of_an_untrained_model(make_model: Callable, make_batch: Callable) -> None:
    model = make_model().with_sources(["c"])
    assert np.array(model.networks.branches[0].student_norm.moving_count).tolist() == [0]
    assert np.isfinite(model({**make_batch(5), "source": np.zeros(5, np.int32)})).all()
