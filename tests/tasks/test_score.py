"""Gene-set scores."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.tasks import score as module
from concerto_tf.tasks.score import GENE_SETS, gene_sets, score

EXHAUSTION = list(GENE_SETS["exhaustion"])


def make_cells(n: int = 40, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    names = [*EXHAUSTION, *(f"AB{i}C" for i in range(15))]
    counts = rng.poisson(rng.gamma(0.5, 2.0, (n, len(names))))
    counts[:, 5:7] += 1  # a gene that no cell lacks, and one that is the same everywhere
    counts[:, 7] = 0
    cells = AnnData(sp.csr_matrix(counts.astype("float32")))
    cells.obs_names, cells.var_names = [f"cell{i}" for i in range(n)], names
    return cells


def by_hand(counts: np.ndarray, columns: list[int]) -> np.ndarray:
    """The score as the paper words it, gene after gene."""
    x = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    total = np.zeros(len(x))
    for column in columns:
        low, high = x[:, column].min(), x[:, column].max()
        if high > low:
            total += (x[:, column] - low) / (high - low)
    return total


def test_values_are_log_normalized_scaled_by_gene_and_summed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = make_cells()
    counts = cells.X.toarray().astype("float64")
    monkeypatch.setattr(module, "_CHUNK_CELLS", 7)  # a gene's range is that of all chunks
    table = score(cells, {"exhaustion": EXHAUSTION, "mixed": ["AB0C", "AB2C", "PDCD1"]})
    assert list(table.index) == list(cells.obs_names)
    np.testing.assert_allclose(table["exhaustion"], by_hand(counts, [0, 1, 2, 3, 4]), atol=1e-12)
    np.testing.assert_allclose(table["mixed"], by_hand(counts, [5, 7, 0]), atol=1e-12)
    assert table["mixed"].between(0, 3).all()


def test_a_cell_scores_above_0_where_it_expresses_any_gene_of_the_set() -> None:
    cells = make_cells()
    any_of = np.asarray((cells[:, EXHAUSTION].X > 0).sum(1)).ravel() > 0
    assert 0 < any_of.sum()
    np.testing.assert_array_equal(score(cells, "exhaustion")["exhaustion"] > 0, any_of)


def test_normalized_values_are_used_as_they_are() -> None:
    cells = make_cells()
    want = score(cells, "exhaustion")
    counts = cells.X.toarray()
    cells.X = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype("float32")
    np.testing.assert_allclose(score(cells, "exhaustion"), want, atol=1e-5)
    cells.layers["counts"] = counts
    pd.testing.assert_frame_equal(score(cells, "exhaustion", layer="counts"), want)


def test_cells_without_counts_score_0() -> None:
    cells = make_cells()
    counts = cells.X.toarray()
    counts[3] = 0
    cells.X = counts
    table = score(cells, "exhaustion")
    assert table["exhaustion"].iloc[3] == 0 and np.isfinite(table["exhaustion"]).all()


def test_scores_go_into_a_copy_of_the_file(tmp_path: Path) -> None:
    cells = make_cells()
    cells.uns["note"] = "mine"
    cells.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "sets.gmt").write_text("one/two\tof mine\tPDCD1\tAB1C\n\nb\t\tAB2C\t\n")
    table = score(tmp_path / "in.h5ad", tmp_path / "sets.gmt", tmp_path / "out.h5ad")
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert written.uns["note"] == "mine"
    for name in ("one_two", "b"):
        np.testing.assert_array_equal(written.obs[f"concerto_score_{name}"], table[name])


def test_sets_are_read_from_names_lists_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# of mine\nA\n B \r\n\nA\n")
    (tmp_path / "sets.gmt").write_text("x\thttp\tA\tB\ny\t\tC\n")
    assert gene_sets("exhaustion") == {"exhaustion": EXHAUSTION}
    assert gene_sets(["A", "B", "A"]) == {"set": ["A", "B"]}
    assert gene_sets(["A"], name="mine") == {"mine": ["A"]}
    assert gene_sets(tmp_path / "mine.txt") == {"mine": ["A", "B"]}
    assert gene_sets(str(tmp_path / "mine.txt"), name="other") == {"other": ["A", "B"]}
    assert gene_sets(tmp_path / "sets.gmt") == {"x": ["A", "B"], "y": ["C"]}
    assert gene_sets(tmp_path / "sets.gmt", name="y") == {"y": ["C"]}


def test_genes_are_found_by_symbol_where_the_ids_are_something_else() -> None:
    cells = make_cells()
    want = score(cells, "exhaustion")
    cells.var["gene_symbols"] = list(cells.var_names)
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    pd.testing.assert_frame_equal(score(cells, "exhaustion"), want)


def test_missing_genes_are_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cells = make_cells()
    want = score(cells, ["PDCD1", "LAG3"])
    with caplog.at_level(logging.WARNING, "concerto_tf"):
        table = score(cells, ["PDCD1", "CD8A", "LAG3", "TOX"])
    assert table.attrs["missing"] == {"set": ["CD8A", "TOX"]}
    assert "2 of the 4 genes of set are missing and left out: CD8A, TOX" in caplog.text
    pd.testing.assert_frame_equal(table, want)


@pytest.mark.parametrize(
    ("genes", "name", "message"),
    [
        (["CD8A", "TOX"], None, r"no gene of the set 'set' \(CD8A, TOX.*called PDCD1"),
        ([], None, "'set' is empty"),
        ([" "], None, "'set' is empty"),
        ({}, None, "is empty"),
        ({"a": []}, None, "'a' is empty"),
        ({"a": ["X"]}, "b", "no gene set 'b'.*there are: a"),
        ("exhausted", None, r"neither a gene set that goes by name \(exhaustion\) nor a file"),
    ],
)
def test_unsuitable_sets_are_refused(
    genes: object, name: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        score(make_cells(), genes, tmp_path / "out.h5ad", name=name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["x\tonly a description\n", "x\t\tA\nx\t\tB\n", "\t\tA\n"])
def test_broken_gmt_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sets.gmt").write_text(text)
    with pytest.raises(InputError, match=r"line \d is no gene set in GMT format"):
        gene_sets(tmp_path / "sets.gmt")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n# nothing\n")
    with pytest.raises(InputError, match="'none' is empty"):
        gene_sets(tmp_path / "none.txt")
