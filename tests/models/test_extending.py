"""Methods, layers and losses of others: named, saved and loaded, or told what they lack."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import METHODS, ContrastiveSC, DenseModel, Ensemble, load_model, save_model
from concerto_tf.models import methods as methods_module
from concerto_tf.models.methods import load_installed, method, method_names, register_method
from concerto_tf.models.objects import anew, identity_of, is_automatic, plain

GENES = [f"G{i}" for i in range(12)]
SMALL = {"components": 0, "head": 4}


@keras.utils.register_keras_serializable(package="somebody")
class Predictor(DenseModel):
    """Layers without names, in an attribute and in a list, made once the encoder is."""

    def build_more(self) -> None:
        self.predictor = keras.layers.Dense(4)
        self.steps = [keras.layers.Dense(5), keras.layers.Dense(4)]
        self.predictor.build((None, 4))
        self.steps[0].build((None, 4))
        self.steps[1].build((None, 5))

    def project(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        z = self.predictor(super().project(z, training))
        return self.steps[1](self.steps[0](z))


@keras.utils.register_keras_serializable(package="somebody")
class Margin(keras.losses.Loss):
    """A loss with an argument."""

    def __init__(self, margin: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(self.margin - tf.reduce_sum(y_true * y_pred, -1))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "margin": self.margin}


def cells() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    genes = np.tile(np.arange(12, dtype=np.int32), (6, 1))
    return [{"genes": genes, "values": rng.poisson(3, (6, 12)).astype(np.float32)}]


def backbone() -> Any:
    return keras.Sequential([keras.layers.Dense(6), keras.layers.Dense(3)])


def test_layers_without_names_are_saved_and_loaded(tmp_path: Path) -> None:
    model = Predictor(GENES, backbone=backbone(), **SMALL)
    save_model(model, tmp_path / "model.keras")
    for _ in range(3):  # Keras goes on numbering
        keras.layers.Dense(2)
    again = load_model(tmp_path / "model.keras")
    for old, new in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(np.array(old), np.array(new))
    batch = tf.nest.map_structure(tf.constant, cells()[0])
    z = model(batch)
    np.testing.assert_array_equal(model.project(z), again.project(again(batch)))


def test_a_file_with_the_names_that_keras_chose_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote them."""
    from concerto_tf.models import weights

    models = [ContrastiveSC(GENES, backbone=(4, 3), seed=i) for i in range(2)]
    together, own = Ensemble(models), weights._layer_names
    with monkeypatch.context() as patched:
        patched.setattr(weights, "_layer_names", lambda model, _: own(model, True))
        save_model(together, tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.embed(cells()), together.embed(cells()))


class Forgetful(DenseModel):
    """One whose configuration lacks an argument."""

    def __init__(self, vocabulary: Any, *, sharpness: float = 1.0, **kwargs: Any) -> None:
        super().__init__(vocabulary, **kwargs)


class Twice(DenseModel):
    """One that cannot be made from its configuration."""

    def __init__(self, vocabulary: Any, **kwargs: Any) -> None:
        super().__init__(vocabulary, loss="vicreg", **kwargs)


class Other(DenseModel):
    """One whose configuration is of another model."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "backbone": [7]}


class Unknown(keras.layers.Layer):
    """A layer that nobody has registered."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs[:, :3]


def made(cls: type[DenseModel], registered: bool = True) -> DenseModel:
    if registered:
        keras.utils.register_keras_serializable(package="somebody")(cls)
    return cls(GENES, backbone=(3,), **SMALL)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: made(Forgetful), "Forgetful: get_config leaves out sharpness"),
        (lambda: made(Twice), "Twice: cannot be made from its get_config"),
        (lambda: made(Other), "Other: made again from its get_config it has other weights"),
        (
            lambda: DenseModel(GENES, backbone=Unknown(), **SMALL),
            r"DenseModel: Unknown of .*test_extending is not registered with Keras",
        ),
    ],
    ids=["argument", "constructor", "weights", "layer"],
)
def test_what_could_not_be_loaded_is_not_saved(model: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        save_model(model(), tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_registration_is_told(tmp_path: Path) -> None:
    class Nobody(DenseModel):
        pass

    with pytest.raises(InputError, match="Nobody of .* is not registered with Keras"):
        save_model(Nobody(GENES, backbone=(3,), **SMALL), tmp_path / "model.keras")


# --- methods by name --------------------------------------------------------------------------


@pytest.fixture
def clean() -> Iterator[None]:
    known = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(known)


def test_names_of_methods(clean: None) -> None:
    class Own(DenseModel):
        pass

    assert register_method("own")(Own) is Own
    assert method("own") is Own and "own" in method_names()
    register_method("own")(Own)  # a cell that is run again
    with pytest.raises(InputError, match="there is a method 'own' already"):
        register_method("own")(Predictor)
    with pytest.raises(InputError, match="is no subclass"):
        register_method("layer")(Unknown)  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"there is no method 'nothing'; choose one of concerto,"):
        method("nothing")


def test_entry_points(clean: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_method")
    module.Own = type("Own", (DenseModel,), {"__module__": "a_method"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_method", module)
    entries = [
        EntryPoint("installed", "a_method:Own", methods_module.GROUP),
        EntryPoint("broken", "no_such_module:Own", methods_module.GROUP),
    ]
    monkeypatch.setattr(methods_module, "_entries", lambda: entries)
    assert method_names()[-2:] == ["installed", "broken"]
    with pytest.raises(InputError, match="'broken' of the installed package no_such_module:Own"):
        method("broken")
    (wrong,) = load_installed()
    assert "no_such_module" in wrong
    assert keras.utils.get_registered_object("a_method>Own") is method("installed")


# --- objects as plain data --------------------------------------------------------------------


def test_names_that_keras_chose_count_for_nothing() -> None:
    one, other = backbone(), backbone()
    assert one.name != other.name and plain(one) == plain(other)
    inputs = [keras.Input([4]) for _ in range(2)]
    graphs = [keras.Model(x, keras.layers.Dense(2)(keras.layers.ReLU()(x))) for x in inputs]
    assert plain(graphs[0]) == plain(graphs[1])
    assert plain({"loss": Margin(2.0)}) != plain({"loss": Margin(3.0)})
    assert plain(keras.layers.Dense(2, name="mine")) != plain(keras.layers.Dense(2, name="yours"))
    models = [DenseModel(GENES, backbone=backbone(), **SMALL) for _ in range(2)]
    assert identity_of(models[0]) == identity_of(models[1])
    models[1].started.assign(1)
    assert identity_of(models[0]) != identity_of(models[1])


@pytest.mark.parametrize(
    ("name", "cls", "found"),
    [
        ("dense", "Dense", True),
        ("dense_12", "Dense", True),
        ("contrastive_sc_1", "ContrastiveSC", True),
        ("dense_head", "Dense", False),
        ("head", "Dense", False),
        (None, "Dense", False),
    ],
)
def test_which_names_keras_chose(name: Any, cls: str, found: bool) -> None:
    assert is_automatic(name, cls) is found


def test_objects_are_made_anew() -> None:
    loss = Margin(2.0)
    again = anew({"loss": loss, "widths": (4, 3), "list": [loss]})
    assert again["loss"] is not loss and again["loss"].margin == 2.0
    assert again["widths"] == [4, 3] and again["list"][0].margin == 2.0


def test_a_loss_that_forgets_its_argument_is_told() -> None:
    class Lost(keras.losses.Loss):
        def __init__(self, margin: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    with pytest.raises(InputError, match=r"Lost: get_config leaves out margin"):
        plain(Lost(2.0))
