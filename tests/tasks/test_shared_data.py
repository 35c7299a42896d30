"""What the issue's real data must give; skipped where the data sets are not there."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest

from concerto_tf.records import convert
from concerto_tf.tasks.map import map as map_query
from concerto_tf.tasks.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lines(shared_data: Path) -> anndata.AnnData:
    return anndata.read_h5ad(shared_data / "cellbench_cell_lines.h5ad")


@pytest.fixture(scope="module")
def trained(lines: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A model of the three cell lines of CEL-seq2, and its records."""
    folder = tmp_path_factory.mktemp("celseq2")
    reference = lines[lines.obs["batch"] == "sc_celseq2"].copy()
    records = convert(reference, folder / "records", label_keys=["cell_type"])
    return train(records, folder / "model"), records


def test_drop_seq_maps_onto_cel_seq2_frozen(lines: anndata.AnnData, trained: tuple) -> None:
    query = lines[lines.obs["batch"] == "sc_dropseq"].copy()
    table = map_query(trained[0], query, reference=trained[1], label_key="cell_type")
    assert (table["predicted"] == query.obs["cell_type"].astype(str)).mean() >= 0.99
    # At an alpha of 0.1; 0.05 here.
    assert (table["label"] == "unknown").mean() < 0.1


def test_lines_that_the_reference_lacks_are_unknown(lines: anndata.AnnData, trained: tuple) -> None:
    query = lines[lines.obs["batch"] == "sc_celseq2_5cl_p1"].copy()
    table = map_query(trained[0], query, reference=trained[1], label_key="cell_type")
    new = query.obs["cell_type"].isin(["A549", "H838"]).to_numpy()
    assert (table["label"] == "unknown")[new].mean() > 0.9
    known = query.obs["cell_type"].astype(str)[~new]
    assert (table["predicted"][~new] == known).mean() >= 0.99
    # Of known lines on a plate of another protocol more than alpha is rejected: 0.13 here.
    assert (table["label"] == "unknown")[~new].mean() < 0.2


def test_genes_that_are_missing_do_not_change_the_labels(
    lines: anndata.AnnData, trained: tuple
) -> None:
    query = lines[lines.obs["batch"] == "sc_dropseq"].copy()
    kept = np.random.default_rng(0).random(query.n_vars) < 0.5
    part = query[:, kept].copy()
    table = map_query(trained[0], part, reference=trained[1], label_key="cell_type")
    assert (table["predicted"] == query.obs["cell_type"].astype(str)).mean() >= 0.99
    assert (table["label"] == "unknown").mean() < 0.1
    [line] = [line for line in table.attrs["report"] if "missing" in line]
    assert f"{(~kept).sum():,} missing (not measured)" in line


def test_another_species_maps_through_orthologs(
    lines: anndata.AnnData, trained: tuple, shared_data: Path, tmp_path: Path
) -> None:
    """The query under the names of its genes' mouse orthologs."""
    import pandas as pd

    pairs = pd.read_csv(shared_data / "human_mouse_orthologs.csv")
    single = pairs[~pairs["human"].duplicated(keep=False) & ~pairs["mouse"].duplicated(keep=False)]
    mouse_of = dict(zip(single["human"], single["mouse"], strict=True))
    query = lines[lines.obs["batch"] == "sc_dropseq"].copy()
    query = query[:, [name in mouse_of for name in query.var_names]].copy()
    query.var_names = [mouse_of[name] for name in query.var_names]
    table = map_query(
        trained[0],
        query,
        tmp_path / "out.h5ad",
        reference=trained[1],
        label_key="cell_type",
        orthologs=shared_data / "human_mouse_orthologs.csv",
    )
    assert (table["predicted"] == query.obs["cell_type"].astype(str).to_numpy()).mean() >= 0.99
    assert any("orthologs" in line for line in table.attrs["report"])
