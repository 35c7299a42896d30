"""The fingerprint of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from concerto_tf import InputError
from concerto_tf.models import Classifier, load_model, save_model
from concerto_tf.models.fingerprint import fingerprint, load_expected


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


def test_genes_in_another_order_are_another_model(make_model: object) -> None:
    """The weights are the same, and so is every checksum of the file but this."""
    model = make_model()
    shuffled = type(model).from_config(
        {**model.get_config(), "vocabulary": list(model.vocabulary[::-1])}
    )
    for new, old in zip(shuffled.weights, model.weights, strict=True):
        new.assign(old)
    assert fingerprint(shuffled) != fingerprint(model)


def test_of_a_model_that_tells_cell_types_these_count(tmp_path: Path, make_model: object) -> None:
    model = Classifier(make_model(), ["B", "T"])
    save_model(model, tmp_path / "model.keras")
    assert fingerprint(load_model(tmp_path / "model.keras")) == fingerprint(model)
    other = Classifier(model.encoder, ["T", "B"])
    assert len({fingerprint(one) for one in (model, other, model.encoder)}) == 3
    before = fingerprint(model)
    model.note_known(calibration=[0.5])
    assert fingerprint(model) != before


def test_another_model_than_expected_is_refused(tmp_path: Path, make_model: object) -> None:
    path = tmp_path / "model.keras"
    save_model(make_model(), path)
    found = fingerprint(load_expected(path))
    load_expected(path, found), load_expected(path, f" {found[:12].upper()}\n")
    for wrong, words in (
        (found[::-1], "its fingerprint is"),
        (found[:11], "no fingerprint"),
        ("", "no fingerprint"),
        ("x" * 64, "no fingerprint"),
    ):
        with pytest.raises(InputError, match=words):
            load_expected(path, wrong)
