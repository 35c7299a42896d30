"""A reference as files beside the model that embedded it: `.npy` arrays and one JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from concerto_tf import _files
from concerto_tf._paths import as_path
from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.novelty import Calibration, Scale
from concerto_tf.reference.cells import Conformity, Embedded, Labels, Reference, Values
from concerto_tf.reference.index import EXACT_CELLS
from concerto_tf.reference.voices import Voices

FOLDER = "reference"
FILE_NAME = "reference.json"
#: Version of what a saved reference holds.
SAVED_FORMAT = 1

#: Names of files, and the attributes of `Embedded` that they hold.
_EMBEDDED = {
    "embeddings": "unit",
    "lengths": "lengths",
    "origin": "origin",
    "factor": "factor",
    "spread": "spread",
}
#: What a `Conformity` holds: arrays, or several under the names of their parts.
_CONFORMITY: dict[str, Any] = dict.fromkeys(Conformity._fields) | {
    "scale": Scale,
    "least": Calibration,
    "together": Calibration,
    "votes": Calibration,
}
_VOICES = [field.name for field in fields(Voices)]
_CSR = ("data", "indices", "indptr")
#: The index of many cells, which is built once.
_INDEX = "index"


def is_reference(folder: str | Path) -> bool:
    """Whether a folder is a saved reference, be it a damaged one, and not somebody's own."""
    return any((as_path(folder) / name).is_file() for name in (FILE_NAME, "embeddings.npy"))


def save_reference(reference: Reference, folder: str | Path) -> None:
    """Saves a reference as a folder, whole or not at all; one that is there is replaced.

    Args:
        reference: The reference.
        folder: The folder; what is around it must exist.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from concerto_tf import Reference, load_reference, save_reference
    >>> folder = tempfile.mkdtemp() + "/reference"
    >>> save_reference(Reference(np.eye(3)), folder)
    >>> load_reference(folder).n_cells
    3
    """
    folder = as_path(folder)
    with _files.atomic(folder) as temporary:
        temporary.mkdir()
        files: dict[str, str] = {}

        def keep(name: str, array: np.ndarray) -> None:
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            files[f"{name}.npy"] = _files.sha256(temporary / f"{name}.npy")

        for name, attribute in _EMBEDDED.items():
            if getattr(reference.embedded, attribute) is not None:
                keep(name, getattr(reference.embedded, attribute))
        built = reference.index.built
        if built is not None:
            keep(_INDEX, built)
        for i, (key, held) in enumerate(reference.labels.items()):
            keep(f"labels-{i}", held.codes)
            if key in reference.voices:
                for name in _VOICES:
                    keep(f"labels-{i}-voices-{name}", getattr(reference.voices[key], name))
            if key in reference.calibrations:
                made = reference.calibrations[key]
                for name, kind in _CONFORMITY.items():
                    if kind is None:
                        keep(f"labels-{i}-{name}", getattr(made, name))
                        continue
                    for part, array in getattr(made, name)._asdict().items():
                        keep(f"labels-{i}-{name}-{part}", array)
        for i, stored in enumerate(reference.values.values()):
            if sp.issparse(stored.matrix):
                for part in _CSR:
                    keep(f"values-{i}-{part}", getattr(stored.matrix, part))
            else:
                keep(f"values-{i}", stored.matrix)
        _files.write_json(
            temporary / FILE_NAME,
            _checked(
                {
                    "concerto_tf": __version__,
                    "saved_format": SAVED_FORMAT,
                    "n_cells": reference.n_cells,
                    "model": reference.model,
                    "cells": reference.cells,
                    "depth": reference.depth,
                    "labels": [
                        {
                            "key": key,
                            "names": list(held.names),
                            "voices": key in reference.voices,
                            "calibrated": key in reference.calibrations,
                            "stated": reference.stated.get(key, {}),
                        }
                        for key, held in reference.labels.items()
                    ],
                    "values": [
                        {
                            "modality": name,
                            "features": list(held.features),
                            "units": held.units,
                            "place": held.place,
                            "sparse": sp.issparse(held.matrix),
                        }
                        for name, held in reference.values.items()
                    ],
                    "files": files,
                }
            ),
        )


def load_reference(folder: str | Path) -> Reference:
    """Loads a reference; nothing in it is executed.

    Args:
        folder: The folder that `save_reference` wrote.

    Returns:
        The reference.

    Raises:
        InputError: There is none, it is damaged, or was written by a newer version.
    """
    folder = as_path(folder)
    content = _read(folder)

    def array(name: str) -> np.ndarray:
        path = folder / f"{name}.npy"
        try:
            whole = _files.sha256(path) == content["files"][path.name]
            if whole and name == "embeddings" and content["n_cells"] > EXACT_CELLS:
                # Those of millions of cells stay on disk: what is looked at is read.
                return np.load(path, mmap_mode="r", allow_pickle=False)
            if whole:
                with path.open("rb") as file:
                    return np.load(file, allow_pickle=False)
        except (OSError, KeyError, ValueError, MemoryError):
            pass
        raise InputError(
            f"{path}: is missing, damaged or was changed; remove {folder} and give the "
            "reference's cells again"
        )

    try:
        labels, values, voices, calibrations, stated = {}, {}, {}, {}, {}
        for i, held in enumerate(content["labels"]):
            labels[held["key"]] = Labels(array(f"labels-{i}"), tuple(held["names"]))
            if held.get("voices"):  # 0.1.0 had none
                of_voices = {name: array(f"labels-{i}-voices-{name}") for name in _VOICES}
                voices[held["key"]] = Voices(**of_voices)
            if held.get("stated"):
                stated[held["key"]] = held["stated"]
            if held["calibrated"]:
                found: dict[str, Any] = {
                    name: array(f"labels-{i}-{name}")
                    if kind is None
                    else kind(*(array(f"labels-{i}-{name}-{part}") for part in kind._fields))
                    for name, kind in _CONFORMITY.items()
                }
                calibrations[held["key"]] = Conformity(**found)
        n = content["n_cells"]
        for i, held in enumerate(content["values"]):
            features = tuple(held["features"])
            if held["sparse"]:
                parts = [array(f"values-{i}-{part}") for part in _CSR]
                matrix = sp.csr_matrix(tuple(parts), shape=(n, len(features)))
            else:
                matrix = array(f"values-{i}")
            values[held["modality"]] = Values(matrix, features, held["units"], held["place"])
        embedded_parts = {
            attribute: array(name)
            for name, attribute in _EMBEDDED.items()
            if attribute != "spread" or f"{name}.npy" in content["files"]
        }
        embedded = Embedded(**embedded_parts)
        reference = Reference(
            embedded,
            labels,
            values,
            model=content["model"],
            cells=content["cells"],
            depth=content["depth"],
            # Only many cells have one.
            built=array(_INDEX) if f"{_INDEX}.npy" in content["files"] else None,
        )
        reference.voices.update(voices)
        reference.calibrations.update(calibrations)
        reference.stated.update(stated)
        return reference
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder / FILE_NAME}: does not say what it should ({error})") from error


def _read(folder: Path) -> dict[str, Any]:
    """The description of a saved reference, checked to be whole."""
    path = folder / FILE_NAME
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: there is no reference; give the reference's cells", "reference"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove {folder} and give the reference again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("saved_format"), int):
        raise InputError(f"{path}: this describes no reference")
    if content["saved_format"] > SAVED_FORMAT:
        raise InputError(
            f"{path}: saved by concerto_tf {content.get('concerto_tf')}, which is newer than this; "
            "update with pip install -U concerto_tf"
        )
    if content != _checked({key: content[key] for key in content if key != "checksum"}):
        raise InputError(
            f"{path}: was changed or damaged; remove {folder} and give the reference's cells again"
        )
    return content


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """A description with its own checksum."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**content, "checksum": hashlib.sha256(text.encode()).hexdigest()}
