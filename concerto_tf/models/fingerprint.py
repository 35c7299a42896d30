"""A checksum that differs between models that say different things of cells."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.encoder import Encoder
from concerto_tf.models.saving import load_model
from concerto_tf.models.weights import lasting_weights

#: Arguments that no result rests on.
_OTHER = ("name", "concerto_tf", "saved_format", "seed", "temperature", "encoder")
#: Characters of a fingerprint that are enough to tell models apart.
_FEWEST = 12


def fingerprint(model: Encoder | Classifier) -> str:
    """A checksum of all that a model's results rest on: vocabularies, sources, settings, weights.

    A checksum of the file tells whether it was copied whole, this one whether it is the model that
    somebody meant: genes in another order, a forged label or one other weight change it.

    Args:
        model: The model; of one that tells cell types, these and what it was calibrated on count
            too.

    Returns:
        SHA-256 in hexadecimal; the same before saving and after loading.

    Example:

    >>> from concerto_tf.models import Concerto
    >>> from concerto_tf.models.fingerprint import fingerprint
    >>> one, other = Concerto(["CD3E", "MS4A1"]), Concerto(["MS4A1", "CD3E"])
    >>> len(fingerprint(one)), fingerprint(one) == fingerprint(other)
    (64, False)
    """
    encoder = model.encoder if isinstance(model, Classifier) else model
    inputs = {one.name: one.get_config() for one in encoder.modality_inputs}
    config: dict = {}
    for part in dict.fromkeys((encoder, model)):
        own = part.get_config() if isinstance(part, ContrastiveModel | Classifier) else {}
        config |= {key: value for key, value in own.items() if key not in _OTHER}
    told = [config, inputs, list(encoder.sources), encoder.embedding_dim]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for weight in lasting_weights(model):
        values = np.array(tf.convert_to_tensor(weight))
        # Counters of masks advance in training alone; results rest on floats.
        if np.issubdtype(values.dtype, np.floating):
            digest.update(np.ascontiguousarray(values).tobytes())
    if isinstance(model, Classifier) and model.exemplars is not None:
        for name, values in model.exemplars.arrays().items():
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def check_fingerprint(model: Encoder | Classifier, expect: str | None, name: str | Path) -> None:
    """Raises InputError if a model is not the one that is expected.

    Args:
        model: The model.
        expect: Its `fingerprint`, or 12 or more characters of the beginning; None accepts any.
        name: What to call the model in the message.
    """
    if expect is None:
        return
    wanted = str(expect).strip().lower()
    if len(wanted) < _FEWEST or set(wanted) - set("0123456789abcdef"):
        raise InputError(
            f"{expect!r} is no fingerprint, which is {_FEWEST} to 64 characters of 0-9 and a-f; "
            "`inspect` prints that of a model",
            "expect",
        )
    found = fingerprint(model)
    if not found.startswith(wanted):
        raise InputError(
            f"{name}: its fingerprint is {found} and not {wanted}: this is another model, or it "
            "was changed; get it again from where the fingerprint came",
            "expect",
        )


def load_expected(path: str | Path, expect: str | None = None) -> ContrastiveModel:
    """Loads a model and checks its fingerprint before anybody uses it.

    Args:
        path: As for `load_model`.
        expect: As for `check_fingerprint`.

    Raises:
        InputError: As for `load_model`, or it is another model.
    """
    model = load_model(path)
    check_fingerprint(model, expect, path)
    return model
