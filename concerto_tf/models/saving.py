"""Models as files: one `.keras` with vocabulary, configuration and weights, version-stamped."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._files import atomic
from concerto_tf._keras import keras
from concerto_tf._paths import as_path, local_copy
from concerto_tf.errors import InputError
from concerto_tf.models.base import SAVED_FORMAT, ContrastiveModel
from concerto_tf.models.modality import described
from concerto_tf.models.weights import lasting_weights

FILE_NAME = "model.keras"

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

    ``model.save(path)`` of Keras works too and keeps the optimizer.

    Args:
        model: The model.
        path: The `.keras` file to write.

    Example:

    >>> import tempfile
    >>> from concerto_tf.models import Concerto, load_model, save_model
    >>> path = tempfile.mkdtemp() + "/model.keras"
    >>> save_model(Concerto(["CD3E", "MS4A1"]), path)
    >>> load_model(path).vocabulary
    ('CD3E', 'MS4A1')
    """
    copy = type(model).from_config(model.get_config())
    # Not the state of metrics: of several processes all would have to ask for it.
    for new, old in zip(lasting_weights(copy), lasting_weights(model), strict=True):
        new.assign(np.array(tf.convert_to_tensor(old)))
    with atomic(path) as temporary:
        copy.save(temporary)


def model_file(path: str | Path) -> Path:
    """The `.keras` file of a path: the file itself, or the one in the folder of a training."""
    path = as_path(path)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.exists():
            of_run = path.parent / "model"
            if (of_run / FILE_NAME).exists():
                raise InputError(f"{path.parent}: holds no {FILE_NAME}; its model is {of_run}")
            raise InputError(
                f"{path.parent}: holds no {FILE_NAME}; name a folder that `train` finished "
                "(run the same `train` again to finish it), or a .keras file"
            )
    if not path.exists():
        raise InputError(f"{path}: there is no such model; check the path")
    return path


def load_model(path: str | Path) -> ContrastiveModel:
    """Loads a model saved by this or an earlier version.

    Nothing in the file is executed: Keras' safe mode is on, and only classes of this package are
    accepted.

    Args:
        path: A `.keras` file, or the folder of a training.

    Returns:
        The model, not compiled.

    Raises:
        InputError: If there is no such file, it is damaged, not one of our models, or written by
            a newer version.
    """
    path = model_file(path)
    saved = read_config(path)
    try:
        with local_copy(path) as file:
            return keras.models.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # noqa: BLE001 - whatever Keras raises, the file is what is wrong
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        version = saved["config"].get("concerto_tf", "an unknown version")
        raise InputError(
            f"{path}: the model (saved by concerto_tf {version}) does not load: {reason[0][:200]}; "
            "the file is damaged, or was changed"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a `.keras` file, checked to be one of ours before anything is built.

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
        ours = name.startswith("concerto_tf>")
        newer = int(config.get("saved_format", 0)) > SAVED_FORMAT
    except _NO_MODEL as error:
        raise InputError(
            f"{path}: not a saved model, or cut short; copy it again or train anew"
        ) from error
    # A model with labels may have an encoder of others, which knows itself whether it is damaged.
    of_cells = config.get("encoder", config)
    foreign = not str(config.get("method", "concerto_tf>")).startswith("concerto_tf>")
    if not ours or not (foreign or "vocabulary" in of_cells):
        raise InputError(f"{path}: a Keras model, but none of concerto_tf")
    if newer or keras.utils.get_registered_object(name) is None:
        raise InputError(
            f"{path}: saved by concerto_tf {config.get('concerto_tf')}, which is newer than this; "
            "update with pip install -U concerto_tf"
        )
    stored = sizes.get("model.weights.h5", _MOST_CONFIG_BYTES)
    if not (foreign or _describes_cells(of_cells)) or _largest(config) > stored:
        raise InputError(
            f"{path}: does not say what a model of concerto_tf does; the file was changed"
        )
    return saved


def _describes_cells(config: dict[str, Any]) -> bool:
    """Whether what every model says of its input has the right types."""
    if not isinstance(config.get("modality"), str) or not isinstance(
        config.get("modalities"), dict
    ):
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
