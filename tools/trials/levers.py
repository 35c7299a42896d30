#!/usr/bin/env python3
"""Levers that are no option of Concerto, as further methods of `tools/quality`.

    .venv/bin/python tools/trials/levers.py DATA.h5ad ... --seeds 1 --results FILE.jsonl
        --figure FILE.png --configurations concerto concerto-decoupled concerto-deep ...

None of them is in the package, as none was better (`README.md`, 2026-11-29). They are kept so that
their rows in `levers.jsonl` can be computed again.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import tensorflow as tf  # noqa: E402

from concerto_tf._keras import keras, serializable  # noqa: E402
from concerto_tf.layers import Augmentation, kmeans  # noqa: E402
from concerto_tf.losses import cluster_aware, nt_xent  # noqa: E402
from concerto_tf.models import METHODS, Concerto  # noqa: E402
from concerto_tf.records.batch import Minibatch  # noqa: E402
from protocols.quality import Trial  # noqa: E402

_NEVER = -1e9


class Lever(Concerto):
    """A Concerto with another loss of two views of a batch."""

    def batch_loss(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        a, b = (tf.math.l2_normalize(view, axis=-1) for view in self.views(batch))
        whole = tf.stop_gradient(self.represent(batch)[1])
        return self.loss_of(a, b, whole, Minibatch(batch).source), a, b

    def loss_of(self, a: tf.Tensor, b: tf.Tensor, whole: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        """Loss [B] of two views [B, d] of unit length of cells [B, d] of these sources [B]."""
        raise NotImplementedError

    def against_others(self, a: tf.Tensor, b: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """NT-Xent with the positive out of the denominator and negatives weighed [B] -> [B]."""
        itself = tf.linalg.diag(tf.fill([tf.shape(a)[0]], _NEVER)) + tf.math.log(weight)

        def term(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            near = [tf.matmul(x, z, transpose_b=True) / self.temperature + itself for z in (x, y)]
            return tf.reduce_logsumexp(tf.concat(near, axis=1), axis=1)

        return (term(a, b) + term(b, a)) / 2 - tf.reduce_sum(a * b, axis=1) / self.temperature


@serializable
class Decoupled(Lever):
    """Yeh et al. 2022: the positive pair does not stand in the denominator."""

    def loss_of(self, a: tf.Tensor, b: tf.Tensor, whole: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        return self.against_others(a, b, tf.ones([tf.shape(a)[0]]))


@serializable
class Balanced(Lever):
    """Each source counts alike, as cells and as negatives, as if minibatches were balanced."""

    def loss_of(self, a: tf.Tensor, b: tf.Tensor, whole: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        same = tf.cast(source[:, tf.newaxis] == source[tf.newaxis], tf.float32)
        weight = 1 / tf.reduce_sum(same, axis=1)
        weight /= tf.reduce_mean(weight)
        return weight * self.against_others(a, b, weight)


@serializable
class ClusterAware(Lever):
    """CICL's loss: K-means of whole cells, and a tenth of the loss between its clusters."""

    weight = 0.1

    def loss_of(self, a: tf.Tensor, b: tf.Tensor, whole: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        k = max(1, min(20, (whole.shape[0] or 256) // 8))
        _, clusters = kmeans(whole, k, 5, seed=tf.cast(self.optimizer.iterations, tf.int64))
        between = cluster_aware(a, b, clusters, self.temperature)
        return nt_xent(a, b, self.temperature) + self.weight * between


@serializable
class ClusterAwareAlike(ClusterAware):
    """The same with equal weights."""

    weight = 1.0


@serializable
class Neighbours(Lever):
    """One of 5 mutual neighbours in the minibatch is a positive, of half of the weight."""

    across = False

    def loss_of(self, a: tf.Tensor, b: tf.Tensor, whole: tf.Tensor, source: tf.Tensor) -> tf.Tensor:
        n = tf.shape(whole)[0]
        length = tf.reduce_sum(tf.square(whole), axis=1)
        near = 2 * tf.matmul(whole, whole, transpose_b=True) - length - length[:, tf.newaxis]
        alike = source[:, tf.newaxis] == source[tf.newaxis] if self.across else tf.eye(n) > 0
        near = tf.where(alike, _NEVER, near)
        chosen = tf.reduce_sum(tf.one_hot(tf.math.top_k(near, 5).indices, n), axis=1)
        mutual = chosen * tf.transpose(chosen) * tf.cast(near > _NEVER, tf.float32)
        step = tf.cast(self.optimizer.iterations, tf.int64)
        drawn = mutual * tf.random.stateless_uniform([n, n], tf.stack([step, self.seed]))
        pick = tf.argmax(drawn, axis=1, output_type=tf.int32)
        pick = tf.where(tf.reduce_sum(mutual, axis=1) > 0, pick, tf.range(n))
        own = tf.reduce_sum(a * b, axis=1)
        of_neighbour = tf.reduce_sum(a * tf.gather(b, pick) + b * tf.gather(a, pick), axis=1) / 2
        return nt_xent(a, b, self.temperature) + (own - of_neighbour) / 2 / self.temperature


@serializable
class MutualNeighbours(Neighbours):
    """The same, of another source."""

    across = True


@serializable
class Deep(Concerto):
    """Two more dense layers behind the student's, beside a connection past them, from zero."""

    def build(self, input_shape: Any = None) -> None:
        self.inner = keras.layers.Dense(256, activation="relu", name="inner")
        self.outer = keras.layers.Dense(self.hidden_units, kernel_initializer="zeros", name="outer")
        self.inner.build((None, self.hidden_units))
        self.outer.build((None, 256))
        super().build(input_shape)

        student = self.networks.student

        def deeper(*args: Any, **kwargs: Any) -> tf.Tensor:
            z = student(*args, **kwargs)
            return z + self.outer(self.inner(z))

        self.networks.student = deeper


@serializable
class Augmented(Concerto):
    """The student sees CLEAR's augmentations of the normalised values instead of half of them."""

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        [branch] = self.networks.branches
        self.student_mask = branch.student_mask = Augmentation(seed=self.seed)
        self.student_mask.build((None, branch.n_inputs))


@serializable
class WholeTeacher(Concerto):
    """Genes are hidden from the student alone."""

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        for branch in self.networks.branches:
            branch.teacher_mask.rate = 0.0


LEVERS = {
    "concerto-decoupled": Decoupled,
    "concerto-balanced": Balanced,
    "concerto-cluster-aware": ClusterAware,
    "concerto-cluster-aware-1": ClusterAwareAlike,
    "concerto-neighbours": Neighbours,
    "concerto-mutual-neighbours": MutualNeighbours,
    "concerto-deep": Deep,
    "concerto-augmented": Augmented,
    "concerto-whole-teacher": WholeTeacher,
}

if __name__ == "__main__":
    METHODS.update(LEVERS)
    of_quality = Trial.command
    Trial.command = lambda trial: of_quality(trial).replace("quality", "trials/levers.py", 1)
    quality = ROOT / "tools" / "quality"
    sys.argv[0] = str(quality)
    runpy.run_path(str(quality), run_name="__main__")
