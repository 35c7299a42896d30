"""The schema of a minibatch: keys of modalities, and what a view of a minibatch says."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import concerto_tf
from concerto_tf.records.batch import (
    RNA,
    Minibatch,
    ModalityBatch,
    is_numeric,
    key,
    label_key,
    modality_of,
)

GENES = np.array([[0, 2], [1, 0]], np.int32)
VALUES = np.array([[3, 1], [0, 0]], np.float32)


@pytest.mark.parametrize("modality", [RNA, "protein", "peaks.v2"])
@pytest.mark.parametrize("field", ["genes", "values", "total", "offset", "measured"])
def test_a_key_names_its_modality(modality: str, field: str) -> None:
    assert modality_of(key(modality, field)) == modality
    assert is_numeric(key(modality, field))


@pytest.mark.parametrize("name", ["genes", "a/values", "protein/total"])
def test_a_label_is_of_no_modality_whatever_it_is_called(name: str) -> None:
    assert modality_of(label_key(name)) is None
    assert not is_numeric(label_key(name))


def test_what_is_of_the_cell_is_of_no_modality() -> None:
    assert [modality_of(name) for name in ("row", "source", "cell")] == [None] * 3
    assert [is_numeric(name) for name in ("row", "source", "cell")] == [True, True, False]


@pytest.mark.parametrize("modality", [RNA, "protein"])
def test_entries_are_read_as_they_were_written(modality: str) -> None:
    measured = np.array([True, False, True])
    part = ModalityBatch(GENES, VALUES, VALUES.sum(1), np.zeros_like(GENES), measured)
    batch = Minibatch({**part.entries(modality), "row": np.arange(2)})
    assert batch.modalities == [modality]
    [(name, found)] = batch
    assert name == modality
    for field, wanted in vars(part).items():
        np.testing.assert_array_equal(getattr(found, field), wanted)
    assert batch.modality("other") is None


def test_a_packed_value_names_the_row_of_its_cell() -> None:
    part = ModalityBatch(GENES, VALUES, offset=np.array([[0, 1], [0, -1]], np.int32))
    np.testing.assert_array_equal(part.rows, [[0, 1], [1, 0]])
    assert ModalityBatch(GENES, VALUES).rows is None


def test_who_has_a_total_is_present() -> None:
    np.testing.assert_array_equal(ModalityBatch(GENES, VALUES).present, [True, False])
    np.testing.assert_array_equal(ModalityBatch(GENES, VALUES).totals, [4, 0])
    # The values may be of genes that were left out.
    total = tf.constant([0.0, 2.0])
    np.testing.assert_array_equal(ModalityBatch(GENES, VALUES, total).present, [False, True])


def test_cells_are_of_the_first_source_where_none_is_named() -> None:
    of_protein = ModalityBatch(GENES, VALUES).entries("protein")
    np.testing.assert_array_equal(Minibatch(of_protein).source, [0, 0])
    np.testing.assert_array_equal(Minibatch({**of_protein, "source": [1, -1]}).source, [1, -1])


def test_a_model_looks_at_neither_barcodes_nor_labels() -> None:
    batch = {"cell": ["a", "b"], "label/type": [0, 1], "row": [0, 1], "protein/genes": GENES}
    assert set(Minibatch((batch, [0, 1])).numeric) == {"row", "protein/genes"}


def test_no_other_file_of_the_package_names_the_first_modality() -> None:
    """Who needs to know it takes `RNA`, so that a rule about it can be found."""
    naming = {
        path.name
        for path in Path(concerto_tf.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value == RNA
    }
    assert naming == {"batch.py"}
