"""Training on records: what it leaves, what it goes on from, what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model
from concerto_tf.records import Records, convert
from concerto_tf.records.batch import Minibatch
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.io.agreement import check_units
from concerto_tf.tasks.train import train

SMALL = {
    "units": 8,
    "hidden_units": 8,
    "attention_units": 4,
    "head_units": 6,
    "components": 3,
}
#: 60 cells in batches of 25: what a round leaves over differs from round to round.
OPTIONS: dict[str, Any] = {
    "batch_size": 25,
    "epochs": 6,
    "options": SMALL,
    "genes": "all",
    "learning_rate": 1e-2,
}


def make_cells(n: int = 60, seed: int = 0, sources: tuple[str, ...] = ("a", "b")) -> AnnData:
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(9).gamma(0.5, 2.0, (3, 30))
    counts = rng.poisson(profiles[rng.integers(0, 3, n)])
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.var_names = [f"G{i}" for i in range(30)]
    cells.obs["donor"] = [sources[i % len(sources)] for i in range(n)]
    return cells


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return convert(make_cells(), tmp_path_factory.mktemp("records"), source_key="donor")


@pytest.fixture(scope="module")
def undisturbed(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "undisturbed"
    train(records, out, **OPTIONS)
    return out


# --- what is left in the folder -----------------------------------------------------------------


def test_folder_holds_the_model_its_log_and_what_was_asked(
    undisturbed: Path, records: Records
) -> None:
    found = {entry.name for entry in undisturbed.iterdir()}
    assert found == {"model.keras", "training.csv", "tensorboard", "training.json", "MODEL_CARD.md"}
    with open(undisturbed / "training.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(i) for i in range(6)]
    assert set(rows[0]) >= {"loss", "alignment", "uniformity", "effective_rank"}
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    for row in rows:
        assert float(row["cells_per_second"]) > 0 and 0 <= float(row["input_wait"]) <= 1
    summary = json.loads((undisturbed / "training.json").read_text())
    assert (summary["steps"], summary["epochs"], summary["genes"]) == (12, 6, 30)
    assert summary["asked"]["options"] == SMALL
    assert any((undisturbed / "tensorboard").rglob("events.*"))


def test_every_source_has_statistics_of_its_own_cells(undisturbed: Path, records: Records) -> None:
    model = load_model(undisturbed)
    (batch,) = records.dataset(60, sources=model.sources)
    source = batch["source"].numpy()
    layer, [branch] = model.networks.branches[0].student_norm, model.networks.branches
    x = branch.spread(model.modality_inputs[0].cells(Minibatch(batch)))
    assert (np.array(layer.moving_count) > np.bincount(source)).all()
    means = np.array([x.numpy()[source == code].mean(0) for code in (0, 1)])
    found = np.array(layer.moving_mean)
    # Of as many of the last cells as it remembers, so about.
    for code in (0, 1):
        near, far = (np.linalg.norm(found[code] - means[other]) for other in (code, 1 - code))
        assert near < 0.1 * np.linalg.norm(means[code]) and near < far


def test_another_seed_is_another_model(undisturbed: Path, records: Records, tmp_path: Path) -> None:
    train(records, tmp_path / "other", seed=1, **OPTIONS)
    a, b = load_model(tmp_path / "other"), load_model(undisturbed)
    layers = ("rna_attention", "student_dense", "teacher_dense", "student_head", "teacher_head")
    for one, other in zip(a.networks.layers, b.networks.layers, strict=True):
        for x, y in zip(one.weights, other.weights, strict=True):
            assert one.name not in layers or not np.array_equal(np.array(x), np.array(y)), one.name


def test_counts_are_scaled_to_what_the_cells_have(records: Records, tmp_path: Path) -> None:
    def target_sum(cells: Records, **options: float) -> float | None:
        return Concerto.from_records(cells, **options).modality_inputs[0].target_sum

    assert target_sum(records) == round(records.typical_total) < 100
    assert target_sum(records, target_sum=500.0) == 500
    assert target_sum(records, **Concerto.presets["paper"].options) == 1e4
    for wrong in (0, -1.0, "x"):
        with pytest.raises(InputError, match="target_sum must be a positive number"):
            target_sum(records, target_sum=wrong)
    deep = make_cells()
    deep.X = deep.X * 5000
    of_deep = convert(deep, tmp_path / "deep")
    assert target_sum(of_deep) == 1e4
    median = float(np.median(np.asarray(deep.X.sum(axis=1))))
    assert target_sum(of_deep, target_sum="median") == median > 1e4
    with pytest.raises(InputError, match="'median' where a model is made from records"):
        Concerto(["a", "b"], target_sum="median")


# --- called again


def test_a_finished_training_is_not_done_again(undisturbed: Path, records: Records) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    model = train(records, undisturbed, **OPTIONS)
    assert model.sources == ("a", "b")
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")} == before
    with pytest.raises(InputError, match="a model differing in epochs"):
        train(records, undisturbed, **{**OPTIONS, "epochs": 7})


# --- going on from a model ----------------------------------------------------------------------


def test_goes_on_from_a_model_on_the_same_sources(
    undisturbed: Path, records: Records, tmp_path: Path
) -> None:
    start = load_model(undisturbed)
    further = train(records, tmp_path / "further", start=undisturbed, epochs=1, batch_size=25)
    assert further.sources == start.sources
    # Two small steps away from where it began, and not from anew.
    own, given = further.networks, start.networks
    distance = np.abs(np.array(own.student_dense.kernel) - np.array(given.student_dense.kernel))
    assert 0 < distance.max() < 0.02
    assert int(own.branches[0].student_mask.draws) > int(given.branches[0].student_mask.draws)


def test_goes_on_from_a_model_on_new_sources(
    undisturbed: Path, records: Records, tmp_path: Path
) -> None:
    new = convert(
        make_cells(40, seed=5, sources=("b", "c")),
        tmp_path / "new",
        source_key="donor",
        like=records,
    )
    model = train(new, tmp_path / "further", start=undisturbed, epochs=2, batch_size=20)
    assert set(model.sources) == {"b", "c"}
    assert (np.array(model.networks.branches[0].student_norm.moving_count) > 20).all()
    z = embed_records(load_model(tmp_path / "further"), new)
    assert z.shape == (40, 8) and np.isfinite(z).all()


def test_models_and_records_that_do_not_fit_are_refused(
    undisturbed: Path, records: Records, tmp_path: Path
) -> None:
    fewer = convert(make_cells()[:, :20].copy(), tmp_path / "fewer")
    with pytest.raises(InputError, match=r"its 20 genes are not the .* of the model.*like=\.\.\."):
        train(fewer, tmp_path / "out", start=undisturbed)
    cells = make_cells()
    cells.X = np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))
    normalized = convert(cells, tmp_path / "normalized", like=records)
    with pytest.raises(InputError, match="log-normalized values, but the model was trained on raw"):
        train(normalized, tmp_path / "out", start=undisturbed)
    assert not (tmp_path / "out").exists()
    model = load_model(undisturbed / "model.keras")
    model.modality_inputs[0].target_sum = None  # as of a model of values that were normalized
    cells.X = np.expm1(cells.X) * 100
    tpm = convert(cells, tmp_path / "tpm", like=records)
    with pytest.raises(InputError, match="tpm: holds expected counts or TPM.*train a model"):
        check_units(model, tpm)


def test_normalized_records_make_a_model_of_normalized_values(tmp_path: Path) -> None:
    cells = make_cells()
    cells.X = np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))
    model = train(convert(cells, tmp_path / "records"), tmp_path / "model", epochs=1, options=SMALL)
    assert model.modality_inputs[0].target_sum is None
    assert load_model(tmp_path / "model").modality_inputs[0].target_sum is None


# --- what is unsuitable -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "opera"}, "no method 'opera'; choose one of concerto"),
        ({"preset": "newspaper"}, "concerto has no preset 'newspaper'; it has default, paper"),
        ({"epochs": 0}, "epochs is 0; it must be positive"),
        ({"batch_size": 1}, "batch size is 1"),
        ({"learning_rate": -1.0}, "learning rate is -1.0"),
        ({"strategy": "cloud"}, "auto, one"),
        ({"optimizer": "adma"}, "no optimizer 'adma'"),
        ({"genes": "hvg:x"}, "hvg"),
        ({"options": {**SMALL, "readout": "pupil"}}, "readout must be one of"),
    ],
)
def test_arguments_are_checked_and_can_be_mended(
    records: Records, tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(records, tmp_path / "model", **{**OPTIONS, **arguments})
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (lambda: make_cells(9), "9 cells; contrastive learning compares cells"),
        (lambda: make_cells()[:, :1].copy(), "one gene"),
        (lambda: make_cells(13, sources=("x",) * 12 + ("lonely",)), "source 'lonely' has one cell"),
    ],
)
def test_too_little_to_learn_from_is_refused(
    tmp_path: Path, cells: Callable[[], AnnData], message: str
) -> None:
    records = convert(cells(), tmp_path / "records", source_key="donor")
    with pytest.raises(InputError, match=message):
        train(records, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_no_number_ends_the_training(records: Records, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"smaller step \(learning_rate=\.\.\.\)"):
        train(records, tmp_path / "model", **{**OPTIONS, "learning_rate": 1e30})
    assert not (tmp_path / "model" / "model.keras").exists()


def test_other_folders_are_not_touched(records: Records, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no model"):
        train(records, tmp_path / "mine", **OPTIONS)
    with pytest.raises(InputError, match="is a file"):
        train(records, tmp_path / "mine" / "thesis.txt", **OPTIONS)
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
