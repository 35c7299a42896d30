"""The soft-K-means network on an embedding, and trained with its encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveSC
from concerto_tf.records import convert
from protocols.soft_kmeans import soft_kmeans, together


def test_the_encoder_is_trained_with_the_network(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    cells = make_cells({(kind, "a"): 40 for kind in "uvw"})
    records = convert(cells, tmp_path / "records", label_keys=["kind"])
    model = ContrastiveSC.from_records(records, backbone=(8,), components=4)
    model.initialize(records.dataset(60))
    z = model.embed(records.dataset(60))
    truth = np.unique(cells.obs["kind"], return_inverse=True)[1]
    found = together(model, records, z, truth, 3, 0)
    assert (found == truth).mean() > 0.95
    assert np.abs(model.embed(records.dataset(60)) - z).max() > 1e-4


@pytest.mark.slow
def test_it_leaves_table_result_and_figure(
    make_cells: Callable[..., AnnData], tmp_path: Path
) -> None:
    cells = make_cells({(kind, "a"): 40 for kind in "uvw"})
    result = soft_kmeans([cells], tmp_path, label_key="kind", steps=5, epochs=1, genes="all")
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert len(result["mean"]) == 3
    for way, found in result["mean"].items():
        assert found["ari"]["mean"] > 0.9, way
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_what_is_unsuitable_is_said(make_cells: Callable[..., AnnData], tmp_path: Path) -> None:
    cells = make_cells({(kind, "a"): 10 for kind in "uv"})
    with pytest.raises(InputError, match="steps: 0 is not"):
        soft_kmeans([cells], tmp_path, label_key="kind", steps=0)
