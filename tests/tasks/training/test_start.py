"""Where training would move nothing there is none: the PCA initialization is the model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.export import export
from concerto_tf.models import load_model
from concerto_tf.records import Records, convert
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.run import run
from concerto_tf.tasks.train import train

SMALL = {"units": 8, "hidden_units": 8, "attention_units": 4, "head_units": 6, "components": 3}
OPTIONS: dict[str, Any] = {"genes": "all", "options": SMALL}


def make_cells(n: int = 80, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    counts = rng.poisson(np.random.default_rng(9).gamma(0.5, 3.0, (3, 40))[kind])
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.var_names = [f"G{i}" for i in range(40)]
    cells.obs_names = [f"cell{i}" for i in range(n)]
    cells.obs["type"] = np.array(["B", "NK", "T"])[kind]
    cells.obs["donor"] = ["x", "y"] * (n // 2)
    return cells


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("records")
    return convert(make_cells(), folder, source_key="donor", label_keys=["type"])


@pytest.fixture(scope="module")
def start(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "start"
    train(records, out, **OPTIONS)
    return out


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def explained(z: np.ndarray, by: np.ndarray) -> float:
    """Share of the variance of embeddings that a linear map of others explains."""
    z, by = z - z.mean(0), by - by.mean(0)
    rest = z - by @ np.linalg.lstsq(by, z, rcond=None)[0]
    return 1 - (rest**2).sum() / (z**2).sum()


def test_nothing_is_trained_and_it_is_said(
    records: Records, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "concerto_tf"):
        train(records, tmp_path / "model", **OPTIONS)
    assert {entry.name for entry in (tmp_path / "model").iterdir()} == {
        "model.keras",
        "training.json",
        "MODEL_CARD.md",
    }
    assert (summary(tmp_path / "model")["epochs"], summary(tmp_path / "model")["steps"]) == (0, 0)
    [said] = [line for line in caplog.messages if "PCA initialization" in line]
    assert "epochs" in said and "\n" not in said


def test_embedding_is_components_of_standardized_values(tmp_path: Path) -> None:
    cells = make_cells()
    found = convert(cells, tmp_path / "records")
    model = train(found, tmp_path / "model", **OPTIONS)
    x = cells.X
    x = np.log1p(x * (model.modality_inputs[0].target_sum / x.sum(1, keepdims=True)))
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.01)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    z = embed_records(model, found)
    components = u[:, :3] * s[:3]
    assert explained(z[:, :3], components) > 0.9999
    np.testing.assert_allclose(
        z[:, 3:6] - z[:, 3:6].mean(0), z[:, :3].mean(0) - z[:, :3], atol=1e-4
    )


def test_it_is_where_a_training_at_no_rate_ends(
    records: Records, start: Path, tmp_path: Path
) -> None:
    still = train(records, tmp_path / "model", **OPTIONS, learning_rate=1e-12, epochs=40)
    z = embed_records(load_model(start), records)
    assert explained(z, embed_records(still, records)) > 0.999
    assert abs(z - embed_records(still, records)).max() < 0.05 * z.std()


def test_sources_have_their_own_statistics(start: Path, records: Records) -> None:
    model = load_model(start)
    count, mean, _ = (
        np.array(part) for part in model.networks.branches[0].student_norm.moving_moments
    )
    assert (count > 30).all() and abs(mean[0] - mean[1]).max() > 0.01
    assert (np.array(model.networks.teacher_norm.moving_count) > 30).all()


@pytest.mark.parametrize(
    "asked",
    [
        {"epochs": 1},
        {"learning_rate": 1e-3, "batch_size": 80},
        {"preset": "paper", "batch_size": 80},
        {"method": "contrastive-sc", "batch_size": 80, "options": {"components": 2}},
        {"options": {**SMALL, "components": 0}, "batch_size": 80},
        {"options": {**SMALL, "readout": "teacher"}, "batch_size": 80},
    ],
)
def test_what_asks_for_training_is_trained(
    records: Records, tmp_path: Path, asked: dict[str, Any]
) -> None:
    class Begun(Exception):
        pass

    class Stop(tf.keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            raise Begun

    with pytest.raises(Begun):
        train(records, tmp_path / "model", **{**OPTIONS, **asked}, callbacks=[Stop()])


def test_zero_is_no_number_of_epochs_to_ask_for(records: Records, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs is 0; it must be positive"):
        train(records, tmp_path / "model", **OPTIONS, epochs=0)


def test_a_training_that_an_earlier_version_left_unfinished_is_no_start(
    records: Records, start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"

    class Stop(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(records, out, **OPTIONS, epochs=2, callbacks=[Stop()])
    note = out / "checkpoint" / "asked.json"
    held = json.loads(note.read_text())
    held["asked"]["epochs"] = None  # as versions asked that trained by themselves
    held.pop("checksum", None)  # which they did not write
    note.write_text(json.dumps(held))
    model = train(records, out, **OPTIONS)
    np.testing.assert_array_equal(
        embed_records(model, records), embed_records(load_model(start), records)
    )
    assert summary(out)["epochs"] == 0


def test_the_model_is_a_whole_one(start: Path, records: Records, tmp_path: Path) -> None:
    further = train(records, tmp_path / "further", start=start, epochs=1, batch_size=40)
    assert summary(tmp_path / "further")["steps"] == 2
    assert (
        explained(embed_records(further, records), embed_records(load_model(start), records)) > 0.9
    )
    typed = finetune(start, records, tmp_path / "typed", label_key="type", epochs=1)
    assert typed.encoder.vocabulary == further.vocabulary
    export(load_model(start), tmp_path / "served")
    [batch] = records.dataset(80, sources=load_model(start).sources)
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["by_index"]
    z = served(genes=batch["genes"], values=batch["values"])["embedding"].numpy()
    assert z.shape == (80, 8) and np.isfinite(z).all()


def test_several_devices_make_the_same(start: Path, records: Records, tmp_path: Path) -> None:
    train(records, tmp_path / "model", **OPTIONS, strategy="mirrored", batch_size=80)
    np.testing.assert_allclose(
        embed_records(load_model(tmp_path / "model"), records),
        embed_records(load_model(start), records),
        atol=1e-4,
    )


def test_an_ensemble_of_starts_is_one(records: Records, tmp_path: Path) -> None:
    model = train(records, tmp_path / "model", **OPTIONS, ensemble=2)
    assert summary(tmp_path / "model")["epochs"] == 0
    assert np.isfinite(embed_records(model, records)).all()


def test_a_run_leaves_no_curve_of_no_training(tmp_path: Path) -> None:
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    found = run(tmp_path / "cells.h5ad", tmp_path / "out", label_key="type", **OPTIONS)
    assert "cells_per_second_train" not in found and found["seconds_train"] > 0
    assert not (tmp_path / "out" / "figures" / "training.png").exists()
    assert found["ari_kmeans"] > 0.9
