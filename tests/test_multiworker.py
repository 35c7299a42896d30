"""Training in several processes: the same as in one, and to be continued when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model
from concerto_tf.models.weights import lasting_weights
from concerto_tf.records import Records, convert
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.arguments import check_arguments
from concerto_tf.tasks.training.callbacks import saved_rounds

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[1]
#: Without chance, so that one replica can do what two do.
PLAIN = {
    "units": 8,
    "hidden_units": 8,
    "attention_units": 4,
    "head_units": 6,
    "components": 3,
    "mask_rate": 0.0,
    "dropout": 0.0,
}
B = 32


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """160 cells of two sources in three shards: one for each of two workers, and one to divide."""
    rng = np.random.default_rng(0)
    kind, small = rng.integers(0, 3, 160), rng.random(160) < 0.3
    profiles = rng.gamma(0.5, 2.0, (3, 40))
    counts = rng.poisson(profiles[kind] * rng.gamma(1.0, 1.0, (160, 1)) * (1 + small[:, None]))
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.obs["donor"] = np.where(small, "small", "large")
    return convert(cells, tmp_path_factory.mktemp("records"), source_key="donor", shards=3)


@pytest.fixture
def workers() -> Iterator[Callable[..., list[subprocess.Popen]]]:
    """Starts a Python command line in two processes that TF_CONFIG makes workers."""
    started: list[subprocess.Popen] = []

    def start(*arguments: Any) -> list[subprocess.Popen]:
        sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
        addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
        for each in sockets:
            each.close()
        both = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": {"worker": addresses}, "task": task})
            both.append(
                subprocess.Popen(
                    [sys.executable, *map(str, arguments)],
                    cwd=ROOT,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "TF_CONFIG": config, "PYTHONPATH": str(ROOT)},
                )
            )
        started.extend(both)
        return both

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str]:
    _, err = process.communicate(timeout=180)
    return process.returncode, err


def steps_per_epoch(records: Records) -> int:
    """As many as the cells of the worker with fewer of them fill."""
    cells = [records.n_cells_of(index, 2) for index in range(2)]
    assert sum(cells) == 160 and cells[0] != cells[1]
    return min(cells) // (B // 2)


def together(records: Records, model: Concerto, epochs: int) -> None:
    """Trains a model in this process on the batches that two workers have together."""
    shares = [
        records.dataset(
            B // 2,
            shuffle=True,
            repeat=True,
            shard_of=(index, 2),
            sources=model.sources,
            packed=True,
        )
        for index in range(2)
    ]
    data = tf.data.Dataset.zip(tuple(shares)).map(
        lambda a, b: {name: tf.concat([a[name], b[name]], 0) for name in a}
    )
    model.initialize(records.dataset(B, sources=model.sources, packed=True))
    model.fit(data, steps_per_epoch=steps_per_epoch(records), epochs=epochs, verbose=0)


def test_two_workers_compute_what_one_does_on_their_batches(
    records: Records, workers: Callable[..., list[subprocess.Popen]], tmp_path: Path
) -> None:
    options = {"batch_size": B, "epochs": 4, "genes": "all", "options": PLAIN}
    code = (
        "from concerto_tf.tasks.train import train\n"
        f"train({str(records.path)!r}, {str(tmp_path / 'model')!r}, strategy='multiworker', "
        f"**{options!r})"
    )
    for process in workers("-c", code):
        status, err = ended(process)
        assert status == 0, err
    found = {entry.name for entry in (tmp_path / "model").iterdir()}
    assert found == {"model.keras", "training.csv", "tensorboard", "training.json", "MODEL_CARD.md"}
    assert len((tmp_path / "model" / "training.csv").read_text().splitlines()) == 5
    assert len(list((tmp_path / "model" / "tensorboard").rglob("events.*"))) == 1

    model = load_model(tmp_path / "model")
    alone = Concerto.from_records(records, **PLAIN)
    alone.compile("adam", jit_compile=False)
    together(records, alone, epochs=4)
    for a, b in zip(lasting_weights(model), lasting_weights(alone), strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(a), tf.convert_to_tensor(b), atol=1e-5)


@pytest.mark.slow
def test_a_killed_worker_is_restarted_and_the_result_is_the_same(
    records: Records,
    workers: Callable[..., list[subprocess.Popen]],
    strategy: tf.distribute.Strategy,
    tmp_path: Path,
) -> None:
    out, epochs = tmp_path / "model", 100
    command = [
        "-m",
        "concerto_tf.cli",
        "train",
        records.path,
        "-o",
        out,
        "--strategy",
        "multiworker",
        "--epochs",
        epochs,
        "--batch-size",
        B,
        "--genes",
        "all",
        "--quiet",
    ]
    for killed, number in ((1, signal.SIGKILL), (0, signal.SIGTERM)):
        before, both = saved_rounds(out / "checkpoint"), workers(*command)
        limit = time.monotonic() + 120
        while saved_rounds(out / "checkpoint") < before + 2:
            assert all(process.poll() is None for process in both), ended(both[0])
            assert time.monotonic() < limit
            time.sleep(0.01)
        both[killed].send_signal(number)
        code, err = ended(both[1 - killed])
        assert code == 130
        assert err.splitlines() == [
            "concerto: interrupted; another worker ended; run the same command on all workers to "
            "continue"
        ]
        assert ended(both[killed])[0] == (130 if number == signal.SIGTERM else -number)
        assert not (out / "model.keras").exists()
    for process in workers(*command):
        assert ended(process) == (0, "")
    summary = json.loads((out / "training.json").read_text())
    assert summary["steps"] == epochs * steps_per_epoch(records)
    # With views, of which those of a worker are those of a replica.
    with strategy.scope():
        mirrored = Concerto.from_records(records)
        mirrored.compile("adam", jit_compile=False)
    together(records, mirrored, epochs)
    cells = records.dataset(B, sources=mirrored.sources)
    np.testing.assert_allclose(load_model(out).embed(cells), mirrored.embed(cells), atol=1e-4)
    # Called once more, all of them see that it is done.
    for process in workers(*command):
        assert ended(process)[0] == 0


def test_what_describes_the_workers_is_checked(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    nobody = '{"cluster": {}, "task": {"type": "worker", "index": 0}}'
    for config in (None, "workers", "{}", nobody):
        if config is not None:
            monkeypatch.setenv("TF_CONFIG", config)
        with pytest.raises(InputError, match='TF_CONFIG.*"index": N'):
            train(records, tmp_path / "model", strategy="multiworker")
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    tf.config.list_logical_devices()  # TensorFlow begins
    with pytest.raises(InputError, match="first in a process"):
        train(records, tmp_path / "model", strategy="multiworker")
    with pytest.raises(InputError, match="for `train` alone"):
        check_arguments(strategy="multiworker")  # as run and finetune do
    assert not (tmp_path / "model").exists()
