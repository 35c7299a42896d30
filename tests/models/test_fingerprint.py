"""The fingerprint of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from concerto_tf.models import load_model, save_model
from concerto_tf.models.fingerprint import fingerprint


def test_fingerprint_tells_models_apart_and_survives_saving(
    tmp_path: Path, make_model: object
) -> None:
    model = make_model()
    save_model(model, tmp_path / "model.keras")
    assert fingerprint(load_model(tmp_path / "model.keras")) == fingerprint(model)
    assert fingerprint(make_model(seed=1)) != fingerprint(model)
    before = fingerprint(model)
    model.placement.origin.assign(np.full(model.embedding_dim, 0.5))
    assert fingerprint(model) != before
    assert fingerprint(make_model(sources=("a", "c"))) != fingerprint(model)
