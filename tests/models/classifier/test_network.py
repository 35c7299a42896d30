"""Fine-tuning and rejection against their equations, and a classifier as a Keras model."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import load_model, save_model
from concerto_tf.models.classifier import Classifier, calibrate, learn_types

pytestmark = pytest.mark.stack

CLASSES = ("B", "NK", "T")
STILL = {"mask_rate": 0.0, "dropout": 0.0}


@pytest.fixture(scope="session")
def make_labelled(make_batch: Callable) -> Callable[..., dict[str, np.ndarray]]:
    """`make_batch` with the kind of each cell as its label."""

    def make(n: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
        batch = make_batch(n, seed=seed)
        rng = np.random.default_rng(seed)
        batch["label/type"] = rng.integers(0, 3, n)  # drawn first there, too
        return batch

    return make


def classifier(make_model: Callable, *, seed: int = 0, **arguments: Any) -> Classifier:
    of_encoder = {key: arguments.pop(key) for key in STILL if key in arguments}
    return Classifier(
        make_model(seed=seed, **of_encoder), CLASSES, label_key="type", seed=seed, **arguments
    )


def repeated(batch: dict[str, np.ndarray], size: int = 32) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(batch).batch(size, drop_remainder=True).repeat()


@pytest.fixture(scope="module")
def trained(make_model: Callable, make_labelled: Callable) -> Classifier:
    model = classifier(make_model)
    model.compile(learning_rate=0.02, steps=60, jit_compile=False)
    model.fit(repeated(make_labelled(128)), steps_per_epoch=20, epochs=3, verbose=0)
    learn_types(model, [make_labelled(128)])
    calibrate(model, [make_labelled(99, seed=5)])
    return model


# --- equations ----------------------------------------------------------------------------------


@pytest.fixture
def float64() -> Iterator[None]:
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float64")
    yield
    keras.mixed_precision.set_global_policy(policy)


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("with_target", [False, True])
def test_loss_is_equations_12_and_13(
    make_model: Callable, make_labelled: Callable, float64: None, with_target: bool
) -> None:
    model = classifier(make_model, **STILL, consistency=0.7)
    rng = np.random.default_rng(0)
    for layer in (model.head.teacher, model.head.student):
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    model.balance([40, 10, 90])
    weights = np.sqrt(np.mean([40, 10, 90]) / np.array([40, 10, 90])).astype("float32")
    batch, target = make_labelled(24), make_labelled(20, seed=3)
    batch["label/type"][::4] = -1
    label = batch["label/type"]
    assert set(label) == {-1, 0, 1, 2}

    def log_p(cells: dict) -> list[np.ndarray]:
        layers = (model.head.teacher, model.head.student)
        return [
            log_softmax(np.maximum(z.numpy(), 0) @ np.array(layer.kernel) + np.array(layer.bias))
            for z, layer in zip(model.encoder.represent(cells, training=True), layers, strict=True)
        ]

    known = np.flatnonzero(label >= 0)
    of_cells = [-(p[known, label[known]]) for p in log_p(batch)]
    weight = weights[label[known]].astype("float64")
    want = sum((weight * e).sum() for e in of_cells) / weight.sum()
    measured = np.arange(len(model.encoder.modality_inputs[0].vocabulary)) % 3 > 0
    if with_target:
        ours, theirs = log_p({**target, "measured": measured})
        assert not np.allclose(ours, log_p(target)[0])
        want += 0.7 * -(np.exp(ours) * theirs).sum(1).mean()
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    if with_target:  # which were not measured for all genes
        model.see_target = lambda cells: {**cells, "measured": measured}
    data = (batch, target) if with_target else batch
    logs = model.train_step(data)
    # Metrics are float32; what was not measured stands at a moving mean, which each look moves.
    assert float(logs["loss"]) == pytest.approx(want, abs=2e-4 if with_target else 1e-6)
    told = (log_p(batch)[0] + log_p(batch)[1]).argmax(1)
    assert float(logs["accuracy"]) == pytest.approx(np.mean(told[known] == label[known]), abs=1e-6)


def test_target_teaches_the_student_and_not_the_teacher(
    make_model: Callable, make_labelled: Callable
) -> None:
    """Without any label all that is learned comes from equation 13."""
    model, target = classifier(make_model), make_labelled(32, seed=3)
    batch = {**make_labelled(32), "label/type": np.full(32, -1)}
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    names = ("teacher", "student")
    kernels = [getattr(model.head, name).kernel for name in names]
    dense = [
        model.encoder.networks.teacher_dense.kernel,
        model.encoder.networks.student_dense.kernel,
    ]
    before = [np.array(w) for w in kernels + dense]
    model.train_step(batch)
    assert all(np.array_equal(np.array(w), b) for w, b in zip(kernels + dense, before, strict=True))
    model.train_step((batch, target))
    changed = [
        not np.array_equal(np.array(w), b) for w, b in zip(kernels + dense, before, strict=True)
    ]
    assert changed == [False, True, False, True]


def test_cells_of_no_source_and_no_label_leave_no_trace(
    make_model: Callable, make_labelled: Callable
) -> None:
    def after(batch: dict) -> list[np.ndarray]:
        model = classifier(make_model, **STILL)
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        model.train_step(batch)
        return model.get_weights()

    batch, other = make_labelled(32), make_labelled(32, seed=8)
    held_out = np.arange(32) % 4 == 0
    mixed = {}
    for key, value in batch.items():
        mixed[key] = value.copy()
        if key == "values":
            width = min(value.shape[1], other[key].shape[1])
            mixed[key][held_out, :width] = other[key][held_out, :width]
    for cells in (batch, mixed):
        cells.pop("total")
        cells["source"] = np.where(held_out, -1, cells["source"])
        cells["label/type"] = np.where(held_out, -1, cells["label/type"])
    assert not np.array_equal(batch["values"], mixed["values"])
    for a, b in zip(after(batch), after(mixed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# --- as a Keras model ---------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_learns_and_leaves_the_given_encoder_heads(
    make_model: Callable, make_labelled: Callable, jit_compile: bool
) -> None:
    model = classifier(make_model)
    head = model.encoder.networks.teacher_head.kernel.numpy()
    model.compile(learning_rate=0.02, steps=60, jit_compile=jit_compile)
    history = model.fit(
        repeated(make_labelled(128)), steps_per_epoch=20, epochs=3, verbose=0
    ).history
    assert set(history) == {"loss", "accuracy", "consistency"}
    assert history["loss"][-1] < history["loss"][0] / 2 and history["accuracy"][-1] > 0.9
    np.testing.assert_array_equal(model.encoder.networks.teacher_head.kernel.numpy(), head)
    test = make_labelled(80, seed=9)
    found = model.annotate([test])
    assert np.mean(found["code"] == test["label/type"]) > 0.9
    scores = model.evaluate(tf.data.Dataset.from_tensors(test), verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx(np.mean(found["code"] == test["label/type"]))


def test_half_precision_learns(make_model: Callable, make_labelled: Callable) -> None:
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = classifier(make_model)
        model.compile(learning_rate=0.02, steps=60)
        model.fit(repeated(make_labelled(128)), steps_per_epoch=20, epochs=3, verbose=0)
        test = make_labelled(80, seed=9)
        learn_types(model, [test])
        calibrate(model, [test])
        found = model.annotate([test])
    finally:
        keras.mixed_precision.set_global_policy(policy)
    assert np.mean(found["code"] == test["label/type"]) > 0.9
    assert all(value.dtype in (np.float32, np.int32) for value in found.values())


def test_a_novelty_below_alpha_is_unknown_unless_too_little_is_known(trained: Classifier) -> None:
    near = np.array([0.0489, 0.049, 0.5])  # 99 cells were held out
    assert trained.rejected(near, 0.049).tolist() == [True, False, False]
    assert not trained.rejected(np.zeros(2), 0.009).any()


def test_cells_come_back_in_the_order_of_rows(trained: Classifier, make_labelled: Callable) -> None:
    batch = make_labelled(40, seed=2)
    want = trained.annotate([batch])
    shuffled = [
        {**{k: v[part] for k, v in batch.items()}, "row": np.where(part == 3, -1, part)}
        for part in np.split(np.random.default_rng(0).permutation(40), 2)
    ]
    got = trained.annotate(shuffled)
    for key, value in want.items():
        np.testing.assert_allclose(got[key], np.delete(value, 3, axis=0), atol=1e-5)
    assert set(want) == {
        "probabilities",
        "probability",
        "code",
        "scores",
        "score",
        "novelty",
        "embedding",
    }
    np.testing.assert_allclose(want["probabilities"].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(want["embedding"], trained.encoder.embed([batch]), atol=1e-5)
    np.testing.assert_allclose(
        trained.predict(repeated(batch, 40).take(1), verbose=0), want["probabilities"], atol=1e-5
    )


def test_a_saved_classifier_is_the_classifier(
    trained: Classifier, make_labelled: Callable, tmp_path: Path
) -> None:
    save_model(trained, tmp_path / "model.keras")
    again, cells = load_model(tmp_path / "model.keras"), [make_labelled(20, seed=4)]
    assert isinstance(again, Classifier)
    assert again.get_config() == trained.get_config()
    for key, value in trained.annotate(cells).items():
        np.testing.assert_array_equal(again.annotate(cells)[key], value)
    np.testing.assert_array_equal(again.encoder.embed(cells), trained.encoder.embed(cells))
    for name in ("classes", "label_key"):
        assert getattr(again, name) == getattr(trained, name)
    assert again.encoder.get_config() == trained.encoder.get_config()


def test_every_argument_comes_back(make_model: Callable, tmp_path: Path) -> None:
    changed = {
        "consistency": 0.5,
        "calibration": (-1.5, -0.1),
        "directions": (-3.5, -0.2),
        "together": (-2.5, -0.5),
        "seed": 3,
    }
    model = Classifier(make_model(), ["x", "y"], label_key="other", **changed)
    save_model(model, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    for name, value in {**changed, "label_key": "other", "classes": ("x", "y")}.items():
        assert getattr(again, name) == value, name


def test_a_file_with_another_encoder_is_refused(trained: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    save_model(trained, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for method in ("RandomMask", "Nothing", "Classifier", "mine>Nothing"):
        config = json.loads(members["config.json"])
        config["config"]["method"] = method if ">" in method else f"concerto_tf>{method}"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**members, "config.json": json.dumps(config)}.items():
                archive.writestr(name, content)
        with pytest.raises(
            InputError, match="does not load|none of concerto_tf|newer than this|import"
        ):
            load_model(path)


@pytest.mark.parametrize("classes", [[], ["B"], ["B", "B"]])
def test_classes_are_two_or_more(make_model: Callable, classes: list[str]) -> None:
    with pytest.raises(InputError, match="two classes or more"):
        Classifier(make_model(), classes)
