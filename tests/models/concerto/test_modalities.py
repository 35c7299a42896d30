"""Several modalities in one model (equations 10 and 11), and genes that were not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model, save_model
from concerto_tf.models.concerto.branches import shown_of
from concerto_tf.models.encoder import looks_at
from concerto_tf.records.batch import Minibatch

pytestmark = pytest.mark.stack

N_PROTEINS = 5
PROTEIN = {"vocabulary": [f"P{i}" for i in range(N_PROTEINS)], "target_sum": None}


@pytest.fixture(scope="module")
def batch(make_batch: Callable) -> dict[str, np.ndarray]:
    """Cells of two modalities; the first ten lack the protein, the last two lack RNA."""
    cells = make_batch(40)
    rng = np.random.default_rng(5)
    values = rng.gamma(2.0, 1.0, (40, N_PROTEINS)).astype(np.float32)
    values[:10] = 0
    cells["values"][38:], cells["total"][38:] = 0, 0
    genes = np.tile(np.arange(N_PROTEINS, dtype=np.int32), (40, 1))
    return {**cells, "protein/genes": genes, "protein/values": values}


@pytest.fixture(scope="module")
def make_two(make_model: Callable) -> Callable[..., Concerto]:
    def make(**arguments: Any) -> Concerto:
        return make_model(modalities={"protein": PROTEIN}, **arguments)

    return make


def randomized(model: Concerto) -> Concerto:
    """The model with weights that all matter."""
    rng = np.random.default_rng(3)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0.3, 0.5, weight.shape))
    return model


def dense(genes: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    x = np.zeros((len(genes), n))
    for row in range(len(genes)):
        np.add.at(x[row], genes[row], values[row])
    return x


def normalized(
    x: np.ndarray, source: np.ndarray, layer: Any, counted: np.ndarray | None = None
) -> np.ndarray:
    """Batch normalization within each source, by the statistics of the cells that are counted."""
    counted = np.ones(len(x), bool) if counted is None else counted
    out = np.zeros_like(x)
    for code in np.unique(source):
        own = x[(source == code) & counted]
        scaled = (x - own.mean(0)) / np.sqrt(own.var(0) + layer.epsilon)
        out[source == code] = scaled[source == code]
    return out * np.array(layer.gamma) + np.array(layer.beta)


def test_modalities_are_summed_before_what_they_share(
    make_two: Callable, batch: dict[str, np.ndarray]
) -> None:
    model = randomized(make_two(mask_rate=0.0, modality_dropout=0.0, value_clip=None))
    source = batch["source"]
    counts = dense(batch["genes"], batch["values"], 30)
    rna = np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))
    xs = [rna, dense(batch["protein/genes"], batch["protein/values"], N_PROTEINS)]
    has = [counts.sum(1) > 0, xs[1].sum(1) > 0]
    teacher, student = np.zeros((40, 8)), np.zeros((40, 8))
    for branch, x, present in zip(model.networks.branches, xs, has, strict=True):
        attention = [np.array(w, np.float64) for w in branch.attention.get_weights()]
        e, w, b, u = attention
        score = np.exp(np.tanh((x[:, :, None] * e) @ w + b) @ u[:, 0])
        s = ((score / score.sum(1, keepdims=True)) * x) @ e * np.sqrt(x.shape[1])
        teacher += normalized(s, source, branch.branch_norm, present) * present[:, None]  # eq. 11
        y = normalized(x, source, branch.student_norm, present)
        y /= np.sqrt(x.shape[1])
        student += (y @ np.array(branch.branch_dense.kernel)) * present[:, None]  # eq. 10
    teacher = normalized(teacher, source, model.networks.teacher_norm) @ np.array(
        model.networks.teacher_dense.kernel
    )
    student = normalized(student, source, model.networks.joint_norm) @ np.array(
        model.networks.student_dense.kernel
    )
    got_t, got_s = model.represent(batch, training=True)
    want_t = teacher + np.array(model.networks.teacher_dense.bias)
    want_s = student + np.array(model.networks.student_dense.bias)
    np.testing.assert_allclose(got_t, want_t, atol=2e-4 * np.abs(want_t).max())
    np.testing.assert_allclose(got_s, want_s, atol=2e-4 * np.abs(want_s).max())


def test_cell_without_a_modality_stands_at_its_mean(
    make_two: Callable, batch: dict[str, np.ndarray]
) -> None:
    model = randomized(make_two(readout="both"))
    model.calibrate([batch] * 10)
    alone = {key: value for key, value in batch.items() if "/" not in key}
    z, of_rna = model(batch).numpy(), model(alone).numpy()
    np.testing.assert_allclose(z[:10], of_rna[:10], atol=1e-6)
    assert np.abs(z[10:38] - of_rna[10:38]).max(1).min() > 1e-3
    other = {**batch, "protein/genes": np.zeros_like(batch["protein/genes"])}
    np.testing.assert_array_equal(model(other).numpy()[:10], z[:10])


def test_two_modalities_train_and_come_back(
    make_two: Callable, batch: dict[str, np.ndarray], tmp_path: Path
) -> None:
    data = tf.data.Dataset.from_tensors(batch).repeat(40)
    losses = {}
    for components in (0, 4):
        model = make_two(components=components, hidden_units=16, units=16)
        model.compile(learning_rate=1e-2, jit_compile=components == 4)
        losses[components] = model.fit(data, epochs=1, verbose=0).history["loss"]
        model.fit(data, epochs=1, verbose=0)
    found = model.evaluate(data.take(1), verbose=0, return_dict=True)["loss"]
    assert found < losses[4][0] - 0.1
    save_model(model, tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    assert looks_at(again) == ("rna", "protein") and again.get_config() == model.get_config()
    np.testing.assert_array_equal(again(batch), model(batch))


def test_start_gives_each_modality_components_of_its_own(
    make_two: Callable, make_batch: Callable
) -> None:
    rng = np.random.default_rng(0)
    cells = make_batch(300)
    hidden = rng.normal(size=(300, 1))  # in the protein alone
    values = np.maximum(5 + hidden * rng.normal(size=(1, N_PROTEINS)) * 2, 0.01)
    genes = np.tile(np.arange(N_PROTEINS, dtype=np.int32), (300, 1))
    both = {**cells, "protein/genes": genes, "protein/values": values.astype(np.float32)}
    model = make_two(components=3, hidden_units=16, units=16, readout="both")
    model.initialize([both])
    model.calibrate([both] * 20)
    for z in np.split(model(both).numpy(), 2, axis=1):
        # How much of what only the protein knows a linear map finds in the view.
        x = np.c_[z, np.ones(300)]
        fitted = x @ np.linalg.lstsq(x, hidden, rcond=None)[0]
        assert np.corrcoef(fitted[:, 0], hidden[:, 0])[0, 1] > 0.9


@pytest.mark.parametrize("align_sources", [True, False])
def test_a_minibatch_may_lack_a_modality_at_the_start(
    make_two: Callable, batch: dict[str, np.ndarray], align_sources: bool
) -> None:
    without = {key: value for key, value in batch.items() if not key.startswith("protein/")}
    empty = {**batch, "protein/values": np.zeros_like(batch["protein/values"])}
    found = []
    for first in (without, empty):  # which say the same
        model = make_two(components=3, align_sources=align_sources)
        model.initialize([first, batch])
        found.append(model.embed([batch]))
    np.testing.assert_array_equal(*found)


def test_views_hide_one_modality_and_never_all(
    make_two: Callable, batch: dict[str, np.ndarray]
) -> None:
    model = make_two(modality_dropout=0.4)
    tensors = {key: tf.constant(value) for key, value in batch.items()}
    seen = [branch.look(Minibatch(tensors)) for branch in model.networks.branches]
    shown = np.array(
        [
            [part.numpy() for *_, part in shown_of(seen, model.networks.teacher_hide, True)]
            for _ in range(100)
        ]
    )
    has = np.array([one.present.numpy() for one in seen])
    assert (shown.any(1)).all() and not (shown & ~has).any()
    both = has.all(0)
    hidden = 1 - shown[:, :, both].mean((0, 2))
    # 0.4 less those of whom both would be hidden; 2,800 draws, four standard errors.
    np.testing.assert_allclose(hidden, 0.4 * 0.6, atol=4 * np.sqrt(0.24 * 0.76 / 2800))


def test_a_modality_alone_is_a_model_of_its_own(batch: dict[str, np.ndarray]) -> None:
    model = Concerto(
        PROTEIN["vocabulary"],
        modality="protein",
        target_sum=None,
        units=4,
        hidden_units=4,
        attention_units=4,
        components=2,
    )
    model.compile()
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    protein = {key: value for key, value in batch.items() if key.startswith("protein/")}
    source = np.zeros(40, np.int32)
    assert np.isfinite(model.embed([{**protein, "source": source, "genes": batch["genes"]}])).all()


def test_a_modality_has_features_and_a_name_of_its_own() -> None:
    for modalities in ({"rna": PROTEIN}, {"protein": {"vocabulary": []}}):
        with pytest.raises(InputError, match="modality"):
            Concerto(["a", "b"], modalities=modalities)


# --- genes that were not measured -----------------------------------------------------------


def test_genes_that_were_not_measured_stand_at_their_mean(
    make_model: Callable, make_batch: Callable
) -> None:
    """Exactly what comes out when every missing gene has the mean of the reference."""
    model = randomized(make_model(readout="both", target_sum=None, mask_rate=0.0))
    cells = make_batch(50)
    cells["source"][:] = 0
    full = dense(cells["genes"], cells["values"], 30).astype(np.float32)
    every = np.tile(np.arange(30, dtype=np.int32), (50, 1))
    model.calibrate([{"genes": every, "values": full, "source": cells["source"]}])
    measured = np.arange(30) % 3 > 0
    mean = np.array(model.networks.branches[0].student_norm.moving_mean)[0]
    filled = {"genes": every, "values": np.where(measured, full, mean).astype(np.float32)}
    without = {"genes": every, "values": np.where(measured, full, 0).astype(np.float32)}
    want = model.embed([{**filled, "source": cells["source"]}])
    got = model.embed([{**without, "source": cells["source"]}], {"rna": measured})
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    zeros = model.embed([{**without, "source": cells["source"]}])
    assert np.abs(zeros - want).max() > 100 * np.abs(got - want).max()


def test_features_of_a_further_modality_that_were_not_measured_stand_at_their_mean(
    make_two: Callable, make_batch: Callable
) -> None:
    model, cells = randomized(make_two(readout="both", mask_rate=0.0)), make_batch(50)
    cells["source"][:] = 0
    genes = np.tile(np.arange(N_PROTEINS, dtype=np.int32), (50, 1))
    full = np.random.default_rng(5).gamma(2.0, 1.0, (50, N_PROTEINS)).astype(np.float32)

    def with_protein(values: np.ndarray) -> dict[str, np.ndarray]:
        return {**cells, "protein/genes": genes, "protein/values": values.astype(np.float32)}

    model.calibrate([with_protein(full)])
    measured = np.arange(N_PROTEINS) > 1
    mean = np.array(model.networks.branches[1].student_norm.moving_mean)[0]
    want = model.embed([with_protein(np.where(measured, full, mean))])
    part = with_protein(np.where(measured, full, 0))
    got = model.embed([part], {"protein": measured})
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    assert np.abs(model.embed([part]) - want).max() > 100 * np.abs(got - want).max()


def test_any_modality_may_be_the_one_that_cells_lack(
    make_two: Callable, batch: dict[str, np.ndarray]
) -> None:
    model = randomized(make_two(readout="both"))
    protein = {key: value for key, value in batch.items() if key.startswith("protein/")}
    rna = {key: batch[key] for key in ("genes", "values", "total")}
    of = {"source": batch["source"]}
    silent = {
        "rna": {**rna, "values": 0 * batch["values"], "total": 0 * batch["total"], **protein},
        "protein": {**rna, **protein, "protein/values": 0 * batch["protein/values"]},
    }
    for without, have in (("rna", protein), ("protein", rna)):
        want = model.embed([{**silent[without], **of}])
        np.testing.assert_allclose(model.embed([{**have, **of}]), want, atol=1e-5)
    with pytest.raises(InputError, match="no rna or protein"):
        model(of)  # not traced, where TensorFlow would wrap what is raised


def test_total_of_a_cell_makes_up_for_genes_that_were_not_measured(
    make_model: Callable, make_batch: Callable
) -> None:
    model, cells = make_model(), make_batch(50)
    counts = dense(cells["genes"], cells["values"], 30)
    share = (counts / counts.sum(1, keepdims=True)).mean(0)
    model.modality_inputs[0].gene_share.assign(share)
    measured = np.arange(30) % 2 == 0
    part = np.where(measured, counts, 0).astype(np.float32)
    every = np.tile(np.arange(30, dtype=np.int32), (50, 1))
    batch = {"genes": every, "values": part, "measured": measured}
    _, got, _ = model.modality_inputs[0].cells(Minibatch(batch))
    want = np.log1p(1e4 * part * share[measured].sum() / part.sum(1, keepdims=True))
    np.testing.assert_allclose(got, want, rtol=1e-4)
