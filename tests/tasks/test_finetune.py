"""Fine-tuning, and what is done about unsuitable labels."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from anndata import AnnData
from scipy import stats

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import load_model
from concerto_tf.models.classifier import Classifier
from concerto_tf.records import Records, convert
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.relearn import tell
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.labels import hold_out, known_labels

N_GENES = 40
NAMES = np.array(["B", "NK", "T", "DC"])
OPTIONS: dict[str, Any] = {"label_key": "type", "batch_size": 50, "epochs": 30, "seed": 1}


def make_cells(n: int = 240, seed: int = 0, kinds: int = 3, donor: str = "a") -> AnnData:
    """Cells of kinds that differ in a third of their genes."""
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(9).gamma(0.4, 3.0, (4, N_GENES))
    kind = rng.integers(0, kinds, n)
    counts = rng.poisson(profiles[kind] * 2)
    counts[:, 0] += 1
    cells = AnnData(counts.astype("float32"))
    cells.obs_names = [f"cell{i}" for i in range(n)]
    cells.var_names = [f"AB{i}C" for i in range(N_GENES)]
    cells.obs["type"], cells.obs["donor"] = NAMES[kind], donor
    return cells


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    cells = make_cells()
    cells.obs["type"] = cells.obs["type"].astype(object)
    cells.obs.loc["cell7", "type"] = None
    cells.obs.loc["cell8", "type"] = "unknown"
    return convert(
        cells, tmp_path_factory.mktemp("records"), source_key="donor", label_keys=["type", "donor"]
    )


@pytest.fixture(scope="module")
def pretrained(records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "pretrained"
    small = {
        "units": 8,
        "hidden_units": 16,
        "attention_units": 4,
        "head_units": 6,
        "components": 5,
    }
    train(records, out, genes="all", epochs=10, batch_size=50, options=small)
    return out


@pytest.fixture(scope="module")
def finetuned(pretrained: Path, records: Records, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "finetuned"
    finetune(pretrained, records, out, learning_rate=0.01, **OPTIONS)
    return out


# --- fine-tuning --------------------------------------------------------------------------------


def test_folder_holds_the_model_and_what_its_calibration_says(
    finetuned: Path, pretrained: Path
) -> None:
    found = {entry.name for entry in finetuned.iterdir()}
    assert found == {"model.keras", "training.csv", "tensorboard", "training.json", "MODEL_CARD.md"}
    model = load_model(finetuned)
    assert isinstance(model, Classifier) and model.classes == ("B", "NK", "T")
    summary = json.loads((finetuned / "training.json").read_text())
    assert sum(summary["classes"].values()) == 238
    said = summary["calibration"]
    assert said["cells"] == len(model.calibration) == 48 and said["accuracy"] > 0.8
    j = round(49 * said["rejected"])  # of the held-out cells
    assert j <= 5
    want = stats.beta(j, 49 - j).ppf([0.025, 0.975]) if j else [0, 0]
    assert said["rejected_interval_95"] == pytest.approx(want, abs=1e-4)
    names = ("networks", "embedding", "genes")
    voices = dict(zip(names, np.array(model.head.voices), strict=True))
    assert said["voices"] == pytest.approx(voices, abs=1e-3) and said["voices"]["genes"] > 0
    # What was pre-trained stays as it was.
    assert not isinstance(load_model(pretrained), Classifier)


def test_no_network_is_trained_unless_something_asks_for_it(
    pretrained: Path, records: Records, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"label_key": "type", "seed": 1}
    model = finetune(pretrained, records, tmp_path / "model", learning_rate=0.01, **options)
    assert "no network is trained" in caplog.text  # so a rate does nothing
    summary = json.loads((tmp_path / "model" / "training.json").read_text())
    assert summary["epochs"] == 0 and summary["calibration"]["voices"]["networks"] == 0
    given = load_model(pretrained)
    for x, y in zip(model.encoder.trainable_weights, given.trainable_weights, strict=True):
        np.testing.assert_array_equal(np.array(x), np.array(y))
    assert summary["calibration"]["accuracy"] > 0.9
    caplog.clear()
    asked = finetune(pretrained, records, tmp_path / "asked", epochs=1, **options)
    assert "no network is trained" not in caplog.text
    assert np.array(asked.head.voices)[0] > 0


def test_called_again_it_opens_what_is_there_or_refuses(
    finetuned: Path, pretrained: Path, records: Records
) -> None:
    before = (finetuned / "model.keras").stat().st_mtime_ns
    again = finetune(pretrained, records, finetuned, learning_rate=0.01, **OPTIONS)
    assert (finetuned / "model.keras").stat().st_mtime_ns == before
    assert again.get_config() == load_model(finetuned).get_config()
    with pytest.raises(InputError, match="differing in learning_rate; remove this one"):
        finetune(pretrained, records, finetuned, **OPTIONS)


@pytest.mark.slow
def test_interrupted_training_continues_to_the_same_model(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    options = {**OPTIONS, "epochs": 4, "target": records}

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise KeyboardInterrupt

    straight = finetune(pretrained, records, tmp_path / "straight", **options)
    with pytest.raises(KeyboardInterrupt):
        finetune(pretrained, records, tmp_path / "stopped", callbacks=[Stop()], **options)
    assert not (tmp_path / "stopped" / "model.keras").exists()
    resumed = finetune(pretrained, records, tmp_path / "stopped", **options)
    for a, b in zip(straight.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert straight.calibration == resumed.calibration


@pytest.mark.slow
def test_nothing_is_learned_of_the_part_held_out(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    """The same cells, but those held out are of another kind: the same model."""
    _, codes = known_labels(records, "type")
    held_out = hold_out(codes, 0.2, seed=1)
    changed = make_cells()
    changed.obs["type"] = np.where(codes < 0, None, np.array([*NAMES, ""])[codes])
    profile = np.random.default_rng(3).poisson(2.0, (held_out.sum(), N_GENES)) + 1
    # Their nonzeros must not outgrow those of the others, which would change the batches' shape.
    profile[:, 30:] = 0
    changed.X[held_out] = profile
    other = convert(
        changed,
        tmp_path / "records",
        source_key="donor",
        label_keys=["type"],
    )
    options = {**OPTIONS, "epochs": 2}
    a = finetune(pretrained, records, tmp_path / "a", **options)
    b = finetune(pretrained, other, tmp_path / "b", **options)
    assert a.calibration != b.calibration
    # What the held-out cells are for: how much the voices count, scales of scores, and in how many
    # components types are compared. The directions of types and the networks show that they are
    # measured without them. Embedding and genes learn from them in the end, once all is calibrated.
    own = [a.head.voices, a.score_mean, a.score_width, a.type_axes, a.type_mean]
    own += [*a.head.units.weights, *a.head.genes.weights]
    calibrated = {id(w) for w in own}
    calibrated |= {id(w) for w in a.weights if "draws" in w.name}
    for x, y in zip(a.weights, b.weights, strict=True):
        if id(x) not in calibrated:
            np.testing.assert_allclose(np.array(x), np.array(y), atol=1e-4)


def test_learning_rate_follows_from_how_inputs_are_scaled(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    for end_to_end, usual in ((False, 2e-3), (True, 1e-3)):
        found = [
            finetune(
                pretrained,
                records,
                tmp_path / f"{end_to_end}-{rate}",
                end_to_end=end_to_end,
                learning_rate=rate,
                **{**OPTIONS, "epochs": 1},
            ).get_weights()
            for rate in (None, usual)
        ]
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_end_to_end_starts_from_fresh_weights(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    options = {**OPTIONS, "epochs": 1, "learning_rate": 1e-9}
    given = load_model(pretrained)
    fine = finetune(pretrained, records, tmp_path / "fine", **options)
    fresh = finetune(pretrained, records, tmp_path / "fresh", end_to_end=True, **options)
    kernel = np.array(given.networks.student_dense.kernel)
    np.testing.assert_allclose(
        np.array(fine.encoder.networks.student_dense.kernel), kernel, atol=1e-6
    )
    assert np.abs(np.array(fresh.encoder.networks.student_dense.kernel) - kernel).max() > 0.1
    fresh_config, config = fresh.encoder.get_config(), given.get_config()
    differ = {key for key in config if config[key] != fresh_config[key]}
    assert differ <= {"seed", "name", "scale_inputs"}


@pytest.mark.slow
def test_networks_alone_tell_types_where_asked(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    model = finetune(
        pretrained, records, tmp_path / "m", networks_only=True, **{**OPTIONS, "epochs": 1}
    )
    assert not np.array(model.head.genes.kernel).any()
    said = json.loads((tmp_path / "m" / "training.json").read_text())["calibration"]
    assert "voices" not in said and said["cells"] == 48
    cells = next(iter(records.dataset(32)))
    networks = model.head.of_networks(*model.encoder.represent(cells))
    want = tf.nn.softmax(networks).numpy()
    np.testing.assert_allclose(model.outcome(cells)["probabilities"].numpy(), want, atol=1e-6)


def test_target_of_another_source_is_learned_from(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    shifted = make_cells(120, seed=5, donor="b")
    shifted.X = (
        np.random.default_rng(0)
        .poisson(shifted.X * np.random.default_rng(1).gamma(1.0, 1.0, N_GENES))
        .astype("float32")
    )
    shifted.X[:, 0] += 1
    target = convert(
        shifted, tmp_path / "target", source_key="donor", label_keys=["type"], like=records
    )
    options = {**OPTIONS, "learning_rate": 0.01}
    plain = finetune(pretrained, records, tmp_path / "plain", **options)
    adapted = finetune(pretrained, records, tmp_path / "adapted", target=target, **options)
    assert plain.encoder.sources == ("a",) and adapted.encoder.sources == ("a", "b")
    with open(tmp_path / "adapted" / "training.csv") as file:
        assert "consistency" in file.readline()
    truth = shifted.obs["type"].to_numpy()

    def right(model: Classifier) -> float:
        codes = tell(model, target).found["code"]
        return np.mean(np.array(model.classes)[codes] == truth)

    assert right(adapted) > right(plain) + 0.02 or right(adapted) > 0.97


def test_genes_that_the_target_lacks_are_no_zeros(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    panel = make_cells(80, seed=5)[:, 10:].copy()
    target = convert(panel, tmp_path / "target", like=records)
    model = finetune(pretrained, records, tmp_path / "m", target=target, **{**OPTIONS, "epochs": 1})
    told = model.see_target(next(iter(target.dataset(16))))
    assert told["measured"].tolist() == [False] * 10 + [True] * 30
    assert set(model.see_target({"genes": 0})) == {"genes", "measured"}
    whole = finetune(
        pretrained, records, tmp_path / "w", target=records, **{**OPTIONS, "epochs": 1}
    )
    assert whole.see_target({"genes": 0}) == {"genes": 0}


@pytest.mark.slow
def test_two_replicas(pretrained: Path, records: Records, tmp_path: Path) -> None:
    options = {**OPTIONS, "epochs": 1, "strategy": "mirrored"}
    model = finetune(pretrained, records, tmp_path / "model", target=records, **options)
    assert len(model.calibration) == 48
    assert len(annotate(tmp_path / "model", make_cells(20))) == 20


# --- labels that are unsuitable -----------------------------------------------------------------


def labelled(tmp_path: Path, labels: Any) -> Records:
    cells = make_cells(60)
    cells.obs["type"] = labels
    return convert(cells, tmp_path / "odd", source_key="donor", label_keys=["type"])


def test_labels_of_one_type_or_none_are_refused(
    pretrained: Path, records: Records, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    one = labelled(tmp_path / "one", "B")
    with pytest.raises(InputError, match="two types apart, but all are 'B'"):
        finetune(pretrained, one, out, **OPTIONS)
    none = labelled(tmp_path / "none", "unknown")
    with pytest.raises(InputError, match="two types apart, but none of the cells has one"):
        finetune(pretrained, none, out, **OPTIONS)
    with pytest.raises(InputError, match="no label 'kind'; there are: type, donor; or convert"):
        finetune(pretrained, records, out, **{**OPTIONS, "label_key": "kind"})
    for change, message in (
        ({"calibration": 0.7}, "calibration is 0.7; hold out a share between 0 and 0.5"),
        ({"consistency": -1.0}, "consistency is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"strategy": "all"}, "no strategy 'all'"),
    ):
        with pytest.raises(InputError, match=message):
            finetune(pretrained, records, out, **{**OPTIONS, **change})
    assert not out.exists()


@pytest.mark.slow
def test_a_type_with_one_cell_is_learned_and_never_held_out(
    pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.where(np.arange(60) % 2 == 0, "B", "T").astype(object)
    labels[11] = "DC"
    few = labelled(tmp_path, labels)
    with caplog.at_level(logging.WARNING, "concerto_tf"):
        classes, codes = known_labels(few, "type")
    assert "'DC' has one cell" in caplog.text and classes == ["B", "DC", "T"]
    assert not any(hold_out(codes, 0.5, seed)[11] for seed in range(20))
    model = finetune(pretrained, few, tmp_path / "model", **{**OPTIONS, "epochs": 1})
    assert model.classes == ("B", "DC", "T") and len(model.calibration) == 15  # a quarter


def test_values_of_another_kind_are_refused(
    pretrained: Path, finetuned: Path, tmp_path: Path
) -> None:
    cells = make_cells(60)
    cells.X = np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))
    values = convert(cells, tmp_path / "r", source_key="donor", label_keys=["type"])
    with pytest.raises(InputError, match="log-normalized values, but the model was trained on raw"):
        finetune(pretrained, values, tmp_path / "out", **OPTIONS)
    with pytest.raises(InputError, match="log-normalized values, but the model was trained on raw"):
        annotate(finetuned, cells, tmp_path / "out.h5ad")
    fewer = convert(make_cells()[:, :30].copy(), tmp_path / "f", label_keys=["type"])
    with pytest.raises(InputError, match="are not the 40 of the model"):
        finetune(pretrained, fewer, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.h5ad").exists()


# --- what they rest on --------------------------------------------------------------------------


def test_held_out_part_is_stratified_random_and_of_the_size_asked_for() -> None:
    codes = np.repeat([-1, 0, 1, 2], [50, 400, 90, 10])
    chosen = hold_out(codes, 0.2, seed=3)
    assert chosen.sum() == 100 and not chosen[:50].any()
    assert np.bincount(codes[chosen]).tolist() == [80, 18, 2]
    assert (chosen == hold_out(codes, 0.2, seed=3)).all()
    assert (chosen != hold_out(codes, 0.2, seed=4)).any()
    often = np.mean([hold_out(codes, 0.2, seed) for seed in range(400)], axis=0)
    assert np.abs(often[50:] - 0.2).max() < 0.1  # every cell is as likely
    assert hold_out(np.zeros(100, int), 0.1).sum() == 19  # what alpha 0.05 takes
    assert hold_out(np.zeros(20, int), 0.1).sum() == 5  # but no more than a quarter
    assert hold_out(np.zeros(50_000, int), 0.2).sum() == 2_000
    assert not hold_out(codes, 0.0).any()
