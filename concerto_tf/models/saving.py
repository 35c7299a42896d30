"""Models as files: one `.keras` with vocabulary, configuration and weights, version-stamped."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from concerto_tf._files import atomic
from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models.base import SAVED_FORMAT, ContrastiveModel

FILE_NAME = "model.keras"

#: What reading the configuration raises where there is none.
_NO_MODEL = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError,
    ValueError, TypeError, AttributeError,
)  # fmt: skip


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
    copy.set_weights(model.get_weights())
    with atomic(path) as temporary:
        copy.save(temporary)


def model_file(path: str | Path) -> Path:
    """The `.keras` file that a path means: itself, or the one in the folder of a training."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.exists():
            raise InputError(
                f"{path.parent}: holds no {FILE_NAME}; name a folder that concerto train finished "
                "(run the same concerto train again to finish it), or a .keras file"
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
        return keras.models.load_model(path, compile=False, safe_mode=True)
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
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("config.json"))
        name, config = str(saved["registered_name"]), saved["config"]
        ours = name.startswith("concerto_tf>")
        newer = int(config.get("saved_format", 0)) > SAVED_FORMAT
    except _NO_MODEL as error:
        raise InputError(
            f"{path}: not a saved model, or cut short; copy it again or train anew"
        ) from error
    if not ours or "vocabulary" not in config.get("encoder", config):
        raise InputError(f"{path}: a Keras model, but none of concerto_tf")
    if newer or keras.utils.get_registered_object(name) is None:
        raise InputError(
            f"{path}: saved by concerto_tf {config.get('concerto_tf')}, which is newer than this; "
            "update with pip install -U concerto_tf"
        )
    return saved
