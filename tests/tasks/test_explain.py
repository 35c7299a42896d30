"""Gene attention of cells and of groups of cells."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, save_model
from concerto_tf.numerics.specificity import GroupSums
from concerto_tf.pl.heatmap import heatmap
from concerto_tf.records import convert
from concerto_tf.tasks import explain as module
from concerto_tf.tasks.explain import explain
from concerto_tf.tasks.io import agreement

N_GENES = 40
GENES = list(range(3, N_GENES))
SMALL = {"units": 6, "hidden_units": 8, "attention_units": 4, "head_units": None}


def make_cells(n: int = 30, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    counts = rng.poisson(np.random.default_rng(9).gamma(0.3, 2.0, (3, N_GENES))[kind])
    counts[:, 5] = 1 + (np.arange(n) % 4)  # in every cell
    cells = AnnData(counts.astype("float32"))
    cells.obs_names = [f"cell{i}" for i in range(n)]
    cells.var_names = [f"AB{i}C" for i in range(N_GENES)]
    cells.obs["kind"] = pd.Categorical(np.array(["T", "B", "NK"])[kind])
    return cells


@pytest.fixture(scope="module")
def model() -> Concerto:
    made = Concerto(list(make_cells().var_names), genes=GENES, seed=3, **SMALL)
    rng = np.random.default_rng(1)
    made.networks.branches[0].attention.context.assign(2 * rng.normal(size=(4, 1)))
    made.networks.branches[0].attention.bias.assign(rng.normal(size=4))
    return made


def by_hand(model: Concerto, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention of equation 4 over that of a silent gene, and values, [cells, genes], float64."""
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))[
        :, list(model.modality_inputs[0].genes)
    ]
    layer = model.networks.branches[0].attention
    embeddings, kernel, bias, context = (
        np.float64(w.numpy()) for w in (layer.embeddings, layer.kernel, layer.bias, layer.context)
    )
    x = np.minimum(values, model.value_clip)
    score = np.tanh(x[..., None] * (embeddings @ kernel) + bias) @ context[:, 0]
    alpha = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    silent = np.tanh(bias) @ context[:, 0]
    return alpha * np.exp(score).sum(1, keepdims=True) / np.exp(silent), values


def dense(table: pd.DataFrame, rows: list[str], by: str, column: str) -> np.ndarray:
    names = [f"AB{i}C" for i in GENES]
    return table.pivot_table(column, by, "gene").reindex(rows)[names].to_numpy()


def test_a_silent_gene_has_attention_1_whatever_else_the_cell_expresses(model: Concerto) -> None:
    cells = make_cells()
    attention, values = by_hand(model, cells.X.astype("float64"))
    np.testing.assert_allclose(attention[values == 0], 1, atol=1e-12)
    assert attention.max() > 1.5 and attention.min() < 0.7  # so there is something to tell apart
    table = explain(model, cells, top=N_GENES)
    at = {name: i for i, name in enumerate(cells.obs_names)}
    row = table["cell"].map(at).to_numpy()
    gene = table["gene"].str[2:-1].astype(int).to_numpy() - GENES[0]
    assert len(table) == (values > 0).sum()
    np.testing.assert_allclose(table["attention"], attention[row, gene], rtol=2e-5)
    np.testing.assert_allclose(table["value"], values[row, gene], rtol=1e-5)
    np.testing.assert_allclose(table["weight"], (attention * values)[row, gene], rtol=3e-5)


def test_genes_of_a_cell_are_ranked_by_weight_and_cut(
    model: Concerto, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = make_cells()
    attention, values = by_hand(model, cells.X.astype("float64"))
    monkeypatch.setattr(agreement, "BATCH_CELLS", 7)  # 30 cells: the last batch is filled up
    table = explain(model, cells, top=4)
    assert list(table["cell"].unique()) == list(cells.obs_names)
    assert (table.groupby("cell").size() == 4).all()
    weight = np.sort(attention * values, axis=1)[:, ::-1][:, :4]
    np.testing.assert_allclose(table["weight"].to_numpy().reshape(30, 4), weight, rtol=3e-5)
    assert (table["rank"].to_numpy().reshape(30, 4) == [1, 2, 3, 4]).all()
    assert (explain(model, cells).groupby("cell").size() <= module.TOP_OF_A_CELL).all()


def test_groups_are_compared_with_all_other_cells(model: Concerto) -> None:
    cells = make_cells()
    attention, values = by_hand(model, cells.X.astype("float64"))
    weight = attention * values
    kind = cells.obs["kind"].to_numpy()
    kinds = ["B", "NK", "T"]
    table = explain(model, cells, groupby="kind")
    assert list(table.columns) == [
        *"group gene modality weight rank specificity attention value".split()
    ]
    assert list(table["group"].unique()) == kinds and len(table) == 3 * len(GENES)
    mean = np.stack([weight[kind == k].mean(0) for k in kinds])
    spread = np.stack([weight[kind == k].std(0) + weight[kind != k].std(0) for k in kinds])
    floor = np.quantile(spread[:, weight.any(0)], 0.05)
    rest = np.stack([weight[kind != k].mean(0) for k in kinds])
    want = (mean - rest) / (spread + floor)
    np.testing.assert_allclose(dense(table, kinds, "group", "weight"), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        dense(table, kinds, "group", "specificity"), want, rtol=1e-3, atol=1e-4
    )
    for column, per_cell in (("attention", attention), ("value", values)):
        of_group = np.stack([per_cell[kind == k].mean(0) for k in kinds])
        np.testing.assert_allclose(dense(table, kinds, "group", column), of_group, rtol=1e-4)
    for _, part in table.groupby("group", observed=True):
        assert list(part["rank"]) == list(range(1, len(GENES) + 1))
        assert part["specificity"].is_monotonic_decreasing
    top = explain(model, cells, groupby="kind", top=3)
    pd.testing.assert_frame_equal(top, table[table["rank"] <= 3].reset_index(drop=True))


def test_specificity_hardly_depends_on_a_genes_scale() -> None:
    rng = np.random.default_rng(0)
    factor = np.array([1, 10, 100, 1, 1, 1, 1, 1.0])
    group, x = np.repeat([0, 1], 50), rng.poisson(2.0, (100, 8))
    x[:, 0] += np.where(group == 0, 3, 0)
    x[:, 1:3] = x[:, :1]
    at = np.nonzero(x)
    sums = GroupSums(2, 8)
    sums.add(group, *at, (x * factor)[at])
    specificity = sums.specificity()[0]
    assert specificity[:3].min() > 2 * np.abs(specificity[3:]).max()
    np.testing.assert_allclose(specificity[1], specificity[2], rtol=0.2)


def test_every_way_in_gives_the_same_table_and_file(model: Concerto, tmp_path: Path) -> None:
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    save_model(model, tmp_path / "model.keras")
    records = convert(cells, tmp_path / "records", label_keys=["kind"])
    seen = []
    want = explain(model, cells, groupby="kind", progress=lambda *p: seen.append(p))
    assert seen == [(30, 30)]
    of_files = explain(
        tmp_path / "model.keras", str(tmp_path / "cells.h5ad"), tmp_path / "t.tsv", groupby="kind"
    )
    pd.testing.assert_frame_equal(of_files, want)
    of_records = explain(model, records, groupby="kind")
    pd.testing.assert_frame_equal(of_records, want, rtol=1e-5)
    written = pd.read_csv(tmp_path / "t.tsv", sep="\t", keep_default_na=False)
    pd.testing.assert_frame_equal(written, want, check_dtype=False, rtol=1e-5)


def test_cells_without_a_group_are_left_out(
    model: Concerto, caplog: pytest.LogCaptureFixture
) -> None:
    cells = make_cells()
    known = cells[cells.obs["kind"] != "T"].copy()
    cells.obs["kind"] = cells.obs["kind"].cat.remove_categories(["T"])
    with caplog.at_level(logging.INFO, "concerto_tf"):
        table = explain(model, cells, groupby="kind")
    assert "kind: 10 cells without a value are left out" in caplog.text
    pd.testing.assert_frame_equal(table, explain(model, known, groupby="kind"), rtol=1e-5)


def test_a_group_may_have_one_cell_and_a_group_may_be_alone(model: Concerto) -> None:
    cells = make_cells()
    cells.obs["own"] = ["one", *["rest"] * 29]
    table = explain(model, cells, groupby="own")
    attention, values = by_hand(model, cells.X.astype("float64"))
    one = table[table["group"] == "one"]
    np.testing.assert_allclose(
        dense(one, ["one"], "group", "weight")[0], (attention * values)[0], rtol=1e-4
    )
    assert np.isfinite(table["specificity"]).all()
    cells.obs["own"] = "all"
    alone = explain(model, cells, groupby="own")
    assert np.isfinite(alone["specificity"]).all() and alone["specificity"].iloc[0] > 0


def test_genes_that_were_not_measured_are_not_listed(model: Concerto) -> None:
    cells = make_cells()
    table = explain(model, cells[:, 5:].copy(), groupby="kind")
    assert sorted(set(table["gene"])) == sorted(f"AB{i}C" for i in range(5, N_GENES))
    assert table.groupby("group")["rank"].max().eq(N_GENES - 5).all()


def test_modalities_are_explained_side_by_side_and_by_the_cells_that_have_them(
    tmp_path: Path,
) -> None:
    cells = make_cells()
    rng = np.random.default_rng(2)
    proteins = [f"CD{i}" for i in range(5)]
    counts = 1.0 + rng.poisson(5.0, (30, 5))
    counts[:12] = 0  # these cells lack it
    cells.obsm["protein"] = pd.DataFrame(counts, index=cells.obs_names, columns=proteins)
    both = Concerto(
        list(cells.var_names),
        genes=GENES,
        modalities={"protein": {"vocabulary": proteins, "target_sum": 1e4}},
        **SMALL,
    )
    table = explain(both, cells, groupby="kind", figure=tmp_path / "map.png")
    assert table.groupby("modality").size().to_dict() == {"protein": 15, "rna": 3 * len(GENES)}
    protein = table[table["modality"] == "protein"]
    assert (protein.groupby("group")["rank"].max() == 5).all()
    values = np.log1p(1e4 * counts[12:] / counts[12:].sum(1, keepdims=True))
    kind = cells.obs["kind"].to_numpy()[12:]
    want = np.stack([values[kind == k].mean(0) for k in ("B", "NK", "T")])
    got = protein.pivot_table("value", "group", "gene")[proteins].to_numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4)
    by_cell = explain(both, cells, top=2)
    sizes = by_cell.groupby(["cell", "modality"]).size().unstack(fill_value=0)
    assert (sizes["rna"] == 2).all()
    assert (sizes["protein"].reindex(cells.obs_names) == np.repeat([0, 2], [12, 18])).all()
    # Cells without the modality altogether are explained by their genes.
    del cells.obsm["protein"]
    assert set(explain(both, cells, groupby="kind")["modality"]) == {"rna"}


def test_heatmap_shows_the_strongest_genes_of_each_group(model: Concerto, tmp_path: Path) -> None:
    table = explain(model, make_cells(), groupby="kind", figure=tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000
    heatmap(table[table["rank"] <= 2], tmp_path / "few.png")
    with pytest.raises(InputError, match="no groups"):
        heatmap(table.drop(columns="group"), tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.png", "map.png"]


def test_heatmap_of_many_groups_stays_readable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from matplotlib.image import imread

    table = pd.DataFrame(
        [
            {"group": f"g{i}", "gene": f"x{i}_{j}", "modality": "rna", "weight": 1.0, "rank": j + 1}
            for i in range(400)
            for j in range(5)
        ]
    )
    with caplog.at_level(logging.INFO, "concerto_tf"):
        heatmap(table, tmp_path / "map.png")
    assert "shows 80 of 400 groups, by 1 genes each" in caplog.text
    assert max(imread(tmp_path / "map.png").shape) < 5000


def test_the_kind_of_image_is_checked_before_any_work(model: Concerto, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="xyz is no kind of image"):
        explain(
            model,
            tmp_path / "no-such.h5ad",
            tmp_path / "t.tsv",
            groupby="kind",
            figure=tmp_path / "map.xyz",
        )
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_and_nothing_written(model: Concerto, tmp_path: Path) -> None:
    cells, out = make_cells(), tmp_path / "table.tsv"
    with pytest.raises(InputError, match="'cluster'"):
        explain(model, cells, out, groupby="cluster")
    records = convert(cells, tmp_path / "records")
    with pytest.raises(InputError, match=r"has no labels .kind.*label_keys=\['kind'\]"):
        explain(model, records, out, groupby="kind")
    cells.obs["barcode"] = [f"name{i}" for i in range(30)]
    module_most, module.MOST_GROUPS = module.MOST_GROUPS, 20
    try:
        with pytest.raises(InputError, match="30 different values"):
            explain(model, cells, out, groupby="barcode")
    finally:
        module.MOST_GROUPS = module_most
    cells.obs["none"] = pd.Categorical([None] * 30, ["a"])
    with pytest.raises(InputError, match="none"):
        explain(model, cells, out, groupby="none")
    with pytest.raises(InputError, match="top is 0"):
        explain(model, cells, out, top=0)
    with pytest.raises(InputError, match="name a column of obs with groupby"):
        explain(model, cells, out, figure=tmp_path / "map.png")
    with pytest.raises(InputError, match="no such folder"):
        explain(model, cells, tmp_path / "none" / "table.tsv")
    strange = cells.copy()
    strange.var_names = [f"ZZ{i}Y" for i in range(N_GENES)]
    with pytest.raises(InputError, match="only 0 of its 40 genes"):
        explain(model, strange, out)
    with pytest.raises(InputError, match="Sequential does not embed cells"):
        explain(keras.Sequential(), cells, out)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_model_whose_own_genes_are_not_in_the_cells_is_refused() -> None:
    cells = make_cells()
    looks_at_two = Concerto(list(cells.var_names), genes=[0, 1], **SMALL)
    with pytest.raises(InputError, match="none of the 2 genes that the model looks at"):
        explain(looks_at_two, cells[:, 2:].copy())
