"""Imputation of a modality from reference neighbours."""

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
from concerto_tf.models import Concerto, load_model, save_model
from concerto_tf.records import convert
from concerto_tf.reference.cells import Reference, Values
from concerto_tf.reference.files import load_reference
from concerto_tf.tasks.impute import SHARPNESS, impute, smooth
from concerto_tf.tasks.io.reading import Reading
from concerto_tf.tasks.reference import find_reference, model_folder, read_values

N_GENES = 60
PROTEINS = ["CD3", "CD19", "CD14"]


def make_cells(n: int = 200, seed: int = 0, protein: bool = True) -> AnnData:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    profiles = np.random.default_rng(9).gamma(0.5, 4.0, (3, N_GENES))
    counts = rng.poisson(profiles[kind])
    counts[:, 0] += 1
    cells = AnnData(
        counts.astype("f4"),
        pd.DataFrame({"type": kind.astype(str)}, [f"c{i}" for i in range(n)]),
        pd.DataFrame(index=[f"AB{i}C" for i in range(N_GENES)]),
    )
    if protein:
        levels = rng.poisson(np.array([[100, 5, 5], [5, 100, 5], [5, 5, 100]])[kind])
        cells.obsm["protein"] = pd.DataFrame(levels, cells.obs_names, PROTEINS)
    return cells


@pytest.fixture(scope="module")
def model() -> Concerto:
    """An RNA model; its start from principal components embeds well enough without training."""
    made = Concerto(
        list(make_cells(2).var_names),
        sources=("all",),
        units=8,
        hidden_units=16,
        attention_units=4,
        head_units=None,
        components=6,
    )
    batch = {
        "genes": np.tile(np.arange(N_GENES, dtype=np.int32), (200, 1)),
        "values": np.asarray(make_cells().X),
    }
    made.initialize([batch])
    made.calibrate([batch])
    return made


def test_smoothing_is_a_weighted_mean_and_what_a_line_says_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    z, query, values = rng.normal(size=(50, 4)), rng.normal(size=(7, 4)), rng.normal(size=(50, 3))
    reference = Reference(
        z,
        values={
            "dense": Values(values.astype("f4"), tuple("abc"), "as given"),
            "sparse": Values(sp.csr_matrix(values, dtype="f4"), tuple("abc"), "as given"),
        },
    )
    cosine = (query @ z.T) / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(z, axis=1)
    centered = z - z.mean(0)
    square = centered.T @ centered
    slope = np.linalg.solve(
        square + np.trace(square) / 4 * np.eye(4), centered.T @ (values - values.mean(0))
    )
    want = np.zeros((7, 3))
    for i in range(7):
        near = np.argsort(-cosine[i])[:6]
        weight = np.exp(cosine[i, near] / SHARPNESS)
        weight /= weight.sum()
        want[i] = weight @ values[near] + (query[i] - weight @ z[near]) @ slope
    want = np.maximum(want, values.min())
    for name in ("dense", "sparse"):
        np.testing.assert_allclose(smooth(reference, query, name, 6), want, rtol=1e-3, atol=1e-4)


def test_what_is_imputed_is_not_negative_where_nothing_measured_is() -> None:
    z = np.random.default_rng(0).normal(size=(60, 3))
    counts = np.maximum(2 * z[:, :1], 0).astype("f4")
    reference = Reference(z, values={"protein": Values(counts, ("a",), "as given")})
    assert smooth(reference, -9 * np.eye(3), "protein", 10).min() == 0


def test_values_are_normalized_and_in_the_order_of_the_cells(tmp_path: Path) -> None:
    cells = make_cells()
    records = convert(cells, tmp_path / "r", modalities={"protein": "obsm:protein"}, shards=3)
    counts = cells.obsm["protein"].to_numpy(float)
    want = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    values = read_values(records, "protein")
    np.testing.assert_allclose(values.matrix, want, rtol=1e-5)
    assert values.features == tuple(PROTEINS) and "10,000 per cell" in values.units


@pytest.mark.parametrize("scale", ["clr", "counts"])
def test_values_are_on_the_scale_that_is_asked_for(
    model: Concerto, tmp_path: Path, scale: str
) -> None:
    cells = make_cells()
    counts = cells.obsm["protein"].to_numpy(float)
    ratio = np.log((1 + counts) / np.exp(np.log(1 + counts).mean(1, keepdims=True)))
    want = ratio if scale == "clr" else counts
    records = convert(cells, tmp_path / "r", modalities={"protein": "obsm:protein"}, shards=3)
    np.testing.assert_allclose(read_values(records, "protein", scale).matrix, want, atol=1e-5)
    # Each query cell is a reference cell; its nearest is itself.
    make_cells(protein=False).write_h5ad(tmp_path / "query.h5ad")
    save_model(model, tmp_path / "model.keras")
    given = {"query": tmp_path / "query.h5ad", "out": tmp_path / "out.h5ad"}
    found = impute(tmp_path, **given, reference=records, k=1, scale=scale)["protein"]
    near = np.abs(found.to_numpy() - want).mean(axis=0)
    assert (near < 0.15 * want.std(axis=0)).all(), near
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    told = {"clr": "centered log ratio", "counts": "counts"}[scale]
    assert written.uns["concerto_imputed"]["protein"].startswith(told)
    assert written.uns["concerto"]["imputed"]["protein"].startswith(told)
    # What is kept has that scale, and is told from another.
    again = impute(tmp_path, tmp_path / "query.h5ad", k=1)["protein"]
    np.testing.assert_allclose(again, found, atol=1e-6)
    with pytest.raises(InputError, match="leave out the scale, or give the reference's cells"):
        impute(tmp_path, tmp_path / "query.h5ad", scale="log")
    log = impute(tmp_path, tmp_path / "query.h5ad", reference=records, k=1)["protein"]
    assert "10,000 per cell" in log.attrs["units"] and log.to_numpy().max() > 8
    with pytest.raises(InputError, match="no scale 'ln'; choose one of log, clr, counts"):
        impute(tmp_path, tmp_path / "query.h5ad", reference=make_cells(), scale="ln")


def test_what_is_no_counts_has_no_other_scale(model: Concerto) -> None:
    reference = make_cells()
    reference.obsm["protein"] = np.log1p(reference.obsm["protein"])
    query = make_cells(30, seed=2, protein=False)
    assert impute(model, query, reference=reference)["protein"].attrs["units"] == "as given"
    with pytest.raises(InputError, match="protein: holds no counts, so there is no clr"):
        impute(model, query, reference=reference, scale="clr")


def test_protein_of_cells_that_were_given_only_rna(model: Concerto, tmp_path: Path) -> None:
    make_cells().write_h5ad(tmp_path / "reference.h5ad")
    measured = make_cells(80, seed=1)
    make_cells(80, seed=1, protein=False).write_h5ad(tmp_path / "query.h5ad")
    found = impute(
        model,
        tmp_path / "query.h5ad",
        tmp_path / "out.h5ad",
        reference=tmp_path / "reference.h5ad",
        k=10,
    )
    table = found["protein"]
    counts = measured.obsm["protein"].to_numpy(float)
    truth = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    assert all(np.corrcoef(table.to_numpy()[:, j], truth[:, j])[0, 1] > 0.9 for j in range(3))
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obsm["protein"].columns) == PROTEINS == list(table)
    assert list(written.obsm["protein"].index) == list(written.obs_names) == list(table.index)
    np.testing.assert_array_equal(written.obsm["protein"], table)
    assert written.uns["concerto_imputed"]["protein"] == table.attrs["units"]
    assert "X_concerto" in written.obsm
    # Records hold the same.
    like = convert(
        tmp_path / "reference.h5ad", tmp_path / "r", modalities={"protein": "obsm:protein"}
    )
    again = impute(model, convert(tmp_path / "query.h5ad", tmp_path / "q"), reference=like, k=10)
    np.testing.assert_allclose(again["protein"], table, atol=1e-4)


def test_reference_cells_without_the_modality_do_not_count(model: Concerto) -> None:
    reference = make_cells()
    some = reference.obsm["protein"].copy()
    some.iloc[::2] = 0
    reference.obsm["protein"] = some
    query = make_cells(30, seed=2, protein=False)
    given = {"modalities": {"protein": "obsm:protein"}, "k": 5}
    found = impute(model, query, reference=reference, **given)["protein"]
    want = impute(model, query, reference=reference[1::2].copy(), **given)["protein"]
    np.testing.assert_allclose(found, want, atol=1e-4)
    with pytest.raises(InputError, match="k is 150, and 100 reference cells"):
        impute(model, query, reference=reference, modalities=given["modalities"], k=150)


@pytest.fixture
def folder(model: Concerto, tmp_path: Path) -> Path:
    """A model in its folder, and a reference and a query as files."""
    save_model(model, tmp_path / "model.keras")
    reference = make_cells()
    reference.obsm["other"] = reference.obsm["protein"].iloc[:, ::-1]
    reference.obs["state"] = np.where(np.arange(200) % 3, "rest", "unknown")
    reference.write_h5ad(tmp_path / "reference.h5ad")
    make_cells(20, seed=1, protein=False).write_h5ad(tmp_path / "query.h5ad")
    return tmp_path


def test_another_place_of_a_modality_is_not_taken_for_the_one_kept(folder: Path) -> None:
    given = {"query": folder / "query.h5ad", "reference": folder / "reference.h5ad"}
    one = impute(folder, **given, modalities={"protein": "obsm:protein"})["protein"]
    two = impute(folder, **given, modalities={"protein": "obsm:other"})["protein"]
    assert list(one) == PROTEINS and list(two) == PROTEINS[::-1]
    kept = {"query": folder / "query.h5ad"}
    assert list(impute(folder, **kept)["protein"]) == PROTEINS[::-1]
    with pytest.raises(InputError, match="of obsm:other, not of obsm:protein"):
        impute(folder, **kept, modalities={"protein": "obsm:protein"})


def test_a_reference_that_is_kept_gathers_labels_and_values(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, cells = load_model(folder), folder / "reference.h5ad"
    find_reference(model, folder, cells, Reading(modalities={"protein": "obsm:protein"}))
    find_reference(model, folder, cells, label_keys=["type"])
    with caplog.at_level(logging.INFO, "concerto_tf"):
        find_reference(model, folder, cells, label_keys=["state"])
    kept = load_reference(folder / "reference")
    assert set(kept.labels) == {"type", "state"} and set(kept.values) == {"protein"}
    assert kept.labels["type"].names and "type" in kept.calibrations
    fresh = find_reference(model, None, cells, label_keys=["type"])
    np.testing.assert_array_equal(fresh.labels["type"].codes, kept.labels["type"].codes)
    # What is called unknown has no label.
    assert kept.labels["state"].names == ("rest",)
    np.testing.assert_array_equal(kept.labels["state"].codes, np.where(np.arange(200) % 3, 0, -1))
    assert "state: reference cells labelled 'unknown' count as unlabelled" in caplog.text


def test_a_model_named_by_its_file_has_the_same_reference(folder: Path) -> None:
    given = {"modalities": {"protein": "obsm:protein"}, "query": folder / "query.h5ad"}
    impute(folder / "model.keras", **given, reference=folder / "reference.h5ad")
    assert (folder / "reference" / "reference.json").is_file()
    a, b = impute(folder, **given), impute(folder / "model.keras", **given)
    pd.testing.assert_frame_equal(a["protein"], b["protein"])
    assert model_folder(folder / "model.keras") == folder and model_folder("none.keras") is None


def test_a_folder_that_is_no_reference_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "reference").mkdir()
    (folder / "reference" / "mine.txt").write_text("precious")
    impute(
        folder,
        folder / "query.h5ad",
        reference=folder / "reference.h5ad",
        modalities={"protein": "obsm:protein"},
    )
    assert (folder / "reference" / "mine.txt").read_text() == "precious"
    assert "is no reference and left alone" in caplog.text


def test_by_default_small_references_give_all_their_cells(model: Concerto) -> None:
    few, query = make_cells(12), make_cells(5, seed=1, protein=False)
    found = impute(model, query, reference=few)["protein"]
    pd.testing.assert_frame_equal(found, impute(model, query, reference=few, k=12)["protein"])
    with pytest.raises(InputError, match="k is 30, and 12 reference cells"):
        impute(model, query, reference=few, k=30)


def test_measured_values_are_neither_replaced_nor_looked_at(tmp_path: Path) -> None:
    reference, query, out = make_cells(), make_cells(20, seed=1), tmp_path / "out.h5ad"
    both = Concerto(
        list(reference.var_names),
        sources=("all",),
        units=8,
        hidden_units=16,
        attention_units=4,
        head_units=None,
        components=0,
        modalities={"protein": {"vocabulary": PROTEINS, "target_sum": 1e4}},
    )
    query.write_h5ad(tmp_path / "query.h5ad")
    for measured in (query, tmp_path / "query.h5ad"):
        with pytest.raises(InputError, match=r"has obsm\['protein'\] already.*remove or rename"):
            impute(both, measured, out, reference=reference)
    assert not out.exists()
    bare = query.copy()
    del bare.obsm["protein"]
    want = impute(both, bare, out, reference=reference)["protein"]
    found = impute(both, query, reference=reference)["protein"]
    np.testing.assert_allclose(found, want, atol=1e-5)
    # What was imputed earlier may be imputed again.
    impute(both, out, tmp_path / "again.h5ad", reference=reference)
    assert "protein" in anndata.io.read_h5ad(tmp_path / "again.h5ad").uns["concerto_imputed"]


def test_the_file_takes_its_name_when_all_is_in_it(
    model: Concerto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("concerto_tf.tasks.impute._note", fail)
    with pytest.raises(OSError, match="disk full"):
        impute(
            model, make_cells(9, 1, protein=False), tmp_path / "out.h5ad", reference=make_cells()
        )
    assert not list(tmp_path.iterdir())


def _without(cells: AnnData) -> AnnData:
    del cells.obsm["protein"]
    return cells


def _empty(cells: AnnData) -> AnnData:
    cells.obsm["protein"] = cells.obsm["protein"] * 0
    return cells


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (_without, {}, "holds no further modality"),
        (_without, {"modalities": {"protein": "obsm:protein"}}, "'protein'"),
        (None, {"modalities": {"protein": "obsm:adt"}}, "'adt'"),
        (None, {"modalities": {}}, "no modality is named"),
        (_empty, {"modalities": {"protein": "obsm:protein"}}, "empty|no cell|zero"),
        (None, {"k": 0}, "k is 0"),
        (None, {"k": 201}, "k is 201"),
        (None, {"reference": None}, "no reference is kept"),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_what_the_user_can_mend_is_said(
    model: Concerto, tmp_path: Path, change: object, given: dict, message: str
) -> None:
    reference = change(make_cells()) if change else make_cells()
    given = {"reference": reference, **given}
    with pytest.raises(InputError, match=message):
        impute(model, make_cells(20, 1, protein=False), tmp_path / "out.h5ad", **given)
    assert not list(tmp_path.iterdir())
