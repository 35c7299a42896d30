"""A checksum that differs between models that embed differently."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import tensorflow as tf

from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.encoder import Encoder
from concerto_tf.models.weights import lasting_weights

#: Arguments that no embedding rests on.
_OTHER = ("name", "concerto_tf", "saved_format", "seed", "temperature")


def fingerprint(model: Encoder) -> str:
    """A checksum of all that an embedding rests on: genes, sources and weights.

    Args:
        model: The model.

    Returns:
        SHA-256 in hexadecimal; the same before saving and after loading.
    """
    inputs = {one.name: one.get_config() for one in model.modality_inputs}
    own = model.get_config() if isinstance(model, ContrastiveModel) else {}
    config = {key: value for key, value in own.items() if key not in _OTHER}
    told = [config, inputs, list(model.sources), model.embedding_dim]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for weight in lasting_weights(model):
        values = np.array(tf.convert_to_tensor(weight))
        # Counters of masks advance in training alone; an embedding rests on floats.
        if np.issubdtype(values.dtype, np.floating):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
