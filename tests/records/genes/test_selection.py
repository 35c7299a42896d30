from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import scanpy as sc

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto
from concerto_tf.records import Records, Vocabulary, convert, highly_variable, resolve_genes
from concerto_tf.records.genes.gene_table import GeneStats


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Genes of very different means and dispersions, some of them absent."""
    random = np.random.default_rng(0)
    mean = np.exp(random.normal(-1.5, 1.5, 1500))
    mean[:20] = 0
    size = random.uniform(0.2, 5, 1500)
    counts = random.negative_binomial(size, size / (size + mean), (500, 1500))
    counts[:, 20] += 1
    var = [f"AB{i}C" for i in range(1500)]
    cells = anndata.AnnData(counts.astype(np.float32))
    cells.var_names = var
    return cells


@pytest.fixture(scope="module")
def records(cells: anndata.AnnData, tmp_path_factory) -> Records:
    return convert(cells, tmp_path_factory.mktemp("genes") / "r")


@pytest.mark.parametrize("n_top", [50, 300, 1000])
def test_same_genes_as_scanpy(cells: anndata.AnnData, records: Records, n_top: int) -> None:
    prepared = cells.copy()
    sc.pp.normalize_total(prepared, target_sum=1e4)
    sc.pp.log1p(prepared)
    sc.pp.filter_genes(prepared, min_cells=3)
    sc.pp.highly_variable_genes(prepared, n_top_genes=n_top, flavor="seurat")
    theirs = cells.var_names.get_indexer(prepared.var_names[prepared.var["highly_variable"]])
    ours = highly_variable(records.gene_stats, n_top)
    assert (np.diff(ours) > 0).all() and len(ours) == n_top
    assert len(np.intersect1d(ours, theirs)) >= 0.995 * n_top


def test_lognormalized_input_gives_the_same_genes(
    cells: anndata.AnnData, records: Records, tmp_path: Path
) -> None:
    prepared = cells.copy()
    sc.pp.normalize_total(prepared, target_sum=1e4)
    sc.pp.log1p(prepared)
    del prepared.uns["log1p"]
    lognorm = convert(prepared, tmp_path / "r")
    assert lognorm.units == "lognorm"
    ours = highly_variable(lognorm.gene_stats, 300)
    assert len(np.intersect1d(ours, highly_variable(records.gene_stats, 300))) >= 299


def test_absent_and_constant_genes_are_never_chosen() -> None:
    stats = GeneStats(np.array([0, 9, 9]), np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 2.0]))
    assert highly_variable(stats, 3).tolist() == [2]


def test_options(records: Records, tmp_path: Path) -> None:
    assert resolve_genes("all", records) is None
    assert resolve_genes("hvg:1500", records) is None
    assert len(resolve_genes("hvg:40", records)) == 40
    path = tmp_path / "genes.txt"
    path.write_text("AB7C\n\n AB3C \nAB3C\nnobody\n")
    assert resolve_genes(str(path), records).tolist() == [3, 7]


def test_symbols_count_as_names(tmp_path: Path, make_cells) -> None:
    symbols = tuple(f"S{i}" for i in range(60))
    like = Vocabulary(tuple(f"AB{i}C" for i in range(60)), symbols=symbols)
    records = convert(make_cells(20), tmp_path / "r", like=like)
    path = tmp_path / "genes.txt"
    path.write_text("S5\nAB2C\n")
    assert resolve_genes(str(path), records).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("hvg:0", "at least one gene"),
        ("hvg", "write hvg:2000"),
        ("hvg:many", "write hvg:2000"),
        ("/nowhere/genes.txt", "cannot be read"),
    ],
)
def test_options_that_do_not_fit(records: Records, wanted: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_genes(wanted, records)


@pytest.mark.parametrize("text", ["CD4\nCD8A\n", ""])
def test_a_list_without_any_of_the_genes(records: Records, tmp_path: Path, text: str) -> None:
    path = tmp_path / "genes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="none of its genes .*AB0C"):
        resolve_genes(str(path), records)


def test_variable_genes_are_those_that_all_inputs_have(
    cells: anndata.AnnData, tmp_path: Path, caplog
) -> None:
    first, second = cells[:250].copy(), cells[250:, 300:].copy()
    second.obs_names = [f"second{i}" for i in range(250)]
    joined = convert([first, second], tmp_path / "r")
    chosen = resolve_genes("hvg:1000", joined)
    assert len(chosen) == 1000 and chosen.min() >= 300
    # More than there are: all that both have and that are seen at all.
    assert resolve_genes("hvg:5000", joined).min() >= 300
    assert "read as zero" not in caplog.text
    assert resolve_genes("all", joined) is None
    assert "300 genes are not in all inputs and read as zero there" in caplog.text
    # None at all: the others are looked at.
    places = (range(200, 400), range(300, 500), [*range(200, 300), *range(400, 500)])
    parts = [cells[100 * i : 100 * i + 100, list(place)].copy() for i, place in enumerate(places)]
    none = convert(parts, tmp_path / "none", drop_empty=True)
    assert not (none.share_measured() == 1).any() and none.manifest.coverage == ()
    assert len(resolve_genes("hvg:100", none)) == 100


def test_share_of_a_gene_is_of_the_cells_that_were_measured_for_it(
    cells: anndata.AnnData, tmp_path: Path
) -> None:
    first, second = cells[:250].copy(), cells[250:, 300:].copy()
    second.obs_names = [f"second{i}" for i in range(250)]
    joined = convert([first, second], tmp_path / "r")
    share = np.array(Concerto.from_records(joined).modality_inputs[0].gene_share)
    alone = np.array(
        Concerto.from_records(convert(first, tmp_path / "first")).modality_inputs[0].gene_share
    )
    # Of 300 genes in 250 and all cells, whose means have an error of about a tenth.
    assert share[:300].sum() == pytest.approx(alone[:300].sum(), rel=0.3)
