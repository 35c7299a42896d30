"""Embedding and genes as voices beside the networks: weights, and what all say together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from concerto_tf.models import load_model, save_model
from concerto_tf.models.classifier import Classifier, learn_linear, weigh_voices
from concerto_tf.models.classifier.linear import labelled_cells
from concerto_tf.models.dense import DenseModel
from concerto_tf.numerics.spread import as_unseen

pytestmark = pytest.mark.stack

CLASSES = ("B", "NK", "T")


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def labelled(make_batch: Callable, n: int, seed: int) -> dict[str, np.ndarray]:
    batch = make_batch(n, seed=seed)
    rng = np.random.default_rng(seed)
    return {**batch, "label/type": rng.integers(0, 3, n)}  # drawn first there, too


def test_voices_are_added_and_kept(
    make_model: Callable, make_batch: Callable, tmp_path: object
) -> None:
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells, others = labelled(make_batch, 90, 0), labelled(make_batch, 60, 1)
    before = model.log_probabilities(cells, model.standardized(cells)).numpy()
    networks = model.head.of_networks(*model.encoder.represent(cells)).numpy()
    np.testing.assert_allclose(log_softmax(before), log_softmax(networks), atol=1e-5)

    lesson = learn_linear(model, [cells], np.array([30, 30, 30]))
    weigh_voices(model, lesson, [others])
    voices = np.array(model.head.voices)
    assert voices[2] > voices[0]  # the networks have learned nothing
    (z, y), label = labelled_cells(
        model, [cells], lambda batch: [model.encoder(batch), model.standardized(batch)]
    )

    def said(layer: object, x: np.ndarray) -> np.ndarray:
        return log_softmax(np.float64(x) @ np.array(layer.kernel) + np.array(layer.bias))

    units, genes = said(model.head.units, z), said(model.head.genes, y)
    want = voices[0] * networks + voices[1] * units + voices[2] * genes
    found = model.annotate([cells])
    np.testing.assert_allclose(np.log(found["probabilities"]), log_softmax(want), atol=1e-3)
    assert np.mean(genes.argmax(1) == label) > 0.95 and np.mean(units.argmax(1) == label) > 0.5

    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras").annotate([cells])
    np.testing.assert_array_equal(loaded["probabilities"], found["probabilities"])
    assert model.head.genes.kernel.shape == (y.shape[1], 3)
    assert model.head.units.kernel.shape == (z.shape[1], 3)


@pytest.mark.parametrize("trained", [True, False])
def test_genes_that_carry_over_to_no_other_source_are_not_trusted(
    make_model: Callable, make_batch: Callable, trained: bool
) -> None:
    """Genes that tell the types in one source and mislead in the other, of a blind network."""
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells, others = labelled(make_batch, 120, 0), labelled(make_batch, 90, 1)
    count = np.array([40, 40, 40])

    def weights(learned: dict[str, np.ndarray]) -> np.ndarray:
        lesson = learn_linear(model, [learned], count)
        weigh_voices(model, lesson, [others] if trained else None)
        return np.array(model.head.voices)

    trusted = weights(cells)
    assert trained == (trusted[0] > 0)
    for batch in (cells, others):  # the other source calls each type by the next one's name
        batch["label/type"] = (batch["label/type"] + (batch["source"] == 1)) % 3
    assert trusted[2] > 0.5 and weights(cells)[2] < 0.1 * trusted[2]
    # One type alone is in both sources: nothing is judged, and all count as expected.
    one = {**cells, "label/type": np.where(cells["source"] == 1, 2, cells["label/type"] % 2 * 2)}
    others["label/type"] = np.where(others["source"] == 1, 2, others["label/type"])
    np.testing.assert_allclose(weights(one), [0.2, 0.6, 0.2] if trained else [0, 0.75, 0.25])


def test_cells_that_are_judged_have_taught_nothing(
    make_model: Callable, make_batch: Callable
) -> None:
    """Labels at random: told by heart they would be trusted, by the other half they are not."""
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells = labelled(make_batch, 120, 0)
    cells["source"] = np.zeros_like(cells["source"])
    cells["label/type"] = np.random.default_rng(5).integers(0, 3, 120)
    lesson = learn_linear(model, [cells], np.array([40, 40, 40]))
    by_heart = lesson.y @ np.array(model.head.genes.kernel) + np.array(model.head.genes.bias)
    assert np.mean(by_heart.argmax(1) == cells["label/type"]) > 0.6
    weigh_voices(model, lesson)
    assert np.array(model.head.voices)[2] < 0.1


def test_held_out_cells_are_told_as_new_ones_that_spread_less(
    make_model: Callable, make_batch: Callable
) -> None:
    """What new cells are told is what held-out cells are told whose embedding is drawn together."""
    encoder, cells = make_model(), labelled(make_batch, 120, 0)
    z = np.array(encoder(cells))
    middle, seen = encoder.geometry.origin, z.std(0)
    share = np.linspace(0.3, 0.9, z.shape[1]).astype(np.float32)
    encoder.placement.deviations.assign(np.stack([seen, share * seen]))
    model = Classifier(encoder, CLASSES, label_key="type")

    def told(x: np.ndarray, held_out: bool) -> np.ndarray:
        learn_linear(model, [cells], np.array([40, 40, 40]), held_out_next=held_out)
        return np.array(model.head.of_units(x))

    factor = as_unseen(z - middle, encoder.geometry.spread)
    assert factor.max() < 0.95
    known = told(z, held_out=True)
    np.testing.assert_allclose(known, told(middle + factor * (z - middle), False), atol=1e-4)
    assert abs(known - told(z, False)).max() > 0.01


def test_nothing_of_the_linear_voices_is_trained(
    make_model: Callable, make_batch: Callable
) -> None:
    model = Classifier(make_model(), CLASSES, label_key="type")
    cells = labelled(make_batch, 64, 0)
    weigh_voices(model, learn_linear(model, [cells], np.array([20, 20, 20])), [])
    np.testing.assert_allclose(np.array(model.head.voices), [0.2, 0.6, 0.2], rtol=1e-6)
    before = [np.array(layer.kernel) for layer in (model.head.units, model.head.genes)]
    model.compile(learning_rate=0.05, jit_compile=False)
    model.train_step(cells)
    for layer, kernel in zip((model.head.units, model.head.genes), before, strict=True):
        np.testing.assert_array_equal(np.array(layer.kernel), kernel)


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
