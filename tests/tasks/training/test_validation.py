"""Trainings that are ended by the loss of cells that are held out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from concerto_tf import Concerto, InputError, Records, convert, train
from concerto_tf._keras import keras
from concerto_tf.cli import main
from concerto_tf.models.fitting.schedule import plan_training
from concerto_tf.records.share import Share
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.training.batches import training_batches, validation_batches
from concerto_tf.tasks.training.distribution import TrainingProcesses

N_CELLS = 71  # with one in ten held out, the last block of them is empty but for these
SMALL = {"units": 8, "hidden_units": 8, "attention_units": 4, "head_units": 6, "components": 0}
#: At this rate the loss rises before long.
HOW: dict[str, Any] = {
    "validation_share": 0.2,
    "patience": 3,
    "epochs": 40,
    "batch_size": 25,
    "learning_rate": 0.1,
    "genes": "all",
    "options": SMALL,
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (3, 30))[rng.integers(0, 3, N_CELLS)])
    counts[:, 0] += 1
    cells = AnnData(counts.astype("f4"))
    cells.var_names = [f"G{i}" for i in range(30)]
    return convert(cells, tmp_path_factory.mktemp("validation"), shards=3)


def rows(data: Any) -> list[int]:
    found = np.concatenate([batch["row"].numpy() for batch in data])
    return sorted(found[found >= 0].tolist())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("every", [10, 2])
def test_every_cell_is_in_one_part(records, every: int, shuffle: bool, count: int) -> None:
    parts = {}
    for sign in (1, -1):
        of_workers = []
        for index in range(count):
            share = Share(index, count, sign * every)
            data = records.dataset(4, shuffle=shuffle, drop_remainder=False, shard_of=share)
            of_workers.append(rows(data))
            assert len(of_workers[-1]) == records.n_cells_of(*share)
        parts[sign] = sum(of_workers, [])
    assert sorted(parts[1] + parts[-1]) == list(range(N_CELLS))
    assert N_CELLS / every <= len(parts[1]) < N_CELLS / every + 3 * count


def test_cells_that_are_held_out_are_not_trained_on(records: Records) -> None:
    model = Concerto.from_records(records, **SMALL)
    held_out = rows(records.dataset(5, shard_of=Share(every=5)))
    schedule = plan_training(N_CELLS - len(held_out), 1, 8)
    workers = TrainingProcesses(None)
    seen = training_batches(model, records, schedule, 0, 0, workers, 5).take(40)
    assert set(np.concatenate([b["row"] for b in seen]).tolist()).isdisjoint(held_out)
    judged = validation_batches(model, records, schedule, 5)
    assert set(rows(judged)) <= set(held_out) and len(rows(judged)) == 12
    with pytest.raises(InputError, match="a validation share of 3 cells; at least 10"):
        validation_batches(model, records, schedule, 71)


@pytest.fixture(scope="module")
def ended(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended") / "model"
    train(records, folder, **HOW)
    return folder


def log(folder: Path) -> list[float]:
    with (folder / "training.csv").open() as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file)]


def test_it_ends_by_their_loss_with_the_best_weights(ended: Path, records: Records) -> None:
    from concerto_tf import load_model

    losses = log(ended)
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + HOW["patience"] < 20
    told = json.loads((ended / "training.json").read_text())["validation"]
    assert told["cells"] == len(rows(records.dataset(5, shard_of=Share(every=5))))
    assert told["loss"] == losses[best] and told["epochs"] == (best + 1) * 40 / 20
    # The model says of these cells what it said then, and embeds all.
    model = load_model(ended)
    model.compile()
    schedule = plan_training(N_CELLS - told["cells"], 1, 25)
    judged = validation_batches(model, records, schedule, 5)
    found = model.evaluate(judged, verbose=0, return_dict=True)["loss"]
    assert found == pytest.approx(losses[best], rel=1e-5)
    assert embed_records(model, records).shape == (N_CELLS, 8)


class Interrupt(keras.callbacks.Callback):
    """Stops the hard way within a round."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == self.at:
            raise KeyboardInterrupt


def test_stopped_it_ends_like_an_undisturbed_one(ended, records, tmp_path: Path) -> None:
    best = int(np.argmin(log(ended)))
    # While it waits, so that the best weights are of before the stop.
    with pytest.raises(KeyboardInterrupt):
        train(records, tmp_path / "model", callbacks=[Interrupt(best + 2)], **HOW)
    model = train(records, tmp_path / "model", **HOW)
    assert log(tmp_path / "model") == log(ended)
    told = [json.loads((f / "training.json").read_text()) for f in (ended, tmp_path / "model")]
    assert told[0]["fingerprint"] == told[1]["fingerprint"]
    assert told[0]["validation"] == told[1]["validation"]
    assert int(model.started.numpy()) == 1


def test_what_is_unsuitable_is_said(records: Records, tmp_path: Path, capsys) -> None:
    line = ["train", str(records.path), "-o", str(tmp_path / "model"), "--quiet"]
    for asked, words in (
        (["--validation-share", "0.7"], "at most 0.5 (--validation-share X)"),
        (["--validation-share", "0.2", "--patience", "0"], "patience is 0"),
        (["--patience", "5"], "give that (--validation-share X)"),
        (["--validation-share", "0.02"], "make it larger (--validation-share X)"),
    ):
        assert main([*line, *asked]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "model" / "model.keras").exists()
