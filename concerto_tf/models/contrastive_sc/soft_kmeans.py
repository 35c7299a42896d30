"""Soft K-means clustering network: an embedding is refined until its clusters are clear."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import (
    accumulation_dtype,
    apply_gradient_step,
    keras,
    replica_count,
    serializable,
    state_weight,
    sum_over_replicas,
)
from concerto_tf.errors import InputError, checked_share, checked_whole
from concerto_tf.layers.kmeans import squared_distances
from concerto_tf.losses.temperature import NEVER


def soft_assignment(z: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
    """How much each cell belongs to each cluster, by a Gaussian kernel.

    Args:
        z: Embeddings [B, d], float.
        centroids: Centroids [K, d].

    Returns:
        Weights w [B, K]; each row adds up to 1.

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.models.contrastive_sc.soft_kmeans import soft_assignment
    >>> soft_assignment(tf.constant([[0.0]]), tf.constant([[0.0], [1.0]])).numpy().round(4)
    array([[0.7311, 0.2689]], dtype=float32)

    Reference:
        contrastive-sc, supplement, "Clustering network".
    """
    return tf.nn.softmax(-squared_distances(z, centroids), axis=-1)


def soft_kmeans_loss(z: tf.Tensor, centroids: tf.Tensor) -> tf.Tensor:
    """Squared distance of each cell to the clusters, weighted by how much it belongs to each.

    Args:
        z: Embeddings [B, d], float.
        centroids: Centroids [K, d].

    Returns:
        Loss of each cell [B]; the sum over cells is the paper's L_KMeans.

    Reference:
        contrastive-sc, supplement, "Clustering network".
    """
    return tf.reduce_sum(soft_assignment(z, centroids) * squared_distances(z, centroids), axis=1)


def neighbor_kl(z: tf.Tensor) -> tf.Tensor:
    """KL divergence of the cells' similarities to sharper ones: near cells come nearer.

    The similarity p(j|i) of cell j to cell i is Student's t (1 degree of freedom) of their
    distance, over all other cells j of the minibatch. The target q(j|i) is that of DEC: the square
    of p, divided by the sum of p(j|.), so that cells similar to many do not draw in all others.
    The target is taken as given: no gradient flows through it.

    Args:
        z: Embeddings [B, d], float.

    Returns:
        Loss of each cell [B]; the sum over cells is the paper's L_KL.

    Reference:
        contrastive-sc, supplement, "Clustering network"; Xie et al. 2016 (DEC), equation 3.
    """
    cells = tf.shape(z)[0]
    itself = tf.eye(cells, dtype=z.dtype) * tf.cast(NEVER, z.dtype)
    log_p = tf.nn.log_softmax(itself - tf.math.log1p(squared_distances(z, z)), axis=1)
    log_q = 2 * log_p - tf.reduce_logsumexp(log_p, axis=0)
    log_q = tf.stop_gradient(tf.nn.log_softmax(log_q, axis=1))
    return tf.reduce_sum(tf.exp(log_q) * (log_q - log_p), axis=1)


@serializable
class SoftKMeans(keras.Model):
    """A network on embeddings that is trained until they fall into k clusters.

    It begins as the identity, at the centroids of a K-means (`start`), and minimizes
    `soft_kmeans_loss` + `neighbor_kl`. The centroids are no weights that gradients move: each is,
    as printed, the mean of the cells weighted by how much they belong to it, here over the latest
    minibatches.

    Two things the paper leaves open. The kernel exp(-distance^2) has no width of its own:
    embeddings are scaled to fit it to the width of the clusters. Both losses are least where all
    cells are in one point: embeddings keep their overall variance.

    Args:
        k: Number of clusters K.
        dim: Width d of the embeddings.
        units: Width of the hidden layer.
        momentum: Share of the past that the centroids keep at each minibatch.
        seed: Seed of the initial weights.
        **kwargs: Of `keras.Model`.

    Call arguments:
        x: Embeddings [B, d], float.

    Returns:
        Probabilities [B, K].

    Example:

    >>> import numpy as np
    >>> from concerto_tf.models.contrastive_sc.soft_kmeans import SoftKMeans
    >>> rng = np.random.default_rng(0)
    >>> label = np.repeat([0, 1], 32)
    >>> z = rng.normal(size=(64, 4)).astype("float32") + 5 * label[:, None]
    >>> model = SoftKMeans(k=2, dim=4)
    >>> model.start(z, label)
    >>> model.compile("adam")
    >>> history = model.fit(z, epochs=2, verbose=0)
    >>> bool((model.predict(z, verbose=0).argmax(1) == label).all())
    True

    Reference:
        contrastive-sc, supplement, "Clustering network" (figure S2).
    """

    built: bool

    def __init__(
        self, k: int, dim: int, units: int = 64, momentum: float = 0.9, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.k, self.dim = checked_whole("k", k), checked_whole("dim", dim)
        self.units = checked_whole("units", units)
        self.momentum = checked_share("momentum", momentum, below_one=True)
        self.seed = int(seed)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.hidden = keras.layers.Dense(
            self.units,
            "relu",
            kernel_initializer=keras.initializers.GlorotUniform(seed=self.seed),
            name="hidden",
        )
        self.change = keras.layers.Dense(self.dim, kernel_initializer="zeros", name="change")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        self.hidden.build((None, self.dim))
        self.change.build((None, self.units))
        self.scale = state_weight(self, "scale", (), initializer="ones")
        self.spread = state_weight(self, "spread", (), initializer="ones")
        self.growth = state_weight(self, "growth", (), initializer="ones")
        self.shares = state_weight(self, "shares", (self.k,), initializer="ones")
        self.sums = state_weight(self, "sums", (self.k, self.dim))
        self.built = True

    def start(self, x: np.ndarray, clusters: np.ndarray) -> None:
        """Begins from clusters of the embeddings.

        Args:
            x: Embeddings [n, d].
            clusters: Their clusters [n], codes 0 to k - 1.
        """
        x, clusters = np.asarray(x, np.float64), np.asarray(clusters)
        if len(x) != len(clusters) or clusters.min() < 0 or clusters.max() >= self.k:
            raise InputError(f"each of {len(x)} cells needs a cluster from 0 to {self.k - 1}.")
        member = np.eye(self.k)[clusters]
        share = member.mean(0)
        centroids = member.T @ x / len(x) / np.maximum(share, 1e-12)[:, None]
        within = np.linalg.eigvalsh(np.atleast_2d(np.cov((x - centroids[clusters]).T, bias=True)))
        # The variance in a typical direction, and exp(-distance^2 / (2 variance)).
        variance = (within**2).sum() / max(within.sum(), 1e-12)
        scale = 1 / np.sqrt(2 * variance) if variance > 1e-12 else 1.0
        self.scale.assign(scale)
        self.spread.assign(max(x.var(0).sum() * scale**2, 1e-12))
        self.shares.assign(share)
        self.sums.assign(share[:, None] * centroids * scale)

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker]

    @property
    def centroids(self) -> tf.Tensor:
        """Centroids v [K, d] in the space of `refine`."""
        shares = tf.convert_to_tensor(self.shares)[:, tf.newaxis]
        return tf.convert_to_tensor(self.sums) / tf.maximum(shares, 1e-12)

    def refine(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The embeddings as the network has changed them.

        Args:
            x: Embeddings [B, d].
            training: Whether to take the overall variance from the minibatch, of all replicas.

        Returns:
            Z [B, d], float32.
        """
        x = tf.cast(x, tf.float32) * self.scale
        z = x + tf.cast(self.change(self.hidden(x)), x.dtype)
        if not training:
            return z * self.growth
        mean = self._mean(z)
        variance = tf.reduce_sum(self._mean(tf.square(z - mean)))
        growth = tf.sqrt(self.spread / tf.maximum(variance, 1e-12))
        growth = tf.where(variance > 1e-12, growth, tf.ones_like(growth))
        self._follow(self.growth, growth)
        return z * growth

    def _mean(self, x: tf.Tensor) -> tf.Tensor:
        """Mean over the cells of all replicas."""
        cells = tf.cast(tf.shape(x)[0], x.dtype)
        total, cells = sum_over_replicas(tf.reduce_sum(x, axis=0), cells)
        return total / cells

    def _follow(self, state: Any, new: tf.Tensor) -> None:
        """Moves a weight towards what a minibatch says."""
        old = tf.convert_to_tensor(state)
        state.assign(self.momentum * old + (1 - self.momentum) * tf.stop_gradient(new))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return soft_assignment(self.refine(x), self.centroids)

    def _loss(self, x: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean loss of a minibatch, and its refined embeddings."""
        z = self.refine(x, training)
        loss = soft_kmeans_loss(z, self.centroids) + neighbor_kl(z)
        return tf.reduce_mean(tf.cast(loss, accumulation_dtype(loss.dtype))), z

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            loss, z = self._loss(x, training=True)
            share = loss / replica_count()
        apply_gradient_step(self.optimizer, tape, share, self.trainable_variables)
        self._move_centroids(z)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        x = data[0] if isinstance(data, tuple) else data
        self.loss_tracker.update_state(self._loss(x, training=False)[0])
        return {"loss": self.loss_tracker.result()}

    def _move_centroids(self, z: tf.Tensor) -> None:
        """v = sum(w Z) / sum(w), over the minibatches with weights that fade."""
        weight = soft_assignment(z, self.centroids)
        cells = tf.cast(tf.shape(z)[0], z.dtype)
        shares, sums, cells = sum_over_replicas(
            tf.reduce_sum(weight, axis=0), tf.matmul(weight, z, transpose_a=True), cells
        )
        self._follow(self.shares, shares / cells)
        self._follow(self.sums, sums / cells)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "k": self.k,
            "dim": self.dim,
            "units": self.units,
            "momentum": self.momentum,
            "seed": self.seed,
        }
