"""The model of human blood that comes with the package, on blood cells that come with scanpy."""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import concerto_tf
from concerto_tf.models import Classifier, load_model
from concerto_tf.models.saving import model_file
from concerto_tf.models.shipped import SHIPPED, ontology, shipped
from concerto_tf.tasks.demo import LABEL_KEY, demo_cells

NAME = "human-blood"
#: Groups of the labels of the 68k-PBMC set; those of its CD34+ and of CD4+ T cells are doubtful.
GROUPS = {
    "CD14+ Monocyte": "monocyte",
    "CD19+ B": "B",
    "CD4+/CD45RA+/CD25- Naive T": "T",
    "CD4+/CD45RO+ Memory": "T",
    "CD8+/CD45RA+ Naive Cytotoxic": "T",
    "CD56+ NK": "NK",
    "Dendritic": "DC",
}


@pytest.fixture(scope="module")
def model() -> Classifier:
    return load_model(NAME)


@pytest.fixture(scope="module")
def cells() -> AnnData:
    """Counts of 765 genes, of cells that the model was not built from."""
    cells = demo_cells()
    scaled = np.expm1(cells.X.toarray().astype(np.float64))
    one_count = np.where(scaled > 0, scaled, np.inf).min(axis=1, keepdims=True)
    cells.X = np.rint(scaled / one_count).astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def table(model: Classifier, cells: AnnData) -> pd.DataFrame:
    return concerto_tf.annotate(model, cells)


@pytest.mark.slow
def test_cells_of_another_study_get_their_group(table: pd.DataFrame, cells: AnnData) -> None:
    truth = cells.obs[LABEL_KEY].astype(str).map(GROUPS).to_numpy()
    known = pd.notna(truth)
    told = ontology(NAME)["group"].reindex(table["predicted"]).to_numpy()
    assert np.mean(told[known] == truth[known]) > 0.8
    assert (table["label"] == "unknown").mean() < 0.3


def test_identifiers_of_every_form_are_known(model: Classifier) -> None:
    kept = model.exemplars
    assert kept is not None
    counts, genes = kept.counts["rna"], model.encoder.modality_inputs[0]
    shape = kept.n_cells, len(genes.vocabulary)
    matrix = sp.csr_matrix((counts.values.astype("f4"), counts.genes, counts.start), shape=shape)
    forms = [genes.symbols, genes.vocabulary, [f"{name}.3" for name in genes.vocabulary]]
    told = [
        concerto_tf.annotate(model, AnnData(matrix[:200], var=pd.DataFrame(index=list(names))))
        for names in forms
    ]
    truth = np.array(model.classes)[kept.label[:200]]
    assert np.mean(told[0]["predicted"] == truth) > 0.85
    for other in told[1:]:
        pd.testing.assert_frame_equal(other, told[0])


def test_each_type_has_a_group_and_an_identifier(model: Classifier) -> None:
    types = ontology(NAME)
    assert set(model.classes) <= set(types.index)
    assert types.loc[list(model.classes)].notna().all(axis=None)


def test_no_cell_is_given_away_and_the_file_is_small(model: Classifier) -> None:
    folder = shipped(NAME)
    assert folder is not None and model_file(NAME) == folder / "model.keras"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15e6
    assert (folder / "README.md").exists()


def test_a_model_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shipped(NAME)
    assert folder is not None
    shutil.copytree(folder, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert shipped(NAME) is None and model_file(NAME) == Path(NAME) / "model.keras"


def test_the_files_are_part_of_the_package() -> None:
    root = Path(concerto_tf.__file__).parent
    setup = configparser.ConfigParser()
    setup.read(root.parent / "setup.cfg")
    patterns = setup["options.package_data"]["concerto_tf"].split()
    packed = {path for pattern in patterns for path in root.glob(pattern)}
    for name in SHIPPED:
        assert {root / "models" / "shipped" / name / "model.keras"} <= packed
