"""What earlier versions wrote is read, and says what it said then (`data/make_golden.py`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import concerto_tf

FOLDERS = sorted((Path(__file__).parent / "data" / "golden").glob("*.*.*"))


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote: nothing may be added to the original."""
    return Path(shutil.copytree(request.param, tmp_path / "golden"))


def test_records(golden: Path) -> None:
    records = concerto_tf.Records(golden / "records")
    assert records.verify() == []
    assert (records.n_cells, records.n_genes) == (140, 150)
    assert list(records.manifest.modalities) == ["rna", "protein"]
    assert len(records.sources) == 2 and list(records.labels) == ["group"]
    [batch] = records.dataset(records.n_cells, labels=["group"])
    assert float(np.sum(batch["values"])) > 0


def test_model(golden: Path) -> None:
    z = concerto_tf.embed(golden / "model", golden / "query.h5ad", source_key="batch")
    np.testing.assert_allclose(z, np.load(golden / "embedding.npy"), atol=1e-4)


def test_records_of_then_and_model_of_then(golden: Path) -> None:
    z = concerto_tf.embed(golden / "model", golden / "records")
    assert z.shape == (140, np.load(golden / "embedding.npy").shape[1])


def test_reference(golden: Path) -> None:
    """The reference that was kept with the model labels cells as it did."""
    table = concerto_tf.map(
        golden / "model", golden / "query.h5ad", label_key="group", source_key="batch"
    )
    then = pd.read_csv(golden / "labels.tsv", sep="\t", index_col=0)
    assert table["label"].tolist() == then["label"].tolist()
    np.testing.assert_allclose(table["confidence"], then["confidence"], atol=1e-3)
