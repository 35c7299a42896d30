"""Concerto against its paper's equations, written out plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto
from concerto_tf.records.batch import Minibatch
from concerto_tf.records.packing import pack

pytestmark = pytest.mark.stack

G, B, TAU = 30, 12, 0.3
#: The paper's preset with nothing left to chance.
PAPER = {
    **Concerto.presets["paper"].options,
    "units": 6,
    "attention_units": 5,
    "hidden_units": 7,
    "dropout": 0.0,
    "temperature": TAU,
}
TEACHER_EPSILON, STUDENT_EPSILON = 1e-5, 1e-3


@pytest.fixture(scope="module")
def exact(make_model: Callable, make_batch: Callable) -> Iterator[tuple[Concerto, dict, dict]]:
    """A model in float64 with random weights, its weights by name, and cells."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float64")
    try:
        model = make_model(G, **PAPER)
        rng = np.random.default_rng(3)
        # Also what starts at zero or one, so that leaving it out would show.
        for weight in model.trainable_weights:
            weight.assign(rng.normal(0.3, 0.5, weight.shape))
        batch = make_batch(B, G)
        batch = {k: v.astype("float64") if v.dtype == np.float32 else v for k, v in batch.items()}
        yield model, named_weights(model), batch
    finally:
        keras.mixed_precision.set_global_policy(policy)


def named_weights(model: Concerto) -> dict[str, tf.Variable]:
    attention, teacher, student = (
        model.networks.branches[0].attention,
        model.networks.teacher_norm,
        model.networks.branches[0].student_norm,
    )
    return {
        "E": attention.embeddings,
        "W1": attention.kernel,
        "b1": attention.bias,
        "u": attention.context,
        "gt": teacher.gamma,
        "ct": teacher.beta,
        "W2": model.networks.teacher_dense.kernel,
        "b2": model.networks.teacher_dense.bias,
        "gs": student.gamma,
        "cs": student.beta,
        "W3": model.networks.student_dense.kernel,
        "b3": model.networks.student_dense.bias,
    }


def dense_values(batch: dict) -> np.ndarray:
    """Counts of all genes, to 10,000 per cell, log1p: float64 [B, G]."""
    x = np.zeros((len(batch["genes"]), G))
    for i, (genes, values) in enumerate(zip(batch["genes"], batch["values"], strict=True)):
        for gene, value in zip(genes, values, strict=True):
            x[i, gene] += value
    return np.log1p(1e4 * x / x.sum(1, keepdims=True))


def numpy_reference(w: dict, x: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Z_t and Z_s, cell by cell and gene by gene: equations 1 to 6."""
    w = {name: np.asarray(value, "float64") for name, value in w.items()}
    s = np.zeros((len(x), w["E"].shape[1]))
    for n, v in enumerate(x):
        h = [v[i] * w["E"][i] for i in range(G)]  # 1, 2
        score = [float(np.tanh(h_i @ w["W1"] + w["b1"]) @ w["u"][:, 0]) for h_i in h]  # 3
        alpha = np.exp(score) / np.exp(score).sum()  # 4
        s[n] = sum(a * h_i for a, h_i in zip(alpha, h, strict=True))  # 5

    def normalized(y: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float):
        out = np.empty_like(y)
        for code in np.unique(source):
            own = source == code
            mean, variance = y[own].mean(0), y[own].var(0)
            out[own] = gamma * (y[own] - mean) / np.sqrt(variance + epsilon) + beta
        return out

    # The scale sqrt(G) is no part of equation 5. The normalization that follows takes it out
    # again, so that all it does is to make epsilon small in comparison.
    t = normalized(s * np.sqrt(G), w["gt"], w["ct"], TEACHER_EPSILON)
    z = normalized(x, w["gs"], w["cs"], STUDENT_EPSILON)
    return np.maximum(t @ w["W2"] + w["b2"], 0), np.maximum(z @ w["W3"] + w["b3"], 0)  # 6


def numpy_loss(z_t: np.ndarray, z_s: np.ndarray) -> float:
    """Equations 7 to 9, view by view: cell k has the views 2k and 2k + 1."""
    z = np.empty((2 * len(z_t), z_t.shape[1]))
    z[0::2], z[1::2] = z_t, z_s

    def s(i: int, j: int) -> float:
        # A ReLU may leave nothing of a cell: its similarity to everything is then 0.
        return z[i] @ z[j] / (TAU * max(np.linalg.norm(z[i]) * np.linalg.norm(z[j]), 1e-300))

    def term(i: int, j: int) -> float:
        return -np.log(np.exp(s(i, j)) / sum(np.exp(s(i, k)) for k in range(len(z)) if k != i))

    pairs = range(len(z_t))
    return sum(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in pairs) / len(z)


def dense_loss(w: dict[str, tf.Tensor], x: np.ndarray, source: np.ndarray) -> tf.Tensor:
    """The loss by dense operations over all genes, for TensorFlow to differentiate."""
    h = x[:, :, None] * w["E"][None]
    alpha = tf.nn.softmax(tf.tanh(h @ w["W1"] + w["b1"]) @ w["u"], axis=1)
    s = tf.reduce_sum(alpha * h, 1) * np.sqrt(G)

    def normalized(y: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
        order, parts = [], []
        for code in np.unique(source):
            own = np.flatnonzero(source == code)
            mean, variance = tf.nn.moments(tf.gather(y, own), [0])
            parts.append((tf.gather(y, own) - mean) / tf.sqrt(variance + epsilon))
            order.extend(own)
        return gamma * tf.gather(tf.concat(parts, 0), np.argsort(order)) + beta

    t = normalized(s, w["gt"], w["ct"], TEACHER_EPSILON)
    z = normalized(tf.constant(x), w["gs"], w["cs"], STUDENT_EPSILON)
    views = [tf.nn.relu(t @ w["W2"] + w["b2"]), tf.nn.relu(z @ w["W3"] + w["b3"])]
    z = tf.math.l2_normalize(tf.concat(views, 0), 1)
    n = len(x)
    against = tf.exp(z @ tf.transpose(z) / TAU) * (1 - np.eye(2 * n))
    positive = tf.reduce_sum(z * tf.roll(z, n, 0), 1) / TAU
    return tf.reduce_mean(tf.math.log(tf.reduce_sum(against, 1)) - positive)


def test_views_and_loss_are_equations_1_to_9(exact: tuple) -> None:
    model, weights, batch = exact
    z_t, z_s = numpy_reference(weights, dense_values(batch), batch["source"])
    got_t, got_s = model.views(batch)
    assert (z_t > 0).any() and (z_s > 0).any()
    np.testing.assert_allclose(got_t, z_t, atol=1e-10)
    np.testing.assert_allclose(got_s, z_s, atol=1e-10)
    loss = float(tf.reduce_mean(model.contrastive_loss(got_t, got_s)))
    assert loss == pytest.approx(numpy_loss(z_t, z_s), abs=1e-10)


def test_gradient_of_the_whole_loss_is_that_of_the_dense_form(exact: tuple) -> None:
    model, weights, batch = exact
    plain = {name: tf.convert_to_tensor(weight) for name, weight in weights.items()}
    with tf.GradientTape() as tape:
        tape.watch(plain)
        want = dense_loss(plain, dense_values(batch), batch["source"])
    wanted = tape.gradient(want, plain)
    with tf.GradientTape() as tape:
        got = tf.reduce_mean(model.contrastive_loss(*model.views(batch)))
    gradients = tape.gradient(got, model.trainable_variables)
    assert float(got) == pytest.approx(float(want), abs=1e-10)
    assert len(gradients) == len(wanted)  # nothing else is trained
    by_id = {id(v): g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    for name, weight in weights.items():
        assert np.abs(wanted[name]).max() > 1e-6, name
        np.testing.assert_allclose(by_id[id(weight)], wanted[name], atol=1e-10, err_msg=name)


def test_embedding_is_the_teachers_output_with_the_sources_statistics(exact: tuple) -> None:
    model, weights, batch = exact
    model.calibrate([batch])  # the statistics that a view of the same whole cells has
    z_t, _ = numpy_reference(weights, dense_values(batch), batch["source"])
    np.testing.assert_allclose(model(batch), z_t, atol=1e-10)


def test_attention_weights_are_equation_4(exact: tuple) -> None:
    model, weights, batch = exact
    x, w = dense_values(batch), {k: np.asarray(v) for k, v in weights.items()}
    score = np.tanh((x[:, :, None] * w["E"][None]) @ w["W1"] + w["b1"]) @ w["u"][:, 0]
    alpha = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    genes, got = model.attention_weights(batch)
    listed = batch["values"] > 0
    rows = np.nonzero(listed)[0]
    np.testing.assert_allclose(got.numpy()[listed], alpha[rows, genes.numpy()[listed]], atol=1e-10)


@pytest.mark.parametrize(("readout", "width"), [("teacher", 8), ("student", 8), ("both", 16)])
def test_readouts(make_model: Callable, make_batch: Callable, readout: str, width: int) -> None:
    model, batch = make_model(readout=readout), make_batch()
    assert model.embedding_dim == width
    z = model(batch).numpy()
    assert z.shape == (32, width)
    if readout == "both":
        np.testing.assert_allclose(np.linalg.norm(z[:, :8], axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(z[:, 8:], axis=1), 1, rtol=1e-5)
    assert (make_model(readout=readout, readout_activation="relu")(batch).numpy() >= 0).all()
    assert (z < 0).any()


def test_genes_outside_the_choice_count_towards_the_total_only(
    make_model: Callable, make_batch: Callable
) -> None:
    chosen, batch = [1, 4, 5, 20], make_batch()
    model = make_model(genes=chosen)
    genes, values, _ = model.modality_inputs[0].cells(Minibatch(batch))
    dense = np.zeros((32, 4))
    np.add.at(dense, (np.arange(32)[:, None], genes.numpy()), values.numpy())
    np.testing.assert_allclose(dense, dense_values(batch)[:, chosen], rtol=1e-5)


@pytest.mark.parametrize("genes", [None, tuple(range(0, G, 2))])
def test_packed_cells_are_the_same_cells(
    make_model: Callable, make_batch: Callable, genes: tuple | None
) -> None:
    batch = make_batch()
    own = batch["values"] > 0
    lengths = own.sum(1).astype(np.int32)
    g, v, offset = pack(batch["genes"][own], batch["values"][own], lengths, 8, 20)
    assert g.shape[1] < lengths.max()  # some cell does stand in another's row
    packed = {**batch, "genes": g, "values": v, "offset": offset}
    model = make_model(genes=genes, mask_rate=0.0, readout="both")
    for got, want in zip(model.views(packed), model.views(batch), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
    np.testing.assert_allclose(model(packed), model(batch), atol=2e-5)


def test_the_two_views_hide_different_genes_and_every_step_others(
    make_model: Callable, make_batch: Callable
) -> None:
    model, batch = make_model(), make_batch()
    [branch], cells = model.networks.branches, model.modality_inputs[0].cells(Minibatch(batch))
    hidden = [
        branch.standardized(cells, batch["source"], training=True).numpy() == 0 for _ in range(2)
    ]
    for part in hidden:
        np.testing.assert_array_equal(part.sum(1), branch.n_inputs / 2)  # zeros among them
    assert not np.array_equal(*hidden)
    hidden = [
        model.networks.branches[0].teacher_mask(tf.ones([32, 30]), training=True).numpy() == 0
        for _ in range(2)
    ]
    assert 0.4 < np.mean(hidden) < 0.6  # 1,920 draws: five standard deviations are 0.06
    assert not np.array_equal(*hidden)
    assert (
        model.networks.branches[0].teacher_mask.seed != model.networks.branches[0].student_mask.seed
    )


def test_hidden_genes_do_not_enter_the_statistics_of_the_student(
    make_model: Callable, make_batch: Callable
) -> None:
    batch = make_batch()
    # Deeply sequenced: every gene varies by a hundredth of its mean.
    rng = np.random.default_rng(0)
    batch["genes"] = np.tile(np.arange(30, dtype=np.int32), (32, 1))
    batch["values"] = (1e4 * (1 + 0.01 * rng.normal(size=(32, 30)))).astype(np.float32)
    batch["total"] = batch["values"].sum(1)
    batch["source"] = np.zeros(32, np.int32)
    model = make_model(value_clip=None, input_epsilon=1e-12)
    [branch], cells = model.networks.branches, model.modality_inputs[0].cells(Minibatch(batch))
    x = branch.spread(cells).numpy()
    want = (x - x.mean(0)) / x.std(0)
    got = branch.standardized(cells, batch["source"], training=True).numpy()
    shown = got != 0
    np.testing.assert_array_equal(shown.sum(1), 15)
    np.testing.assert_allclose(got[shown], 2 * want[shown], atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"readout": "pupil"}, "readout must be one of teacher, student, both"),
        ({"readout_activation": "gelu"}, "readout_activation must be relu or None"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"genes": [3, 3]}, "ascending"),
        ({"genes": [3, 30]}, "indices of the 30 genes"),
        ({"genes": []}, "indices of the 30 genes"),
        ({"sources": ()}, "at least one source"),
    ],
)
def test_arguments_are_checked(make_model: Callable, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_model(**arguments)
