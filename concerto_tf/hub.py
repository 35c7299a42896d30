"""Models by name: folders that the Hugging Face hub takes as they are, and back again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from concerto_tf._files import atomic
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.jobs import read_note
from concerto_tf.models import load_model, save_model
from concerto_tf.models.card import model_card
from concerto_tf.models.saving import FILE_NAME
from concerto_tf.reference.files import FOLDER as REFERENCE
from concerto_tf.tasks.reference import model_folder
from concerto_tf.tasks.training.job import SUMMARY

#: The hub shows the card of a model under this name.
CARD = "README.md"


def save_to(model: Any, folder: str | Path) -> Path:
    """Writes a model with its card into a folder that can be uploaded to the hub as it is.

    The folder holds ``model.keras``, ``README.md`` (the card, which the hub shows) and, of a model
    in a folder, ``training.json`` and the reference that `map` keeps there.
    ``hf upload NAME FOLDER`` puts it onto the hub.

    Args:
        model: A trained model, or its path.
        folder: Folder to write; must not exist.

    Returns:
        The folder.

    Raises:
        InputError: The model cannot be loaded or saved, or the folder is there already.

    Example:

    >>> import tempfile
    >>> from concerto_tf import hub
    >>> from concerto_tf.models import Concerto
    >>> folder = hub.save_to(Concerto(["CD3E", "MS4A1"]), tempfile.mkdtemp() + "/blood")
    >>> hub.from_pretrained(folder).vocabulary
    ('CD3E', 'MS4A1')
    """
    folder = as_path(folder)
    if folder.exists():
        raise InputError(f"{folder}: is there already; name another folder, or remove this one")
    place = model_folder(model)
    if isinstance(model, str | Path):
        model = load_model(model)
    told = None if place is None else read_note(place / SUMMARY)
    with atomic(folder) as temporary:
        temporary.mkdir(parents=True)
        save_model(model, temporary / FILE_NAME)
        (temporary / CARD).write_text(model_card(model, told), "utf-8")
        if place is not None:
            if told is not None:
                shutil.copy(place / SUMMARY, temporary / SUMMARY)
            if (place / REFERENCE).is_dir():
                shutil.copytree(place / REFERENCE, temporary / REFERENCE)
    return folder


def from_pretrained(name: str | Path, *, revision: str | None = None) -> Any:
    """A model of a folder or of the Hugging Face hub.

    Args:
        name: A folder of `save_to` or of a training, or the name of a model on the hub,
            ``owner/model``, which is downloaded once and kept where `huggingface_hub` keeps it.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model, not compiled. Its class must be of this package, of an installed one that adds
        methods, or of a module that has been imported: nothing that is downloaded is executed.

    Raises:
        InputError: There is no such folder or model, the hub cannot be reached, or the extra
            ``hub`` is not installed.
    """
    path = as_path(name)
    if path.exists():
        return load_model(path)
    if not isinstance(name, str) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name}: there is no such folder, and on the hub names are owner/model")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{name}: there is no such folder; for models of the Hugging Face hub pip install "
            "'concerto_tf[hub]'"
        ) from error
    wanted = [FILE_NAME, CARD, SUMMARY, f"{REFERENCE}/*"]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=wanted)
    except Exception as error:  # noqa: BLE001 - a network has many ways to fail
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{name}: cannot be had from the hub ({reason}); check the name and the network"
        ) from error
    return load_model(folder)
