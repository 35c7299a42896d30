"""Training on records: reproducible, resumable, to be continued."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model
from concerto_tf.records import Records, convert
from concerto_tf.records.batch import Minibatch
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.io.agreement import check_units
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.callbacks import Checkpoint, has_ended, saved_rounds, trim_log

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


def embedding(model: Path, records: Records) -> np.ndarray:
    return embed_records(load_model(model), records)


def log(folder: Path) -> list[dict[str, str]]:
    """The rows of training.csv without what differs from run to run."""
    with open(folder / "training.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = ("cells_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


def equal(folder: Path, other: Path, records: Records) -> bool:
    a, b = load_model(folder), load_model(other)
    same = [np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True)]
    z = embedding(folder, records).tobytes() == embedding(other, records).tobytes()
    assert all(same) == z
    return z


# --- what is left in the folder -----------------------------------------------------------------


def test_folder_holds_the_model_its_log_and_what_was_asked(
    undisturbed: Path, records: Records
) -> None:
    found = {entry.name for entry in undisturbed.iterdir()}
    assert found == {"model.keras", "training.csv", "tensorboard", "training.json", "MODEL_CARD.md"}
    rows = log(undisturbed)
    assert [row["epoch"] for row in rows] == [str(i) for i in range(6)]
    assert set(rows[0]) >= {"loss", "alignment", "uniformity", "effective_rank"}
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    with open(undisturbed / "training.csv", newline="") as file:
        for row in csv.DictReader(file):
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


# --- determinism --------------------------------------------------------------------------------

ALONE = """
    import os, sys
    sys.path.insert(0, {root!r})
    import tensorflow as tf
    from concerto_tf.models.batch_model import BatchModel
    from concerto_tf.tasks.train import train
    BatchModel.use_xla = False  # as in this process
    {before}
    train({records!r}, sys.argv[1], callbacks={callbacks}, **{options!r})
"""


def in_fresh_process(
    records: Records, out: Path, before: str = "", callbacks: str = "()"
) -> subprocess.CompletedProcess:
    root = str(Path(__file__).parents[2])
    code = textwrap.dedent(ALONE).format(
        root=root,
        records=str(records.path),
        options=OPTIONS,
        callbacks=callbacks,
        before=textwrap.dedent(before),
    )
    # Another hash seed, and TensorFlow's and NumPy's own generators unseeded.
    return subprocess.run(
        [sys.executable, "-c", code, str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "random"},
    )


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


# --- stopping and going on ----------------------------------------------------------------------


class Interrupt(keras.callbacks.Callback):
    """Stops a training the hard way at a step of a round, or at its end."""

    def __init__(self, at: int, step: int | None = None) -> None:
        super().__init__()
        self.at, self.step, self.round = at, step, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.round = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.round == self.at and batch == self.step:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        # After the line in training.csv, before the checkpoint.
        if epoch == self.at and self.step is None:
            raise KeyboardInterrupt


def test_a_stopped_training_ends_like_an_undisturbed_one(
    undisturbed: Path, records: Records, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    for stop in (Interrupt(2, step=1), Interrupt(5)):
        with pytest.raises(KeyboardInterrupt):
            train(records, out, callbacks=[stop], **OPTIONS)
        assert not (out / "model.keras").exists() and not (out / "training.json").exists()
        assert saved_rounds(out / "checkpoint") == stop.at
    with pytest.raises(InputError, match="unfinished model differing in seed"):
        train(records, out, **{**OPTIONS, "seed": 3})
    train(records, out, **OPTIONS)
    assert equal(out, undisturbed, records)
    assert log(out) == log(undisturbed)
    assert not (out / "checkpoint").exists()


def test_a_training_in_other_rounds_is_not_continued(records: Records, tmp_path: Path) -> None:
    """Other rounds are what another number of devices or workers makes of the same arguments."""
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        train(records, out, callbacks=[Interrupt(2, step=1)], **OPTIONS)
    file = out / "checkpoint" / "training.npz"
    with np.load(file) as saved:
        content = dict(saved)
    np.savez(file, **{**content, "steps": content["steps"] + 1})
    with pytest.raises(InputError, match="another number of devices or workers"):
        train(records, out, **OPTIONS)
    np.savez(file, **content)
    train(records, out, **OPTIONS)


@pytest.mark.slow
def test_rounds_that_are_parts_of_an_epoch_change_nothing(
    undisturbed: Path, records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "concerto_tf.models.fitting.schedule.ROUND_STEPS", 1
    )  # as if there were many cells
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        train(records, out, callbacks=[Interrupt(5)], **OPTIONS)
    assert saved_rounds(out / "checkpoint") == 5  # within the third epoch
    train(records, out, **OPTIONS)
    assert equal(out, undisturbed, records)
    assert [float(row["passes"]) for row in log(out)] == [(i + 1) / 2 for i in range(12)]


KILL = """
    import signal
    class Kill(tf.keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 3:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_finished_in_fresh_processes_it_is_the_same_model(
    undisturbed: Path, records: Records, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    done = in_fresh_process(records, out, before=KILL, callbacks="[Kill()]")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert saved_rounds(out / "checkpoint") == 3
    done = in_fresh_process(records, out)
    assert done.returncode == 0, done.stderr
    # So nothing but the seed decides: neither the process nor what it did before.
    assert equal(out, undisturbed, records)
    assert log(out) == log(undisturbed)


class Stop(keras.callbacks.Callback):
    """Ends a training in time, as early stopping does."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == 2:
            self.model.stop_training = True


def test_a_training_that_stopped_early_is_over_when_resumed(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(records, tmp_path / "straight", callbacks=[Stop()], **OPTIONS)
    assert len(log(tmp_path / "straight")) == 3

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("concerto_tf.tasks.training.job.save_model", killed)
        train(records, tmp_path / "model", callbacks=[Stop()], **OPTIONS)
    assert has_ended(tmp_path / "model" / "checkpoint")
    train(records, tmp_path / "model", callbacks=[Stop()], **OPTIONS)
    assert equal(tmp_path / "model", tmp_path / "straight", records)


def test_patience_goes_on_where_it_was(records: Records, tmp_path: Path) -> None:
    model = Concerto.from_records(records, **SMALL)
    model.compile("adam", jit_compile=False)
    stopping = keras.callbacks.EarlyStopping("loss", patience=10)
    stopping.set_model(model)
    stopping.on_train_begin()
    stopping.wait, stopping.best = 7, 0.25
    (tmp_path / "state").mkdir()
    checkpoint = Checkpoint(tmp_path / "state", stopping)
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(4)
    again = keras.callbacks.EarlyStopping("loss", patience=10)
    again.set_model(model)
    again.on_train_begin()
    resumed = Checkpoint(tmp_path / "state", again)
    resumed.set_model(model)
    resumed.on_train_begin()
    assert (again.wait, again.best) == (7, 0.25)
    # What another version would make of the same arguments is another model.
    other = Concerto.from_records(records, **SMALL, target_sum=1e4)
    other.compile("adam", jit_compile=False)
    strange = Checkpoint(tmp_path / "state")
    strange.set_model(other)
    with pytest.raises(InputError, match="with other settings, or by another version"):
        strange.on_train_begin()


def test_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    trim_log(path, 3)
    assert not path.exists()
    path.write_text("epoch,loss\n0,5\n1,4\n2,3\n3,")
    trim_log(path, 2)
    assert path.read_text().split() == ["epoch,loss", "0,5", "1,4"]


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


@pytest.mark.parametrize(
    "method",
    ["clear", *(pytest.param(m, marks=pytest.mark.slow) for m in ("contrastive-sc", "cicl"))],
)
def test_other_methods_go_on_where_they_were_stopped(
    method: str, records: Records, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"components": 2}
    options |= {"depth": 1, "width": 8} if method == "cicl" else {"backbone": [8], "head": 4}
    how = {"method": method, "batch_size": 20, "genes": "all", "options": options}

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    # With epochs that follow from the cells, so that early stopping takes part.
    with pytest.raises(KeyboardInterrupt):
        train(records, tmp_path / "stopped", **how, callbacks=[Stop()])
    train(records, tmp_path / "stopped", **how)
    train(records, tmp_path / "straight", **how)
    assert log(tmp_path / "stopped") == log(tmp_path / "straight")
    assert equal(tmp_path / "stopped", tmp_path / "straight", records)
    found = json.loads((tmp_path / "straight" / "training.json").read_text())
    rounds = len(log(tmp_path / "straight"))
    assert float(log(tmp_path / "straight")[-1]["passes"]) == found["epochs"]
    assert rounds >= 11 and found["steps"] == 3 * found["epochs"]
    assert found["epochs"] <= 30  # 100 without the limit of a start from components
