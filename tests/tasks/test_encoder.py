"""Models that others have written, in all tasks that their members allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from anndata import AnnData

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.export import export
from concerto_tf.layers import scatter_to_dense
from concerto_tf.models import Classifier, Concerto, Ensemble, load_model
from concerto_tf.models.encoder import (
    Attentive,
    Encoder,
    Located,
    SourceAware,
    Teachable,
    geometry_of,
)
from concerto_tf.models.modality import ModalityInput
from concerto_tf.models.presets import Training
from concerto_tf.records import convert
from concerto_tf.records.batch import Minibatch
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.explain import explain
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.impute import impute
from concerto_tf.tasks.map import map as map_to

GENES = [f"AB{i}C" for i in range(40)]
NAMES = np.array(["B", "T", "NK"])


class Projection(keras.Model):
    """The least that an encoder is: random directions of log-normalized counts."""

    sources, embedding_dim = ("all",), 16

    def __init__(self, genes: Sequence[str] = GENES) -> None:
        super().__init__()
        self.modality_inputs = (ModalityInput("rna", genes),)
        self.modality_inputs[0].build(self)
        start = keras.initializers.RandomNormal(seed=0)
        self.dense = keras.layers.Dense(self.embedding_dim, kernel_initializer=start)
        self.dense.build((None, len(genes)))
        self.built = True

    def values(self, batch: Any) -> tf.Tensor:
        genes, values, rows = self.modality_inputs[0].cells(Minibatch(batch))
        return scatter_to_dense(genes, values, self.modality_inputs[0].n_inputs, rows)

    def call(self, batch: Any, training: bool | None = None) -> tf.Tensor:
        return self.dense(self.values(batch))


@keras.utils.register_keras_serializable(package="somebody")
class Own(Projection):
    """One that can do everything."""

    hidden_units, heads, recipe = 16, (), Training(finetuning_rate=0.01)

    def __init__(self, sources: Sequence[str] = ("all",), **kwargs: Any) -> None:
        super().__init__()
        self.sources = tuple(sources)

    def with_sources(self, sources: Sequence[str]) -> Own:
        other = Own(sources)
        other.set_weights(self.get_weights())
        return other

    def untrained(self, sources: Sequence[str], seed: int) -> Own:
        return Own(sources)

    def calibrate(self, data: Iterable[Any]) -> None:
        """It knows nothing of its sources."""

    def represent(self, batch: Any, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        z = self(batch)
        return z, z

    def standardized(self, batch: Any) -> tf.Tensor:
        return self.values(batch)

    @property
    def deviations(self) -> np.ndarray:
        return np.ones(self.modality_inputs[0].n_inputs)

    def attention_weights(
        self, batch: Any, modality: str | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        genes, values, _ = self.modality_inputs[0].cells(Minibatch(batch))
        return genes, tf.nn.softmax(tf.gather(tf.norm(self.dense.kernel, axis=1), genes))

    def get_config(self) -> dict[str, Any]:
        return {"sources": list(self.sources)}


def make_cells(n: int = 120, seed: int = 0) -> AnnData:
    """Cells of three types, with a protein for each."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    counts = rng.poisson(np.random.default_rng(9).gamma(0.5, 4.0, (3, 40))[kind])
    counts[:, 0] += 1
    obs = pd.DataFrame({"type": NAMES[kind]}, [f"c{i}" for i in range(n)])
    cells = AnnData(counts.astype("f4"), obs, pd.DataFrame(index=GENES))
    levels = rng.poisson(5 + 95 * np.eye(3)[kind])
    cells.obsm["protein"] = pd.DataFrame(levels, cells.obs_names, ["CD19", "CD3", "CD56"])
    return cells


@pytest.fixture(scope="module", params=[Projection, Own])
def model(request: pytest.FixtureRequest) -> Projection:
    return request.param()


def normalized(cells: AnnData) -> np.ndarray:
    return np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))


def test_what_a_model_is_follows_from_its_members() -> None:
    kinds = (Encoder, SourceAware, Attentive, Teachable, Located)
    small = {"units": 8, "hidden_units": 8, "attention_units": 4}
    concerto = Concerto(GENES, **small)
    for found, of in [
        (Projection(), (True, False, False, False, False)),
        (Own(), (True, True, True, True, False)),
        (concerto, (True, True, True, True, True)),
        (Ensemble([concerto]), (True, True, False, False, True)),
        (keras.layers.Dense(3), (False, False, False, False, False)),
    ]:
        assert tuple(isinstance(found, kind) for kind in kinds) == of, found
    np.testing.assert_array_equal(geometry_of(Projection()).origin, np.zeros(16))


def test_embeds(model: Projection, tmp_path: Path) -> None:
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    z = embed(model, tmp_path / "cells.h5ad", tmp_path / "out.h5ad")
    want = normalized(cells) @ model.dense.kernel.numpy()
    np.testing.assert_allclose(z, want, rtol=1e-4, atol=1e-4)
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(written.obsm["X_concerto"], want, rtol=1e-4, atol=1e-4)
    fewer = cells[:, 3:].copy()  # taken at what the others leave
    assert embed(model, fewer).shape == (120, 16)


def test_maps_and_imputes(model: Projection) -> None:
    reference, query = make_cells(), make_cells(60, seed=1)
    table = map_to(model, query, reference=reference, label_key="type")
    assert (table["predicted"] == query.obs["type"].to_numpy()).mean() > 0.9
    del query.obsm["protein"]
    values = impute(model, query, reference=reference, modalities={"protein": "obsm:protein"})
    [of_protein] = values.values()
    assert np.shape(of_protein) == (60, 3)


def test_is_served(model: Projection, tmp_path: Path) -> None:
    served = tf.saved_model.load(str(export(model, tmp_path / "served")))
    cells = make_cells(3)
    answer = served.signatures["serving_default"](
        genes=tf.constant([GENES] * 3), values=tf.constant(cells.X)
    )
    np.testing.assert_allclose(answer["embedding"], embed(model, cells), rtol=1e-4, atol=1e-4)


def test_learns_cell_types_and_is_saved_with_them(tmp_path: Path) -> None:
    records = convert(make_cells(), tmp_path / "records", label_keys=["type"])
    how = {"label_key": "type", "batch_size": 40, "epochs": 30}
    fine = finetune(Own(), records, tmp_path / "model", **how)
    assert isinstance(fine, Classifier) and isinstance(fine.encoder, Own)
    query = make_cells(60, seed=1)
    table = annotate(load_model(tmp_path / "model"), query)
    assert (table["predicted"] == query.obs["type"].to_numpy()).mean() > 0.9
    np.testing.assert_array_equal(table["predicted"], annotate(fine, query)["predicted"])


def test_is_explained_and_adapted() -> None:
    cells = make_cells()
    for model in (Own(), Projection()):
        table = explain(model, cells, groupby="type")
        assert set(table["gene"]) == set(GENES)
        # It is linear in normalized values, and integrated gradients are exact.
        x, kind = normalized(cells), cells.obs["type"].to_numpy()
        gap = x[kind == "B"].mean(0) - x[kind != "B"].mean(0)
        way = gap @ model.dense.kernel.numpy()
        want = gap * (model.dense.kernel.numpy() @ way) / np.linalg.norm(way)
        found = table[table["group"] == "B"].set_index("gene")["weight"][GENES]
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)
        assert ("attention" in table) == (type(model) is Own)
    mapped = map_to(Own(), cells, reference=cells, label_key="type", adapt="source")
    assert (mapped["predicted"] == cells.obs["type"].to_numpy()).mean() > 0.9


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            lambda cells, out: finetune(Projection(), cells, out, label_key="type"),
            "labels cannot be taught to a model of class Projection",
        ),
        (
            lambda cells, out: map_to(
                Own(), cells, reference=cells, label_key="type", finetune=True
            ),
            "a Own cannot be trained further",
        ),
        (
            lambda cells, out: map_to(
                Projection(), cells, reference=cells, label_key="type", adapt="source"
            ),
            "a Projection has no statistics of sources",
        ),
        (lambda cells, out: embed(keras.layers.Dense(3), cells), "a Dense does not embed cells"),
    ],
)
def test_what_a_model_cannot_do_is_said(task: Any, words: str, tmp_path: Path) -> None:
    cells = convert(make_cells(), tmp_path / "records", label_keys=["type"])
    with pytest.raises(InputError, match=words):
        task(cells, tmp_path / "out")
