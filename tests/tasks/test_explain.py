"""Contributions of genes to where cells and groups of cells lie, beside their attention."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, ContrastiveSC, Ensemble, save_model
from concerto_tf.pl.heatmap import heatmap
from concerto_tf.records import convert
from concerto_tf.tasks import explain as module
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.explain import explain
from concerto_tf.tasks.explanation import parts
from concerto_tf.tasks.explanation.readers import Reader
from concerto_tf.tasks.io import agreement

N_GENES = 40
GENES = list(range(3, N_GENES))
KINDS = ["B", "NK", "T"]
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
    norm = made.networks.branches[0].student_norm  # as of cells that it has seen
    norm.moving_count.assign([30.0])
    norm.moving_mean.assign(rng.uniform(0, 2, (1, len(GENES))))
    norm.moving_variance.assign(rng.uniform(0.5, 2, (1, len(GENES))))
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


def inputs_by_hand(model: Concerto, counts: np.ndarray) -> np.ndarray:
    """What the student takes in [cells, genes], float64."""
    [branch] = model.networks.branches
    values = by_hand(model, counts)[1]
    mean, variance = (np.float64(w.numpy()[0]) for w in branch.student_norm.moving_moments[1:])
    x = (values - mean) / np.sqrt(variance + model.input_epsilon)
    return np.clip(x, -model.value_clip, model.value_clip) * branch.input_gain


def contributions_by_hand(
    model: Concerto, x: np.ndarray, base: np.ndarray
) -> tuple[np.ndarray, float]:
    """Of each gene to the way from one mean input to another [genes], and the length of that."""
    kernel = np.float64(model.networks.student_dense.kernel.numpy())
    way = (x - base) @ kernel
    return (x - base) * (kernel @ way) / np.linalg.norm(way), float(np.linalg.norm(way))


def convert_of(cells: AnnData) -> list[dict[str, np.ndarray]]:
    """The cells as one minibatch of all genes."""
    genes = np.tile(np.arange(cells.n_vars, dtype=np.int32), (cells.n_obs, 1))
    return [{"genes": genes, "values": np.asarray(cells.X, np.float32)}]


def dense(table: pd.DataFrame, rows: list[str], by: str, column: str) -> np.ndarray:
    names = [f"AB{i}C" for i in GENES]
    return table.pivot_table(column, by, "gene", dropna=False).reindex(rows)[names].to_numpy()


def test_weights_of_a_group_add_up_to_its_way_in_the_embedding(
    model: Concerto, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = make_cells()
    x = inputs_by_hand(model, cells.X.astype("float64"))
    kind = cells.obs["kind"].to_numpy()
    monkeypatch.setattr(agreement, "BATCH_CELLS", 7)  # 30 cells: the last batch is filled up
    table = explain(model, cells, groupby="kind")
    z = np.float64(embed(model, cells))
    for group in KINDS:
        own = kind == group
        want, length = contributions_by_hand(model, x[own].mean(0), x[~own].mean(0))
        found = dense(table, [group], "group", "weight")[0]
        np.testing.assert_allclose(found, want, atol=1e-5 * length)
        assert found.sum() == pytest.approx(length, rel=1e-5)
        way = z[own].mean(0) - z[~own].mean(0)
        assert np.linalg.norm(way) == pytest.approx(length, rel=1e-4)


def test_weights_of_a_cell_add_up_to_its_distance_from_the_mean(model: Concerto) -> None:
    cells = make_cells()
    x = inputs_by_hand(model, cells.X.astype("float64"))
    table = explain(model, cells, top=N_GENES)
    assert (table.groupby("cell").size() == len(GENES)).all()
    found = dense(table, list(cells.obs_names), "cell", "weight")
    want, length = zip(*(contributions_by_hand(model, own, x.mean(0)) for own in x), strict=True)
    np.testing.assert_allclose(found, np.stack(want), atol=1e-5 * max(length))
    z = np.float64(embed(model, cells))
    np.testing.assert_allclose(found.sum(1), np.linalg.norm(z - z.mean(0), axis=1), rtol=1e-4)


def test_what_is_higher_than_elsewhere_ranks_first(model: Concerto) -> None:
    cells = make_cells()
    table = explain(model, cells, groupby="kind")
    x = inputs_by_hand(model, cells.X.astype("float64"))
    kind = cells.obs["kind"].to_numpy()
    for group, part in table.groupby("group", observed=True):
        assert list(part["rank"]) == list(range(1, len(GENES) + 1))
        gap = x[kind == group].mean(0) - x[kind != group].mean(0)
        higher = gap[[GENES.index(int(name[2:-1])) for name in part["gene"]]] > 0
        assert 0 < higher.sum() < len(GENES) and not np.diff(higher.astype(int)).max() > 0
        assert part["weight"][higher].is_monotonic_decreasing
    top = explain(model, cells, groupby="kind", top=3)
    pd.testing.assert_frame_equal(top, table[table["rank"] <= 3].reset_index(drop=True))
    of_cells = explain(model, cells)
    assert list(of_cells["cell"].unique()) == list(cells.obs_names)
    assert (of_cells.groupby("cell").size() == module.TOP_OF_A_CELL).all()


def test_expression_stands_beside_with_scanpys_test(model: Concerto) -> None:
    import scanpy as sc

    cells = make_cells()
    table = explain(model, cells, groupby="kind")
    own = cells.obs["kind"].to_numpy() == "NK"
    share = (cells.X[:, GENES] > 0)[own].mean(0), (cells.X[:, GENES] > 0)[~own].mean(0)
    for name, want in zip(("share_in", "share_out"), share, strict=True):
        np.testing.assert_allclose(dense(table, ["NK"], "group", name)[0], want, rtol=1e-5)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    cells = cells[:, GENES].copy()
    sc.tl.rank_genes_groups(cells, "kind", method="wilcoxon")
    found = sc.get.rank_genes_groups_df(cells, group="NK").set_index("names")
    names = [f"AB{i}C" for i in GENES]
    for name, of in (("log_fold_change", "logfoldchanges"), ("p_adjusted", "pvals_adj")):
        np.testing.assert_allclose(
            dense(table, ["NK"], "group", name)[0], found.loc[names, of], rtol=1e-3, atol=1e-6
        )


def test_attention_stands_beside_where_the_teacher_was_trained(model: Concerto) -> None:
    cells = make_cells()
    attention, values = by_hand(model, cells.X.astype("float64"))
    np.testing.assert_allclose(attention[values == 0], 1, atol=1e-12)  # of a silent gene
    assert attention.max() > 1.5 and attention.min() < 0.7  # so there is something to tell apart
    table = explain(model, cells, groupby="kind")
    assert list(table.columns) == [
        *"group gene modality weight rank share_in share_out log_fold_change p_adjusted".split(),
        *"value attention specificity".split(),
    ]
    weight, kind = attention * values, cells.obs["kind"].to_numpy()
    mean, rest = (
        np.stack([weight[of(k)].mean(0) for k in KINDS])
        for of in (lambda k: kind == k, lambda k: kind != k)
    )
    spread = np.stack([weight[kind == k].std(0) + weight[kind != k].std(0) for k in KINDS])
    want = (mean - rest) / (spread + np.quantile(spread[:, weight.any(0)], 0.05))
    found = dense(table, KINDS, "group", "specificity")
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4)
    for column, per_cell in (("attention", attention), ("value", values)):
        of_group = np.stack([per_cell[kind == k].mean(0) for k in KINDS])
        np.testing.assert_allclose(dense(table, KINDS, "group", column), of_group, rtol=1e-4)
    of_cells = explain(model, cells, top=N_GENES)
    found = dense(of_cells, list(cells.obs_names), "cell", "attention")
    np.testing.assert_allclose(found, attention, rtol=2e-5)
    untrained = Concerto(list(cells.var_names), genes=GENES, **SMALL)
    for groupby in ("kind", None):
        assert not {"attention", "specificity"} & set(explain(untrained, cells, groupby=groupby))


@pytest.mark.parametrize(
    "options", [{"readout": "teacher"}, {"readout": "both"}, {"readout_activation": "relu"}]
)
def test_past_linear_it_is_integrated_gradients(options: dict) -> None:
    """Which are complete: they add up to how far cells lie from the embedding of the mean cell."""
    cells = make_cells()
    made = Concerto(list(cells.var_names), genes=GENES, seed=3, **SMALL, **options)
    made.networks.branches[0].student_norm.moving_variance.assign(np.ones((1, len(GENES))))
    table = explain(made, cells, groupby="kind")
    reader = Reader(made)
    [batch] = convert_of(cells)
    x, z = np.float64(reader.inputs(batch)), np.float64(made(batch))
    np.testing.assert_allclose(reader.read(reader.inputs(batch), batch), z, rtol=1e-4, atol=1e-5)
    own = cells.obs["kind"].to_numpy() == "T"
    way = z[own].mean(0) - z[~own].mean(0)
    mean = np.tile(x[~own].mean(0, keepdims=True), (30, 1)).astype("float32")
    from_there = np.float64(reader.read(mean, batch))[0]
    want = (z[own].mean(0) - from_there) @ way / np.linalg.norm(way)
    found = table[table["group"] == "T"]["weight"].sum()
    assert found == pytest.approx(want, rel=0.02)


def test_other_methods_and_ensembles_are_explained() -> None:
    cells = make_cells()
    single = Concerto(list(cells.var_names), genes=GENES, seed=3, **SMALL)
    joined = explain(Ensemble([single]), cells, groupby="kind")
    alone = explain(single, cells, groupby="kind")
    # By another way, of values and not of standardized ones; none here is clipped.
    pd.testing.assert_frame_equal(joined, alone, rtol=1e-3, atol=1e-4)
    dense_model = ContrastiveSC(list(cells.var_names), backbone=(8, 4), components=0)
    table = explain(dense_model, cells, groupby="kind", top=4)
    assert len(table) == 12 and np.isfinite(table["weight"]).all()


def test_every_way_in_gives_the_same_table_and_file(model: Concerto, tmp_path: Path) -> None:
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    save_model(model, tmp_path / "model.keras")
    records = convert(cells, tmp_path / "records", label_keys=["kind"])
    seen = []
    want = explain(model, cells, groupby="kind", progress=lambda *p: seen.append(p))
    assert seen[-1] == (30, 30)
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


def test_a_group_may_have_one_cell_and_a_group_may_be_alone(
    model: Concerto, caplog: pytest.LogCaptureFixture
) -> None:
    cells = make_cells()
    cells.obs["own"] = ["one", *["rest"] * 29]
    table = explain(model, cells, groupby="own")
    x = inputs_by_hand(model, cells.X.astype("float64"))
    want, length = contributions_by_hand(model, x[0], x[1:].mean(0))
    one = table[table["group"] == "one"]
    found = dense(one, ["one"], "group", "weight")[0]
    np.testing.assert_allclose(found, want, atol=1e-5 * length)
    assert one["p_adjusted"].isna().all()  # one cell is no sample to test
    assert np.isfinite(table["specificity"]).all()
    cells.obs["own"] = "all"
    with caplog.at_level(logging.WARNING, "concerto_tf"):
        alone = explain(model, cells, groupby="own")
    assert "own: one group, and no others" in caplog.text
    assert (alone["weight"] == 0).all() and alone["specificity"].iloc[0] > 0


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
    z, own = np.float64(embed(both, cells)), cells.obs["kind"].to_numpy() == "B"
    length = np.linalg.norm(z[own].mean(0) - z[~own].mean(0))
    assert table[table["group"] == "B"]["weight"].sum() == pytest.approx(length, rel=1e-4)
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
    with pytest.raises(InputError, match=r"has no label .kind.*label_keys=\['kind'\]"):
        explain(model, records, out, groupby="kind")
    cells.obs["barcode"] = [f"name{i}" for i in range(30)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST_GROUPS", 20)
        with pytest.raises(InputError, match="30 different values"):
            explain(model, cells, out, groupby="barcode")
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
