"""Trainings that are stopped or killed: they end as if nothing had been."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model
from concerto_tf.records import Records, convert
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.callbacks import Checkpoint, has_ended, saved_rounds, trim_log

SMALL = {"units": 8, "hidden_units": 8, "attention_units": 4, "head_units": 6, "components": 3}
#: 60 cells in batches of 25: what a round leaves over differs from round to round.
OPTIONS: dict[str, Any] = {
    "batch_size": 25,
    "epochs": 6,
    "options": SMALL,
    "genes": "all",
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (3, 30))[rng.integers(0, 3, 60)])
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.var_names = [f"G{i}" for i in range(30)]
    cells.obs["donor"] = ["a", "b"] * 30
    return convert(cells, tmp_path_factory.mktemp("records"), source_key="donor")


@pytest.fixture(scope="module")
def undisturbed(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "undisturbed"
    train(records, out, **OPTIONS)
    return out


def log(folder: Path) -> list[dict[str, str]]:
    """The rows of training.csv without what differs from run to run."""
    with open(folder / "training.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = ("cells_per_second", "input_wait")
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


def embedding(model: Path, records: Records) -> np.ndarray:
    return embed_records(load_model(model), records)


def equal(folder: Path, other: Path, records: Records) -> bool:
    a, b = load_model(folder), load_model(other)
    same = [np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True)]
    z = embedding(folder, records).tobytes() == embedding(other, records).tobytes()
    assert all(same) == z
    return z


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
    root = str(Path(__file__).parents[3])
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
