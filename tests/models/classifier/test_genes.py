"""Genes as a voice beside the networks: optimum, weights, and what both say together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from concerto_tf.models import load_model, save_model
from concerto_tf.models.classifier import Classifier, learn_genes
from concerto_tf.models.classifier.genes import (
    ALIKE,
    OTHERWISE,
    Prior,
    chosen_to_learn,
    fit_genes,
    labelled_cells,
    source_parts,
    weigh,
)
from concerto_tf.models.dense import DenseModel

pytestmark = pytest.mark.stack

CLASSES = ("B", "NK", "T")
#: The priors, written out: the test is to see them change.
PRIORS = {ALIKE: (0.3, 1.0), OTHERWISE: (0.01, 0.5)}


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("types", [2, 3])
@pytest.mark.parametrize("prior", list(PRIORS))
def test_fit_is_where_the_gradient_of_the_penalized_likelihood_vanishes(
    types: int, prior: Prior
) -> None:
    """In float64: the sum of w log p, less a Gaussian prior as wide as the gene varies."""
    rng = np.random.default_rng(types)
    label = np.arange(60) % types
    y = rng.normal(size=(60, 5)) + 1.5 * (label[:, None] == np.arange(5) % types)
    y[:, 4] = 0.25  # a gene that nobody shows
    weight = rng.uniform(0.5, 1.5, 60)
    width = np.array([1.0, 0.2, 2.0, 0.5, 3.0])
    kernel, bias = (np.float64(x) for x in fit_genes(y, label, weight, width, types, prior))
    assert not kernel[4].any()
    error = weight[:, None] * (np.exp(log_softmax(y @ kernel + bias)) - np.eye(types)[label])
    strength, power = PRIORS[prior]
    width = width**power
    variance = (y * width).var(0)[:4].mean()
    of_prior = kernel[:4] * variance / (strength * width[:4, None] ** 2)
    if types == 2:  # one column of odds: half of it each way
        of_prior *= 2
    np.testing.assert_allclose(y[:, :4].T @ error + of_prior, 0, atol=0.02)
    np.testing.assert_allclose(error.sum(0), 0, atol=0.02)


def test_gene_that_varies_little_counts_little() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    y = rng.normal(size=(80, 2)) + label[:, None]
    kernel, _ = fit_genes(y, label, np.ones(80), np.array([1.0, 0.05]), 2)
    assert abs(kernel[1]).max() < 0.1 * abs(kernel[0]).max()


def test_type_without_cells_is_never_told() -> None:
    y = np.random.default_rng(0).normal(size=(40, 4))
    kernel, bias = fit_genes(y, np.arange(40) % 2 * 2, np.ones(40), np.ones(4), 3)
    assert (log_softmax(y @ np.float64(kernel) + bias)[:, 1] < -1e6).all()


def test_voices_are_those_under_which_held_out_types_are_likeliest() -> None:
    """Against a search over a grid, and for few cells near a half."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 300)
    truth = np.eye(3)[label]
    networks = log_softmax(2.0 * truth + rng.normal(size=(300, 3)))
    genes = log_softmax(1.0 * truth + rng.normal(size=(300, 3)))
    found = weigh(networks, genes, label)

    def cost(voices: np.ndarray) -> float:
        log_p = log_softmax(voices[0] * networks + voices[1] * genes)
        return 2.0 * np.square(voices - 0.5).sum() - log_p[np.arange(300), label].sum()

    grid = [np.array([a, b]) for a in np.arange(0, 3, 0.05) for b in np.arange(0, 3, 0.05)]
    best = min(grid, key=cost)
    np.testing.assert_allclose(found, best, atol=0.03)
    few = weigh(networks[:2], genes[:2], label[:2])
    assert (abs(few - 0.5) < abs(found - 0.5) + 0.2).all() and (abs(few - 0.5) < 0.3).all()


def test_cells_to_learn_from_are_as_many_of_each_type() -> None:
    codes = np.repeat([0, 1, 2], [20_000, 6_000, 40])
    learned = np.ones(len(codes), bool)
    learned[:10_000] = False
    chosen = chosen_to_learn(codes, learned, 5_000, 0)
    assert not chosen[~learned].any()
    assert np.bincount(codes[chosen]).tolist() == [4_980, 4_980, 40]
    assert chosen_to_learn(codes, learned, 100_000, 0).sum() == 1_000  # 400 MB of values


def labelled(make_batch: Callable, n: int, seed: int) -> dict[str, np.ndarray]:
    batch = make_batch(n, seed=seed)
    rng = np.random.default_rng(seed)
    return {**batch, "label/type": rng.integers(0, 3, n)}  # drawn first there, too


def test_both_voices_are_added_and_kept(
    make_model: Callable, make_batch: Callable, tmp_path: object
) -> None:
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells, others = labelled(make_batch, 90, 0), labelled(make_batch, 60, 1)
    before = model.log_probabilities(cells, model.standardized(cells)).numpy()
    networks = model.head.of_networks(*model.encoder.represent(cells)).numpy()
    np.testing.assert_allclose(log_softmax(before), log_softmax(networks), atol=1e-5)

    learn_genes(model, [cells], np.array([30, 30, 30]), [others])
    voices = np.array(model.head.voices)
    assert voices[1] > voices[0]  # the networks have learned nothing
    (y,), label = labelled_cells(model, [cells], lambda batch: [model.standardized(batch)])
    genes = log_softmax(
        np.float64(y) @ np.array(model.head.genes.kernel) + np.array(model.head.genes.bias)
    )
    want = voices[0] * networks + voices[1] * genes
    found = model.annotate([cells])
    np.testing.assert_allclose(np.log(found["probabilities"]), log_softmax(want), atol=1e-3)
    assert np.mean(genes.argmax(1) == label) > 0.95

    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras").annotate([cells])
    np.testing.assert_array_equal(loaded["probabilities"], found["probabilities"])
    assert model.head.genes.kernel.shape == (y.shape[1], 3)


def test_genes_that_carry_over_to_no_other_source_are_not_trusted(
    make_model: Callable, make_batch: Callable
) -> None:
    """Genes that tell the types in one source and mislead in the other, of a blind network."""
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells, others = labelled(make_batch, 120, 0), labelled(make_batch, 90, 1)
    learn_genes(model, [cells], np.array([40, 40, 40]), [others])
    trusted = np.array(model.head.voices)[1]
    for batch in (cells, others):  # the other source calls each type by the next one's name
        batch["label/type"] = (batch["label/type"] + (batch["source"] == 1)) % 3
    learn_genes(model, [cells], np.array([40, 40, 40]), [others])
    assert trusted > 0.5 and np.array(model.head.voices)[1] < 0.1 * trusted
    # One type alone is in both sources: nothing is judged, and both count by half.
    for batch in (cells, others):
        batch["label/type"] = np.where(batch["source"] == 1, 2, batch["label/type"])
    one = {**cells, "label/type": np.where(cells["source"] == 1, 2, cells["label/type"] % 2 * 2)}
    learn_genes(model, [one], np.array([40, 40, 40]), [others])
    np.testing.assert_array_equal(np.array(model.head.voices), [0.5, 0.5])
    assert source_parts(np.array([3, 3, 3])) == []
    parts = source_parts(np.repeat(np.arange(7), 2))
    assert len(parts) == 5 and sorted(np.concatenate(parts).tolist()) == list(range(7))


def test_nothing_of_the_genes_voice_is_trained(make_model: Callable, make_batch: Callable) -> None:
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells = labelled(make_batch, 64, 0)
    learn_genes(model, [cells], np.array([20, 20, 20]))
    np.testing.assert_array_equal(np.array(model.head.voices), [0.5, 0.5])
    before = np.array(model.head.genes.kernel)
    model.compile(learning_rate=0.05, jit_compile=False)
    model.train_step(cells)
    np.testing.assert_array_equal(np.array(model.head.genes.kernel), before)


def test_deviations_are_what_values_were_divided_by(
    make_model: Callable, make_batch: Callable
) -> None:
    model, cells = make_model(), make_batch(64, seed=0)
    model.calibrate([cells])
    norm = model.networks.branches[0].student_norm
    count, _, variance = (np.float64(moment) for moment in norm.moving_moments)
    pooled = (count[:, None] * variance).sum(0) / count.sum()
    np.testing.assert_allclose(model.deviations, np.sqrt(pooled + norm.epsilon), rtol=1e-6)
    plain = DenseModel([f"G{i}" for i in range(12)], standardize=False)
    np.testing.assert_array_equal(plain.deviations, np.ones(12))
