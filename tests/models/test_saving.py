"""Models as files: exact, complete, and read with care."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf import __version__
from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, Ensemble, load_model, save_model
from concerto_tf.models.base import SAVED_FORMAT
from concerto_tf.models.saving import read_config

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def data(make_batch: Callable) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(make_batch(64)).batch(32).repeat()


@pytest.fixture(scope="module")
def trained(make_model: Callable, data: tf.data.Dataset) -> Concerto:
    model = make_model(
        symbols=[f"symbol {i}" for i in range(30)], genes=range(1, 29), readout="both", seed=4
    )
    model.compile("adam", 0.01, steps=20, jit_compile=False)
    model.fit(data, steps_per_epoch=2, epochs=2, verbose=0)
    return model


@pytest.fixture
def saved(trained: Concerto, tmp_path: Path) -> Path:
    save_model(trained, tmp_path / "model.keras")
    return tmp_path / "model.keras"


def rewrite(path: Path, change: Callable[[dict], Any]) -> Path:
    """The same file with another configuration."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_saved_model_is_the_model(trained: Concerto, saved: Path, make_batch: Callable) -> None:
    again = load_model(saved)
    cells = [make_batch(20)]
    np.testing.assert_array_equal(again.embed(cells), trained.embed(cells))
    assert again.get_config() == trained.get_config()
    for name in ("vocabulary", "sources", "readout", "temperature", "seed"):
        assert getattr(again, name) == getattr(trained, name)
    # Masks go on where they were, too.
    masks = [model.networks.branches[0].student_mask for model in (again, trained)]
    assert int(masks[0].draws) == int(masks[1].draws) > 0


def test_every_argument_comes_back(make_model: Callable, tmp_path: Path) -> None:
    changed = {
        "units": 5,
        "attention_units": 3,
        "hidden_units": 6,
        "head_units": None,
        "mask_rate": 0.25,
        "dropout": 0.125,
        "value_clip": None,
        "input_epsilon": 0.25,
        "scale_genes": False,
        "scale_inputs": False,
        "components": 2,
        "denoise": 0.25,
        "align_sources": False,
        "readout": "both",
        "readout_offset": 0.25,
        "readout_activation": "relu",
        "temperature": 0.25,
        "target_sum": None,
        "seed": 7,
        "sources": ("x", "y", "z"),
        "genes": (0, 2),
        "modality": "gene",
        "modality_dropout": 0.5,
        "negatives": "source",
        "modalities": {"protein": {"vocabulary": ["CD3", "CD19"], "target_sum": None}},
    }
    standard = Concerto([f"G{i}" for i in range(30)])
    model = make_model(**changed)
    config = model.get_config()
    elsewhere = {"loss"}  # tests/models/dense/test_network.py
    given = {"concerto_tf", "saved_format", "name", "vocabulary", "symbols"}
    for name in set(config) - given - elsewhere:
        assert config[name] != standard.get_config()[name], f"{name} is not changed by this test"
    save_model(model, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    for name, value in config.items():
        assert again.get_config()[name] == value, name


def test_file_is_stamped_and_holds_what_is_needed(saved: Path) -> None:
    config = read_config(saved)["config"]
    assert (config["concerto_tf"], config["saved_format"]) == (__version__, SAVED_FORMAT)
    assert config["vocabulary"][:2] == ["G0", "G1"] and config["sources"] == ["a", "b"]


def test_model_is_whole_or_not_there(
    trained: Concerto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, path: Any, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Concerto, "save", broken)
    with pytest.raises(OSError, match="No space left"):
        save_model(trained, tmp_path / "model.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_goes_on_identically(
    make_model: Callable, data: tf.data.Dataset, tmp_path: Path, optimizer: str
) -> None:
    def model() -> Concerto:
        made = make_model(seed=2)
        made.compile(optimizer, 0.05, steps=8, jit_compile=False)
        return made

    options = {"steps_per_epoch": 2, "verbose": 0}
    straight, first = model(), model()
    straight.fit(data, epochs=4, **options)
    first.fit(data, epochs=2, **options)
    first.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert int(np.array(again.optimizer.iterations)) == 4
    again.fit(data, initial_epoch=2, epochs=4, **options)
    for want, got in zip(straight.trainable_weights, again.trainable_weights, strict=True):
        np.testing.assert_array_equal(np.array(got), np.array(want))


def test_other_sources_survive_saving(
    trained: Concerto, tmp_path: Path, make_batch: Callable
) -> None:
    other = trained.with_sources(["b", "new"])
    save_model(other, tmp_path / "m.keras")
    again, cells = load_model(tmp_path / "m.keras"), [make_batch(10)]
    assert again.sources == ("b", "new")
    np.testing.assert_array_equal(again.embed(cells), other.embed(cells))


@pytest.mark.parametrize("names", [("one", "two"), ("same", "same")])
def test_weights_of_an_ensemble_go_by_name(
    make_model: Callable, make_batch: Callable, names: tuple[str, str]
) -> None:
    members = [make_model(seed=i, name=name) for i, name in enumerate(names)]
    model, store = Ensemble(members), {}
    model.save_own_variables(store)
    again = Ensemble([make_model(seed=5, name=name) for name in names])
    again.load_own_variables(store)
    np.testing.assert_array_equal(again.embed([make_batch(9)]), model.embed([make_batch(9)]))
    with pytest.raises(ValueError, match="there are no weights"):
        again.load_own_variables({k: v for k, v in store.items() if "kernel" not in k})


# --- what is not one of our models ------------------------------------------------------------


def test_newer_files_are_refused(saved: Path) -> None:
    def newer(config: dict) -> None:
        config["config"] |= {"saved_format": SAVED_FORMAT + 1, "concerto_tf": "9.9"}

    with pytest.raises(InputError, match=r"saved by concerto_tf 9\.9, which is newer.*pip install"):
        load_model(rewrite(saved, newer))


def test_a_method_of_a_newer_version_is_refused(saved: Path) -> None:
    def method(config: dict) -> None:
        config.update(class_name="Sonata", registered_name="concerto_tf>Sonata")

    with pytest.raises(InputError, match="newer than this"):
        load_model(rewrite(saved, method))


def test_other_keras_models_are_refused_before_they_are_built(tmp_path: Path) -> None:
    inputs = keras.Input([2])
    outputs = keras.layers.Lambda(lambda x: x * 2)(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="a Keras model, but none of concerto_tf"):
        load_model(tmp_path / "other.keras")


def lambda_config() -> dict:
    code = keras.layers.Lambda(lambda x: x * 2)
    return keras.layers.serialize(code)


FOREIGN: dict[str, Callable[[dict], Any]] = {
    "class of another module": lambda c: c.update(
        module="subprocess", class_name="Popen", registered_name="concerto_tf>Popen"
    ),
    "class by path alone": lambda c: c.update(
        module="subprocess", class_name="Popen", registered_name=None
    ),
    "argument is a Lambda": lambda c: c["config"].update(readout=lambda_config()),
    "further argument is a Lambda": lambda c: c["config"].update(extra=lambda_config()),
    "a layer of ours": lambda c: c.update(
        class_name="RandomMask", registered_name="concerto_tf>RandomMask"
    ),
    "argument of another type": lambda c: c["config"].update(units=[1, 2]),
    "no configuration": lambda c: c.update(config=None),
    "a format that is no number": lambda c: c["config"].update(saved_format="new"),
    "a vocabulary of another length": lambda c: c["config"].update(vocabulary=["A"], genes=None),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_foreign_is_executed(
    saved: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("executed")

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr(keras.layers.Lambda, "call", never)
    with pytest.raises(InputError, match=str(saved)):
        load_model(rewrite(saved, FOREIGN[what]))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_files_cut_short_are_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="not a saved model, or cut short"):
        load_model(saved)


@pytest.mark.parametrize("member", ["model.weights.h5", "config.json"])
def test_damaged_files_are_refused(saved: Path, member: str) -> None:
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        info = archive.getinfo(member)
    middle = info.header_offset + 60 + info.compress_size // 2
    content[middle : middle + 16] = bytes(b ^ 0xFF for b in content[middle : middle + 16])
    saved.write_bytes(content)
    with pytest.raises(InputError, match=f"{saved}: "):
        load_model(saved)


def test_a_file_without_weights_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        config = archive.read("config.json")
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("config.json", config)
    with pytest.raises(InputError, match=f"{saved}: .*does not load"):
        load_model(saved)


def test_what_is_not_there_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such model"):
        load_model(tmp_path / "none.keras")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: holds no model\.keras"):
        load_model(tmp_path / "folder")
    assert load_model(saved.parent).sources == ("a", "b")  # a folder means the model in it
