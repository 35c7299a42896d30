"""Two replicas compute what one does: the blocks of CLEAR, contrastive-sc and CICL."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.layers.augmentation import Augmentation
from concerto_tf.layers.exchange import Crossover
from concerto_tf.layers.kmeans import kmeans
from concerto_tf.layers.masking import RandomMask
from concerto_tf.layers.noise import GaussianNoise, ScaledNoise
from concerto_tf.layers.queue import EmbeddingQueue
from concerto_tf.losses.cluster_aware import cluster_aware
from concerto_tf.losses.info_nce import info_nce
from concerto_tf.losses.nt_xent import nt_xent
from concerto_tf.losses.vicreg import vicreg

pytestmark = pytest.mark.stack

D = 5
QUEUE = np.random.default_rng(9).normal(size=(8, D))
CLUSTERS = 3 * D  # the column that holds them

LOSSES: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "nt_xent": lambda x: nt_xent(x[:, :D], x[:, D : 2 * D], 0.3),
    "info_nce": lambda x: info_nce(
        x[:, :D],
        x[:, D : 2 * D],
        tf.constant(QUEUE),
        own_key=x[:, 2 * D : 3 * D],
        filled=tf.constant(6),
    ),
    "vicreg": lambda x: vicreg(x[:, :D], x[:, D : 2 * D]),
    "cluster_aware": lambda x: cluster_aware(
        x[:, :D], x[:, D : 2 * D], tf.cast(x[:, CLUSTERS], tf.int32)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_its_gradient_are_those_of_the_global_batch(on_both: Callable, name: str) -> None:
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=(12, 3 * D)), np.arange(12) % 3]
    x[:6] *= 0.5  # the halves differ

    def loss_of(part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(part)
            loss = tf.reduce_mean(LOSSES[name](part))
        return loss, tape.gradient(loss, part)

    want, gradient = loss_of(tf.constant(x))
    losses, gradients = on_both(x, loss_of)
    assert float(losses[0]) != pytest.approx(float(losses[1]), abs=1e-3)  # of other cells each
    assert np.mean(losses) == pytest.approx(float(want), abs=1e-10)
    # Each replica's loss is a mean over half of the cells.
    np.testing.assert_allclose(np.concatenate(gradients) / 2, gradient, atol=1e-10)


def test_clusters_are_those_of_the_global_batch(on_both: Callable) -> None:
    x = np.random.default_rng(1).normal(size=(30, 4))
    x[:15] += 1  # the halves alone have other clusters
    want = kmeans(tf.constant(x), 4, seed=3)
    centroids, clusters = on_both(x, lambda part: kmeans(part, 4, seed=3))
    for of_replica in centroids:
        np.testing.assert_allclose(of_replica, want[0], atol=1e-12)
    np.testing.assert_array_equal(np.concatenate(clusters), want[1])


def test_more_clusters_than_a_replica_has_cells(on_both: Callable) -> None:
    x = np.random.default_rng(1).normal(size=(6, 4))
    _, clusters = on_both(x, lambda part: kmeans(part, 5))
    assert len(set(np.concatenate(clusters))) == 5


def test_queue_holds_the_global_batch(strategy: tf.distribute.Strategy, on_both: Callable) -> None:
    def queue() -> EmbeddingQueue:
        made = EmbeddingQueue(12)
        made.build((None, 3))
        return made

    alone = queue()
    with strategy.scope():
        together = queue()
    for i in range(4):
        x = np.random.default_rng(i).normal(size=(4, 3)).astype("float32")
        want = alone(x, training=True)
        earlier, filled = on_both(x, lambda part: together(part, training=True))
        for replica in range(2):
            np.testing.assert_array_equal(earlier[replica], want[0])
            assert int(filled[replica]) == int(want[1])
    np.testing.assert_array_equal(
        tf.convert_to_tensor(together.embeddings), tf.convert_to_tensor(alone.embeddings)
    )
    assert int(tf.convert_to_tensor(together.pointer)) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomMask(0.5, probability=0.9, exact=True),
        lambda: GaussianNoise(probability=1.0),
        ScaledNoise,
        lambda: Crossover(probability=1.0),
        lambda: Augmentation(probability=0.9),
    ],
    ids=["mask", "noise", "scaled noise", "crossover", "all"],
)
def test_replicas_draw_differently_and_reproducibly(
    strategy: tf.distribute.Strategy, on_both: Callable, make: Callable
) -> None:
    half = np.random.default_rng(0).gamma(1.0, 1.0, (4, 50)).astype("float32")
    x = np.concatenate([half, half])

    def run() -> list[np.ndarray]:
        with strategy.scope():
            layer = make()
            layer.build((None, 50))
        return [view.numpy() for view in on_both(x, lambda part: layer(part, training=True))]

    first, second = run()
    assert (first != half).any() and (second != half).any()
    assert (first != second).any(1).all()
    for got, want in zip(run(), (first, second), strict=True):
        np.testing.assert_array_equal(got, want)
    # The first replica draws what a layer without replicas does.
    np.testing.assert_array_equal(make()(half, training=True), first)
