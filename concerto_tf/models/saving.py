"""Models as files: one `.keras` with vocabulary, configuration and weights, version-stamped."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._calls import check_file
from concerto_tf._files import atomic, sha256
from concerto_tf._keras import keras
from concerto_tf._paths import as_path, local_copy
from concerto_tf.errors import Argument, InputError, first_line
from concerto_tf.jobs import read_note
from concerto_tf.models.base import SAVED_FORMAT, ContrastiveModel
from concerto_tf.models.batch_model import BatchModel
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.encoder import Encoder
from concerto_tf.models.methods import load_installed
from concerto_tf.models.modality import described
from concerto_tf.models.objects import check_config, is_ours, made_again, missing_class
from concerto_tf.models.shipped import SHIPPED, shipped
from concerto_tf.models.weights import lasting_weights

FILE_NAME = "model.keras"
#: What says how the model in its folder was trained, and what its checksum was.
SUMMARY = "training.json"

_log = logging.getLogger("concerto_tf")
_MOST_CONFIG_BYTES = 2**28
_NO_SIZES = ("seed", "shared_object_id", "target_sum")

#: What reading the configuration raises where there is none.
_NO_MODEL = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
)


def save_model(model: ContrastiveModel, path: str | Path) -> None:
    """Saves a model for use, without the state of its optimizer, whole or not at all.

    ``model.save(path)`` of Keras works too and keeps the optimizer. A model with anything of
    another package in it is loaded again before the file takes its name.

    Args:
        model: The model.
        path: The `.keras` file to write.

    Raises:
        InputError: The file could not be loaded again: a class is not registered with Keras, or
            does not say what it is made from.

    Example:

    >>> import tempfile
    >>> from concerto_tf.models import Concerto, load_model, save_model
    >>> path = tempfile.mkdtemp() + "/model.keras"
    >>> save_model(Concerto(["CD3E", "MS4A1"]), path)
    >>> load_model(path).vocabulary
    ('CD3E', 'MS4A1')
    """
    ours = _is_ours(model)
    if not ours:
        _check_described(model)
    copy = copied(model)
    with atomic(path) as temporary:
        copy.save(temporary)
        if not ours:
            _check_loads(temporary, copy)


def copied(model: ContrastiveModel) -> ContrastiveModel:
    """A new model with the configuration and the weights of another."""
    copy = type(model).from_config(model.get_config())
    # Not the state of metrics: of several processes all would have to ask for it.
    for new, old in zip(lasting_weights(copy), lasting_weights(model), strict=True):
        new.assign(np.array(tf.convert_to_tensor(old)))
    if isinstance(model, Classifier):
        copy.exemplars = model.exemplars
    return copy


def check_saving(model: ContrastiveModel) -> None:
    """Raises InputError if a model could not be saved or loaded again; before it is trained."""
    if not _is_ours(model):
        with TemporaryDirectory(prefix="concerto-") as folder:
            save_model(model, Path(folder) / FILE_NAME)


def _is_ours(model: Any) -> bool:
    """Whether all of a model comes from this package, whose classes are known to be saved whole."""
    return type(model).__module__.startswith("concerto_tf.") and is_ours(model.get_config())


def _check_described(model: Any) -> None:
    """Raises InputError if a model is not made again by what it says of itself."""
    name, config = type(model).__name__, model.get_config()
    check_config(name, model)
    own = {"registered_name": keras.utils.get_registered_name(type(model))}
    missing = missing_class(
        {**own, "class_name": name, "module": type(model).__module__, "config": config}
    )
    if missing is not None:
        raise InputError(
            f"{name}: {missing[0]} of {missing[1]} is not registered with Keras, so that it could "
            "not be loaded; put @tf.keras.utils.register_keras_serializable(package=...) above it"
        )
    if _shapes(made_again(name, model, config)) != _shapes(model):
        raise InputError(
            f"{name}: made again from its get_config it has other weights; make all of them in its "
            "constructor, of sizes that get_config tells"
        )


def _shapes(model: Any) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in lasting_weights(model)]


def _check_loads(path: Path, model: Any) -> None:
    """Raises InputError if a file does not hold the model that was saved in it."""
    name = type(model).__name__
    try:
        again = load_model(path)
    except InputError as error:
        raise InputError(
            f"{name}: saved, it does not load again ({first_line(error.__cause__ or error)}); see "
            "that get_config describes it, and that its layers are made in its constructor"
        ) from error
    for old, new in zip(lasting_weights(model), lasting_weights(again), strict=True):
        if not np.array_equal(tf.convert_to_tensor(old), tf.convert_to_tensor(new)):
            raise InputError(
                f"{name}: saved and loaded, its weights {old.name!r} are others; see that its "
                "layers are attributes, each with a name of its own"
            )


def model_file(path: str | Path) -> Path:
    """The `.keras` file of a path: the file itself, or the one in the folder of a training.

    A name of `SHIPPED` is a model that comes with the package.
    """
    path = shipped(path) or as_path(path)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.exists():
            if (folder := of_run(path.parent)) != path.parent:
                raise InputError(f"{path.parent}: holds no {FILE_NAME}; its model is {folder}")
            raise InputError(
                f"{path.parent}: holds no {FILE_NAME}; name a folder that `train` finished "
                "(run the same `train` again to finish it), or a .keras file"
            )
    if not path.exists():
        raise InputError(
            f"{path}: there is no such model; check the path (with the package come: "
            f"{', '.join(SHIPPED)})"
        )
    check_file(path)
    return path


def of_run(path: str | Path) -> Path:
    """The folder of a run's model where that of the run is given, else the path itself."""
    folder = as_path(path) / "model"
    return folder if (folder / FILE_NAME).exists() else as_path(path)


def load_model(path: str | Path) -> ContrastiveModel:
    """Loads a model saved by this or an earlier version.

    Nothing in the file is executed: Keras' safe mode is on, and only classes that are registered
    with Keras are accepted: those of this package, of the methods of installed packages, and of
    modules that have been imported.

    Args:
        path: A `.keras` file, the folder of a training, or ``human-blood``, which comes with the
            package.

    Returns:
        The model, not compiled.

    Raises:
        InputError: If there is no such file, it is damaged, holds no model that embeds cells, or
            was written by a newer version; or a class in it is of a module not imported yet.
    """
    path = model_file(path)
    saved = read_config(path)
    try:
        with local_copy(path) as file:
            model: Any = keras.models.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # noqa: BLE001 - whatever Keras raises, the file is what is wrong
        version = saved["config"].get("concerto_tf", "an unknown version")
        raise InputError(
            f"{path}: the model (saved by concerto_tf {version}) does not load: "
            f"{first_line(error)}; the file is damaged, or was changed"
        ) from error
    embeds = isinstance(model, Encoder | BatchModel)
    if not embeds:
        raise InputError(f"{path}: a Keras model, but none that embeds cells")
    _say_if_changed(path)
    return model


def _say_if_changed(path: Path) -> None:
    """Says that a model is not as its training left it: what was changed may be whole in itself."""
    note = read_note(path.parent / SUMMARY) if path.name == FILE_NAME else None
    if note == {}:
        _log.warning("%s: is damaged; the model beside it is taken as it is", path.parent / SUMMARY)
    left = (note or {}).get("files")
    if isinstance(left, dict) and left.get(path.name, "") not in ("", sha256(path)):
        _log.warning("%s: is not as its training left it (%s)", path, SUMMARY)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a `.keras` file, checked before anything is built.

    Args:
        path: A `.keras` file.

    Returns:
        Keras' description of the model: its class and the arguments of it.

    Raises:
        InputError: As for `load_model`.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            sizes = {part.filename: part.file_size for part in archive.infolist()}
            if sizes["config.json"] > _MOST_CONFIG_BYTES:
                raise ValueError("a configuration of that size is none of ours")
            saved = json.loads(archive.read("config.json"))
        name, config = str(saved["registered_name"]), saved["config"]
        newer = int(config.get("saved_format", 0)) > SAVED_FORMAT
        # A model with labels names the class of its encoder.
        encoder = str(config.get("method", name))
    except _NO_MODEL as error:
        raise InputError(
            f"{path}: not a saved model, or cut short; copy it again or train anew"
        ) from error
    if ">" not in encoder:
        raise InputError(f"{path}: a Keras model, but none of concerto_tf")
    of_encoder = {"class_name": encoder, "registered_name": encoder, "config": None}
    module = config.get("method_module", saved.get("module"))
    missing = _missing([saved, {**of_encoder, "module": module}])
    if newer or (missing and missing[0].startswith("concerto_tf>")):
        raise InputError(
            f"{path}: saved by concerto_tf {config.get('concerto_tf')}, which is newer than this; "
            "update with pip install -U concerto_tf"
        )
    if missing:
        raise _not_imported(path, *missing)
    classes = [keras.utils.get_registered_object(one) for one in (name, encoder)]
    if not all(isinstance(cls, type) and issubclass(cls, keras.Model) for cls in classes):
        raise InputError(f"{path}: a Keras model, but none of concerto_tf")
    # What others have written knows itself whether it is damaged.
    of_cells = config.get("encoder", config)
    described = not issubclass(classes[1], ContrastiveModel) or _describes_cells(of_cells)
    stored = sizes.get("model.weights.h5", _MOST_CONFIG_BYTES)
    if not described or (encoder.startswith("concerto_tf>") and _largest(config) > stored):
        raise InputError(
            f"{path}: does not say what a model of concerto_tf does; the file was changed"
        )
    return saved


def _missing(config: Any) -> tuple[str, str] | None:
    """`missing_class`, once the installed methods have been imported where one is missing."""
    missing = missing_class(config)
    if missing is None or missing[0].startswith("concerto_tf>"):
        return missing
    load_installed(missing[1])
    return missing_class(config)


def _not_imported(path: Path, name: str, module: str) -> InputError:
    """What is to be done about a class that no imported module has registered."""
    if module in ("__main__", "None"):
        return InputError(
            f"{path}: holds a {name}, which was made in a script or notebook; run that first, or "
            "put it into a module of its own"
        )
    wrong = [text for text in load_installed(module) if module.split(".")[0] in text]
    return InputError(
        "; ".join([f"{path}: holds a {name}, which no imported module has registered", *wrong])
        + "; import its module first",
        Argument("import", module.split(".")[0] if "." in module else module),
    )


def _describes_cells(config: dict[str, Any]) -> bool:
    """Whether what every model says of its input has the right types."""
    if "vocabulary" not in config or not isinstance(config.get("modality"), str):
        return False
    if not isinstance(config.get("modalities"), dict):
        return False
    return _are_names(config.get("sources")) and all(
        isinstance(of, dict) and _are_names(of.get("vocabulary")) and _are_indices(of.get("genes"))
        for of in described(config).values()
    )


def _are_names(held: Any) -> bool:
    return isinstance(held, list) and bool(held) and all(isinstance(name, str) for name in held)


def _are_indices(held: Any) -> bool:
    return held is None or (isinstance(held, list) and all(type(i) is int for i in held))


def _largest(value: Any) -> int:
    """The largest whole number in a configuration that may be a size.

    None that is the size of a layer exceeds the number of weights, which is to be known before
    memory is taken for them.
    """
    if isinstance(value, dict):
        sizes = (item for key, item in value.items() if key not in _NO_SIZES)
        return max(map(_largest, sizes), default=0)
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, int) else 0
