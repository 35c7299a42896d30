"""Mapping of query cells onto a reference, from files to labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.records import convert
from concerto_tf.reference.cells import Reference
from concerto_tf.reference.files import load_reference
from concerto_tf.reference.levels import check_levels
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.inspect import inspect
from concerto_tf.tasks.map import map
from concerto_tf.tasks.relatives import relatives
from concerto_tf.tasks.train import train

N_GENES = 80
COARSE = {"B1": "B", "B2": "B", "T1": "T", "T2": "T", "M": "M"}
SMALL = {
    "units": 8,
    "hidden_units": 16,
    "attention_units": 4,
    "head_units": 8,
    "components": 6,
}


def make_cells(
    kinds: tuple[str, ...] = ("B1", "B2", "T1", "T2"), n: int = 240, seed: int = 0
) -> AnnData:
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    base = fixed.gamma(1.0, 2.0, N_GENES)
    coarse = {name: np.where(fixed.random(N_GENES) < 0.3, 6.0, 1.0) for name in "BTM"}
    fine = {name: np.where(fixed.random(N_GENES) < 0.15, 5.0, 1.0) for name in COARSE}
    kind = np.array(kinds)[rng.integers(0, len(kinds), n)]
    mean = np.stack([base * coarse[COARSE[name]] * fine[name] for name in kind])
    counts = rng.poisson(mean)
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"fine": kind, "coarse": [COARSE[name] for name in kind]},
        index=[f"s{seed}-{i}" for i in range(n)],
    )
    return AnnData(
        counts.astype("f4"),
        obs.astype("category"),
        pd.DataFrame(index=[f"AB{i}C" for i in range(N_GENES)]),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference and query as files, and a model of the reference."""
    folder = tmp_path_factory.mktemp("map")
    make_cells().write_h5ad(folder / "reference.h5ad")
    make_cells(("B1", "B2", "T1", "T2", "M"), 150, seed=1).write_h5ad(folder / "query.h5ad")
    records = convert(folder / "reference.h5ad", folder / "records", label_keys=["fine"])
    train(records, folder / "model", genes="all", epochs=60, options=SMALL)
    return folder


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Path:
    """The model in a folder of its own, without a reference yet."""
    (tmp_path / "model").mkdir()
    shutil.copy(folder / "model" / "model.keras", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Concerto:
    return load_model(folder / "model")


def test_labels_confidence_and_embedding_of_the_query(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    query, out = folder / "query.h5ad", tmp_path / "out.h5ad"
    table = map(model, query, out, reference=folder / "reference.h5ad", label_key="fine")
    cells = anndata.io.read_h5ad(query)
    truth = cells.obs["fine"].astype(str).to_numpy()
    new = truth == "M"
    assert (table["label"] == truth)[~new].mean() > 0.8
    assert (table["predicted"] == truth)[~new].mean() > 0.95
    assert (table["label"] == "unknown")[new].mean() > 0.9
    assert table["confidence"][new].mean() < 0.2 < 0.6 < table["confidence"][~new].mean()
    np.testing.assert_allclose(
        table["confidence"], np.sqrt(table["probability"] * table["novelty"]), atol=1e-6
    )
    written = anndata.io.read_h5ad(out)
    assert list(table.index) == list(written.obs_names) == list(cells.obs_names)
    for name in ("label", "predicted"):
        assert written.obs[f"concerto_{name}"].astype(str).tolist() == table[name].tolist()
    for name in ("confidence", "novelty"):
        np.testing.assert_array_equal(written.obs[f"concerto_{name}"], table[name])
    assert written.obsm["X_concerto"].shape == (150, 16)
    assert "found by the same gene symbols" in table.attrs["report"][0]
    assert str(table)  # its attrs do not keep pandas from printing it


def test_neighbours_alone_tell_labels_as_in_the_paper(folder: Path, model: Path) -> None:
    """Equation 16, by the embeddings of the files; the default hears more."""
    query, reference = folder / "query.h5ad", folder / "reference.h5ad"
    options = {"reference": reference, "label_key": "fine", "adapt": "none"}
    more = map(model, query, **options)
    table = map(model, query, neighbours_only=True, **options)
    kept = load_reference(model / "reference")
    assert "fine" in kept.voices
    names, z = kept.labels["fine"].names, kept.embedded.compared(embed(model, query))
    cosine = np.float64(z) @ kept.embedded.unit.T / np.linalg.norm(z, axis=1, keepdims=True)
    for i in range(0, 150, 10):
        near = np.argsort(-cosine[i])[:5]
        shares = np.bincount(kept.labels["fine"].codes[near], cosine[i, near], len(names))
        assert table["predicted"].iloc[i] == names[shares.argmax()]
        assert table["probability"].iloc[i] == pytest.approx(shares.max() / shares.sum(), abs=1e-4)
    assert not np.allclose(more["probability"], table["probability"], atol=1e-3)


def test_the_reference_is_kept_and_used_again(
    folder: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "concerto_tf")
    query = folder / "query.h5ad"
    own = shutil.copy(folder / "reference.h5ad", model.parent / "reference.h5ad")
    first = map(model, query, reference=own, label_key="fine")
    assert "embedded before" not in caplog.text
    again = map(model, query, reference=own, label_key="fine")
    assert "embedded before" in caplog.text
    Path(own).unlink()
    without = map(model, query, label_key="fine")
    for other in (again, without):
        pd.testing.assert_frame_equal(other, first)
    with pytest.raises(InputError, match="no labels 'coarse'.*there are: fine"):
        map(model, query, label_key="coarse")
    # Other labels of the same cells are added to what is kept.
    caplog.clear()
    reference = folder / "reference.h5ad"
    map(model, query, reference=reference, label_key="fine")
    map(model, query, reference=reference, label_key="coarse")
    assert "embedded before" not in caplog.text
    map(model, query, levels=("coarse", "fine"))


def test_a_reference_of_another_model_or_damaged_is_refused(
    folder: Path, model: Path, loaded: Concerto, caplog: pytest.LogCaptureFixture
) -> None:
    query, reference = folder / "query.h5ad", folder / "reference.h5ad"
    with pytest.raises(InputError, match="no reference is kept there yet"):
        map(model, query, label_key="fine")
    want = map(model, query, reference=reference, label_key="fine")
    path = model / "reference" / "embeddings.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="embeddings.npy: is missing, damaged or was changed"):
        map(model, query, label_key="fine")
    # With the cells at hand it is made anew.
    pd.testing.assert_frame_equal(map(model, query, reference=reference, label_key="fine"), want)
    assert "making it anew" in caplog.text
    from concerto_tf.models import save_model

    save_model(loaded.with_sources(["elsewhere"]), model / "model.keras")
    with pytest.raises(InputError, match="belongs to another model"):
        map(model, query, label_key="fine")
    with pytest.raises(InputError, match="embedded by another model"):
        map(loaded, query, reference=Reference(np.eye(16), model="other"), label_key="fine")
    assert loaded.geometry.origin.any()
    own = Reference(np.eye(16), model=fingerprint(loaded))
    with pytest.raises(InputError, match=r"another origin.*origin=model\.geometry\.origin"):
        map(loaded, query, reference=own, label_key="fine")
    own = Reference(np.eye(16), model=fingerprint(loaded), origin=loaded.geometry.origin)
    with pytest.raises(InputError, match=r"spread.*spread=model\.geometry\.spread"):
        map(loaded, query, reference=own, label_key="fine")


def test_every_way_to_give_cells_maps_the_same(
    folder: Path, loaded: Concerto, tmp_path: Path
) -> None:
    query, reference = (anndata.io.read_h5ad(folder / f"{x}.h5ad") for x in ("query", "reference"))
    want = map(loaded, query, reference=reference, label_key="fine")
    records = convert(query, tmp_path / "q", label_keys=["fine"], like=folder / "records")
    found = map(
        loaded,
        records,
        tmp_path / "out.h5ad",
        reference=folder / "records",
        label_key="fine",
        groupby="fine",
    )
    pd.testing.assert_frame_equal(found, want, atol=1e-4)
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad").obs
    assert {"fine", "concerto_label", "concerto_confidence"} <= set(written)
    assert map(loaded, query).shape == (150, 0)  # nothing to transfer: embedded only


def test_levels_never_contradict_each_other(folder: Path, loaded: Concerto, tmp_path: Path) -> None:
    table = map(
        loaded,
        folder / "query.h5ad",
        tmp_path / "out.h5ad",
        reference=folder / "reference.h5ad",
        levels=("coarse", "fine"),
        alpha=0.2,
    )
    coarse, fine = table["label_coarse"], table["label_fine"]
    assert (table["label"] == fine).all()
    assert (table["confidence"] == table["confidence_fine"]).all()
    named = fine != "unknown"
    assert [COARSE[name] for name in fine[named]] == coarse[named].tolist()
    assert (fine[coarse == "unknown"] == "unknown").all()
    assert ((coarse != "unknown") & (fine == "unknown")).any()  # may well be known coarsely only
    assert (table["probability_fine"] <= table["probability_coarse"] + 1e-6).all()
    truth = anndata.io.read_h5ad(folder / "query.h5ad").obs["fine"].astype(str).to_numpy()
    assert (fine.to_numpy() == truth)[named & (truth != "M")].mean() > 0.95
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad").obs
    assert written["concerto_label_coarse"].astype(str).tolist() == coarse.tolist()
    assert {"concerto_label", "concerto_confidence_fine", "concerto_confidence_coarse"} <= set(
        written
    )


def test_contradictory_levels_are_named(folder: Path, loaded: Concerto) -> None:
    reference = anndata.io.read_h5ad(folder / "reference.h5ad")
    reference.obs["coarse"] = reference.obs["coarse"].astype(str)
    first = np.flatnonzero(reference.obs["fine"] == "T2")[0]
    reference.obs.iloc[first, reference.obs.columns.get_loc("coarse")] = "B"
    with pytest.raises(InputError, match=r"'T2' \(B, T\)"):
        map(loaded, folder / "query.h5ad", reference=reference, levels=("coarse", "fine"))


def test_labels_that_only_one_side_has(folder: Path, loaded: Concerto) -> None:
    """The reference lacks M, the query lacks the T cells; and some cells have no label."""
    reference = make_cells(seed=2)
    reference.obs["fine"] = reference.obs["fine"].cat.set_categories(["B1", "B2", "T1"])
    assert reference.obs["fine"].isna().any()
    query = make_cells(("B1", "M"), 60, seed=3)
    del query.obs["fine"]
    table = map(loaded, query, reference=reference, label_key="fine")
    assert set(table["label"]) <= {"B1", "B2", "T1", "unknown"}
    check_levels(Reference(np.eye(2)), [])


def test_missing_genes_are_counted_and_not_taken_for_zeros(folder: Path, loaded: Concerto) -> None:
    query = anndata.io.read_h5ad(folder / "query.h5ad")
    part = query[:, 20:].copy()
    table = map(loaded, part, reference=folder / "reference.h5ad", label_key="fine")
    assert "60 of 80 genes" in table.attrs["report"][0] and "20" in table.attrs["report"][0]
    truth = query.obs["fine"].astype(str).to_numpy()
    assert (table["predicted"] == truth)[truth != "M"].mean() > 0.8
    zeros = query.copy()
    zeros.X[:, :20] = 0
    whole, missing, zero = (embed(loaded, cells) for cells in (query, part, zeros))
    errors = [np.linalg.norm(z - whole, axis=1).mean() for z in (missing, zero)]
    shifts = [np.linalg.norm((z - whole).mean(0)) for z in (missing, zero)]
    assert errors[0] < 0.95 * errors[1]
    # What is lost is lost; but zeros would move all cells the same way.
    assert shifts[0] < 0.5 * shifts[1]


@pytest.mark.parametrize(
    "how", [{"adapt": "source"}, {"adapt": "align"}, {"finetune": True}], ids=str
)
def test_adapting_to_a_shifted_query_does_not_lose_labels(
    folder: Path, loaded: Concerto, how: dict
) -> None:
    query = make_cells(seed=4)
    bias = np.random.default_rng(0).gamma(2.0, 0.5, N_GENES)
    query.X = np.floor(query.X * bias + 0.5).astype("f4")
    before = [weight.copy() for weight in loaded.get_weights()]
    table = map(loaded, query, reference=folder / "reference.h5ad", label_key="fine", **how)
    assert (table["predicted"] == query.obs["fine"].astype(str).to_numpy()).mean() > 0.9
    for old, new in zip(before, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_groups_of_the_query_beside_their_relatives(
    folder: Path, loaded: Concerto, tmp_path: Path
) -> None:
    table = map(
        loaded,
        folder / "query.h5ad",
        reference=folder / "reference.h5ad",
        label_key="coarse",
        groupby="fine",
        figure=tmp_path / "groups.png",
    )
    rows = pd.DataFrame(table.attrs["relatives"])
    assert rows.groupby("group")["share"].sum().round(6).eq(1).all()
    top = rows.drop_duplicates("group").set_index("group")
    assert top["label"][["B1", "B2", "T1", "T2"]].tolist() == ["B", "B", "T", "T"]
    assert top["unknown"]["M"] > 0.9 > 0.3 > top["unknown"]["B1"]
    assert (tmp_path / "groups.png").stat().st_size > 10_000
    saved = pd.read_csv(tmp_path / "groups.tsv", sep="\t")
    pd.testing.assert_frame_equal(saved, rows, check_dtype=False, atol=1e-5)
    by_cluster = map(
        loaded,
        folder / "query.h5ad",
        reference=folder / "reference.h5ad",
        label_key="coarse",
        groupby="leiden",
    )
    assert len({row["group"] for row in by_cluster.attrs["relatives"]}) > 1


def test_cells_without_a_group_are_left_out() -> None:
    table = relatives(["a", None, "a"], ["T", "T", "B"])
    assert table["cells"].tolist() == [1, 1] and set(table["group"]) == {"a"}


def _bad_genes(cells: AnnData) -> AnnData:
    cells.var_names = [f"XY{i}" for i in range(N_GENES)]
    return cells


def _normalized(cells: AnnData) -> AnnData:
    cells.X = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)
    return cells


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 500}, "k is 500, but only 240 reference cells"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"label_key": "tissue"}, "'tissue'"),
        ({"levels": ("fine", "fine")}, "twice"),
        ({"groupby": "tissue"}, "'tissue'"),
        ({"figure": "x.png"}, "name them with groupby"),
        ({"groupby": "fine", "label_key": None}, "name a label key"),
        ({"finetune": True, "reference": None}, "needs its cells"),
        ({"finetune": True, "adapt": "align"}, "leave out one"),
        ({"adapt": "always"}, "no adaptation 'always'; choose one of auto"),
        ({"source_key": "tissue"}, "'tissue'"),
        ({"query": _bad_genes}, "gene"),
        ({"query": _normalized}, "log-normalized values, but the model was trained on raw counts"),
        ({"reference": _bad_genes}, "gene"),
        ({"reference": _normalized}, "log-normalized values"),
        ({"reference": "nowhere.h5ad"}, "there is no such file"),
    ],
)
def test_what_the_user_can_mend_is_said(
    folder: Path, loaded: Concerto, tmp_path: Path, change: dict, message: str
) -> None:
    given = {
        "query": folder / "query.h5ad",
        "reference": folder / "reference.h5ad",
        "label_key": "fine",
    }
    for name, value in change.items():
        if isinstance(value, Callable):
            value = value(anndata.io.read_h5ad(given[name]))
        given[name] = value
    out = tmp_path / "out.h5ad"
    with pytest.raises(InputError, match=message):
        map(loaded, given.pop("query"), out, **given)
    assert not list(tmp_path.iterdir())


def test_query_is_a_source_of_its_own_beside_a_reference_of_the_same_name(
    folder: Path, loaded: Concerto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concerto_tf.tasks import map as module

    seen = []

    def noted(model: Concerto, records: list, *rest: object) -> Concerto:
        seen.append([of.sources for of in records])
        return model

    monkeypatch.setattr(module, "trained_further", noted)
    map(loaded, make_cells(seed=4), reference=make_cells(seed=5), label_key="fine", finetune=True)
    assert seen == [[["query"], ["AnnData"]]]


def test_a_query_without_any_gene_that_the_model_looks_at_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    out = tmp_path_factory.mktemp("few")
    records = convert(make_cells(), out / "records", label_keys=["fine"])
    model = train(records, out / "model", genes="hvg:15", epochs=1, options=SMALL)
    others = [i for i in range(N_GENES) if i not in model.modality_inputs[0].genes]
    with pytest.raises(InputError, match="none of the 15 genes that the model looks at"):
        map(model, make_cells(seed=4)[:, others].copy(), reference=records, label_key="fine")


def test_what_is_to_be_expected_is_told_where_labels_are(
    folder: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "concerto_tf")
    out, given = tmp_path / "out.h5ad", {"reference": folder / "reference.h5ad"}
    query = folder / "query.h5ad"
    table = map(model, query, out, label_key="fine", **given)
    rates = table.attrs["expected"]
    assert set(rates["by_type"]) == {"B1", "B2", "T1", "T2"}
    assert 0.02 < rates["known_lost"] < 0.25 and rates["new_caught"] > 0.5
    said = f"of known cells about {rates['known_lost']:.0%} are called unknown"
    assert f"alpha 0.1: {said}" in caplog.text and "where the model has not seen" in caplog.text
    step = anndata.io.read_h5ad(out).uns["concerto"]
    assert step["expected"]["in_words"].startswith(said)
    assert step["expected"]["new_caught"] == rates["new_caught"]
    assert said in (tmp_path / "report.html").read_text("utf-8")
    # It is kept with the reference, and follows the error rate.
    told = inspect(model)["reference"]["expected (fine)"]
    assert told == rates
    strict = map(model, query, label_key="fine", alpha=0.02).attrs["expected"]
    assert strict["known_lost"] < rates["known_lost"]
    assert "expected" not in map(model, query, label_key="fine", alpha=0).attrs
    levels = map(model, query, levels=("coarse", "fine"), **given).attrs["expected"]
    assert levels["by_type"] == {}  # B and T: no type can be left out of two
