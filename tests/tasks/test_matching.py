"""Queries of fewer genes, less depth or with a shift, beside references measured whole."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.models import Concerto, load_model
from concerto_tf.models.classifier import Classifier
from concerto_tf.records import convert
from concerto_tf.tasks import matching
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.impute import impute
from concerto_tf.tasks.map import map
from concerto_tf.tasks.train import train

N_GENES, TYPES = 200, ("A", "B", "C", "D", "E", "F")


def make_cells(n: int, seed: int, types: tuple[str, ...] = TYPES) -> AnnData:
    """Types that differ in a fifth of the genes by a factor of 4, and a protein for each."""
    fixed = np.random.default_rng(7)
    base = fixed.gamma(1.0, 1.5, N_GENES)
    profile = {t: base * np.where(fixed.random(N_GENES) < 0.2, 4.0, 1.0) for t in TYPES}
    rng = np.random.default_rng(seed)
    of = np.array(types)[rng.integers(0, len(types), n)]
    counts = rng.poisson(np.stack([profile[t] for t in of])).astype("f4")
    cells = AnnData(
        counts,
        pd.DataFrame({"type": pd.Categorical(of)}, index=[f"{seed}-{i}" for i in range(n)]),
        pd.DataFrame(index=[f"AB{i}C" for i in range(N_GENES)]),
    )
    protein = rng.poisson(50 * (of[:, None] == np.array(TYPES)) + 2).astype("f4")
    cells.obsm["protein"] = pd.DataFrame(protein, cells.obs_names, list(TYPES))
    return cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matching")
    make_cells(360, 0).write_h5ad(folder / "reference.h5ad")
    records = convert(folder / "reference.h5ad", folder / "records", label_keys=["type"])
    options = {"units": 8, "hidden_units": 24, "attention_units": 4, "components": 8}
    train(records, folder / "model", genes="all", epochs=1, options={**options, "head_units": 8})
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Concerto:
    return load_model(folder / "model")


@pytest.fixture(scope="module")
def fine(folder: Path) -> Classifier:
    given = {"label_key": "type", "epochs": 20, "learning_rate": 0.01}
    finetune(folder / "model", folder / "records", folder / "fine", **given)
    return load_model(folder / "fine")


def right(table: pd.DataFrame, query: AnnData, column: str = "predicted") -> float:
    return float((table[column].to_numpy() == query.obs["type"].to_numpy()).mean())


def test_a_panel_of_genes_is_compared_with_the_panel_of_the_reference(
    folder: Path, loaded: Concerto
) -> None:
    query = make_cells(240, 1)[:, 150:].copy()
    table = map(loaded, query, reference=folder / "reference.h5ad", label_key="type")
    assert right(table, query) > 0.7
    # As like the reference as cells of all genes are, whose p-values are no less than uniform.
    assert (table["label"] == "unknown").mean() < 0.2
    assert table["novelty"].mean() > 0.4
    assert any("reference cells are looked at in the same way" in s for s in table.attrs["report"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_LEAST_GENES", 0.0)
        before = map(loaded, query, reference=folder / "reference.h5ad", label_key="type")
    assert abs(before["novelty"].mean() - 0.5) > 0.15


def test_a_shallow_query_is_compared_with_a_thinned_reference(
    folder: Path, loaded: Concerto
) -> None:
    query = make_cells(240, 2)
    query.X = np.random.default_rng(0).binomial(query.X.astype(int), 0.2).astype("f4")
    table = map(loaded, query, reference=folder / "reference.h5ad", label_key="type")
    assert right(table, query, "label") > 0.75
    assert any("of the reference's depth" in line for line in table.attrs["report"])


def test_a_query_measured_alike_is_compared_with_the_reference_as_it_is(
    folder: Path, loaded: Concerto
) -> None:
    query = make_cells(120, 3)
    given = {"reference": folder / "reference.h5ad", "label_key": "type"}
    as_is = map(loaded, query, adapt="none", **given)
    auto = map(loaded, query, **given)
    pd.testing.assert_frame_equal(as_is, auto)
    assert len(auto.attrs["report"]) == 1


@pytest.mark.parametrize("types", [TYPES, ("A", "B"), ("C",)], ids=str)
def test_a_shift_is_noticed_and_taken_back(
    folder: Path, loaded: Concerto, types: tuple[str, ...]
) -> None:
    query = make_cells(240, 4, types)
    bias = np.exp(np.random.default_rng(1).normal(0, 0.9, N_GENES))
    query.X = np.random.default_rng(2).poisson(query.X * bias).astype("f4")
    given = {"reference": folder / "reference.h5ad", "label_key": "type"}
    frozen, auto = (map(loaded, query, adapt=how, **given) for how in ("none", "auto"))
    gain = 0.0 if types == ("C",) else 0.2  # which lies near no other type
    assert right(auto, query, "label") >= max(0.45, right(frozen, query, "label") + gain)
    assert types == ("C",) or any("lay off as a whole" in s for s in auto.attrs["report"])


def test_the_kept_reference_says_that_its_cells_are_needed(folder: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(folder / "model", tmp_path / "model")
    whole = make_cells(60, 5)
    map(model, whole, reference=folder / "reference.h5ad", label_key="type")
    table = map(model, whole[:, :60].copy(), label_key="type")
    assert any("again" in line for line in table.attrs["report"])


def test_values_are_imputed_from_what_both_were_measured_for(
    folder: Path, loaded: Concerto
) -> None:
    query = make_cells(240, 6)[:, 150:].copy()
    truth = np.log1p(query.obsm.pop("protein").to_numpy())
    given = {"reference": folder / "reference.h5ad", "modalities": {"protein": "obsm:protein"}}
    seen = impute(loaded, query, **given)["protein"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_LEAST_GENES", 0.0)
        before = impute(loaded, query, **given)["protein"]
    r = [np.corrcoef(found.to_numpy().ravel(), truth.ravel())[0, 1] for found in (before, seen)]
    assert r[1] > 0.85 and r[1] > r[0] - 0.01


def test_of_a_large_reference_as_many_cells_of_each_label_are_looked_at(
    folder: Path, loaded: Concerto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_MOST_CELLS", 60)
    query = make_cells(120, 7)[:, 100:].copy()
    table = map(loaded, query, reference=folder / "reference.h5ad", label_key="type")
    assert right(table, query) > 0.8
    cells = anndata.io.read_h5ad(folder / "reference.h5ad")
    codes = cells.obs["type"].cat.codes.to_numpy()
    from concerto_tf.reference.cells import Labels, Reference

    labels = Labels(codes.astype("int32"), TYPES)
    chosen = matching._some(Reference(np.eye(360, 4) + 1, {"type": labels}), 360, 0)
    assert set(np.bincount(codes[chosen])) == {10} and len(chosen) == 60


# --- by a classifier ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["panel", "depth"])
def test_a_classifier_learns_anew_what_the_query_shows(fine: Classifier, what: str) -> None:
    query = make_cells(240, 11)
    if what == "panel":
        query = query[:, 150:].copy()
    else:
        query.X = np.random.default_rng(0).binomial(query.X.astype(int), 0.2).astype("f4")
    table = annotate(fine, query)
    assert right(table, query) > 0.75
    # As like the known types as cells measured wholly are, whose p-values are uniform.
    assert (table["label"] == "unknown").mean() < 0.2 and table["novelty"].mean() > 0.3
    assert any("looked at in the same way" in line for line in table.attrs["report"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_LEAST_GENES", 0.0)
        patch.setattr(matching, "_LEAST_DEPTH", 0.0)
        before = annotate(fine, query, adapt="none")
    assert right(table, query, "label") > right(before, query, "label") + 0.05


def test_what_learned_anew_knows_no_other_types(fine: Classifier) -> None:
    cells = make_cells(200, 13)
    new = np.arange(200) % 4 == 0
    cells.X[new] = cells.X[new][:, np.random.default_rng(0).permutation(N_GENES)]
    table = annotate(fine, cells[:, 100:].copy())
    unknown = (table["label"] == "unknown").to_numpy()
    assert unknown[new].mean() > 0.6 and unknown[~new].mean() < 0.25


def test_a_classifier_takes_a_shift_back(fine: Classifier) -> None:
    query = make_cells(240, 14)
    bias = np.exp(np.random.default_rng(1).normal(0, 0.9, N_GENES))
    query.X = np.random.default_rng(2).poisson(query.X * bias).astype("f4")
    found = {how: annotate(fine, query, adapt=how) for how in ("none", "auto", "source")}
    delivered = {how: right(table, query, "label") for how, table in found.items()}
    assert min(right(table, query, "predicted") for table in found.values()) > 0.95
    assert min(delivered["auto"], delivered["source"]) > delivered["none"] + 0.15
    assert any("lay off as a whole" in line for line in found["auto"].attrs["report"])
    same = make_cells(240, 15)
    pd.testing.assert_frame_equal(annotate(fine, same), annotate(fine, same, adapt="none"))


def test_exemplars_are_kept_as_they_were(fine: Classifier, folder: Path) -> None:
    cells = anndata.io.read_h5ad(folder / "reference.h5ad")
    kept = fine.exemplars
    assert kept is not None and kept.n_cells == cells.n_obs
    codes = cells.obs["type"].cat.codes.to_numpy()
    sums = np.zeros((len(TYPES), N_GENES))
    for batch in kept:
        real = batch["row"] >= 0
        rows = batch["row"][real]
        dense = np.zeros((len(rows), N_GENES))
        np.put_along_axis(dense, batch["genes"][real], 0, 1)
        for i, (genes, values) in enumerate(
            zip(batch["genes"][real], batch["values"][real], strict=True)
        ):
            np.add.at(dense[i], genes, values)
        np.add.at(sums, kept.label[rows], dense)
    want = np.stack([cells.X[codes == code].sum(axis=0) for code in range(len(TYPES))])
    np.testing.assert_array_equal(sums, want)
    assert len(fine.calibration) == kept.held_out.sum()
    assert np.array_equal(type(kept).unpack(kept.pack()).label, kept.label)


def test_a_model_that_keeps_no_cells_says_that_it_cannot(folder: Path) -> None:
    none = finetune(
        folder / "model", folder / "records", folder / "none", label_key="type", epochs=1,
        keep_cells=False,
    )  # fmt: skip
    assert none.exemplars is None and load_model(folder / "none").exemplars is None
    table = annotate(none, make_cells(60, 16)[:, :60].copy())
    assert any("keeps no cells" in line for line in table.attrs["report"])
