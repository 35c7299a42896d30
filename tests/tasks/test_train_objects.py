"""Training of models that are given, and with layers and losses that are objects of Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from anndata import AnnData

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveSC
from concerto_tf.records import Records, convert
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.train import train


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    counts = np.random.default_rng(0).poisson(2.0, (40, 20)).astype("float32")
    counts[:, 0] += 1
    return convert(AnnData(counts), tmp_path_factory.mktemp("records"))


def test_trains_a_model_that_is_given(records: Records, tmp_path: Path) -> None:
    given = ContrastiveSC.from_records(records, backbone=(8, 4), mask_rate=0.4, components=0)
    before = [np.array(weight) for weight in given.weights]
    trained = train(records, tmp_path / "model", model=given, epochs=1)
    assert trained is not given and trained.augmentation.rate == 0.4
    for old, weight in zip(before, given.weights, strict=True):
        np.testing.assert_array_equal(old, np.array(weight))
    same = ContrastiveSC.from_records(records, backbone=(8, 4), mask_rate=0.4, components=0)
    again = train(records, tmp_path / "model", model=same, epochs=1)  # has been finished
    np.testing.assert_array_equal(embed(again, records), embed(trained, records))
    other = ContrastiveSC.from_records(records, backbone=(8, 4), mask_rate=0.5, components=0)
    with pytest.raises(InputError, match="differing in"):
        train(records, tmp_path / "model", model=other, epochs=1)
    with pytest.raises(InputError, match="the model: has been made with its own method"):
        train(records, tmp_path / "new", model=given, method="clear")


def test_options_may_be_objects_of_keras(records: Records, tmp_path: Path) -> None:
    from concerto_tf.losses import NTXent

    def call() -> Any:
        options = {"loss": NTXent(0.2), "backbone": keras.Sequential([keras.layers.Dense(6)])}
        how = {"method": "contrastive-sc", "epochs": 1, "options": options}
        return train(records, tmp_path / "model", **how)

    model = call()
    assert model.view_loss.temperature == 0.2 and model.embedding_dim == 6
    again = call()  # the names that Keras gives layers differ by now
    np.testing.assert_array_equal(embed(again, records), embed(model, records))


def test_a_loss_that_could_not_be_saved_is_told_before_training(
    records: Records, tmp_path: Path
) -> None:
    class Nameless(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return -tf.reduce_sum(y_true * y_pred, -1)

    with pytest.raises(InputError, match="Nameless of .* is not registered with Keras"):
        train(records, tmp_path / "model", epochs=1, options={"loss": Nameless()})
    assert not (tmp_path / "model").exists()
