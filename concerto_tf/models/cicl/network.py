"""CICL: a transformer over cells that learns from clusters it finds on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, replica_count, serializable, state_weight
from concerto_tf.errors import InputError, checked_whole
from concerto_tf.layers import (
    CellTransformer,
    RandomMask,
    ScaledNoise,
    kmeans,
    student_t_assignment,
)
from concerto_tf.losses import cluster_aware
from concerto_tf.models.cicl.presets import PRESETS
from concerto_tf.models.dense.mlp import MLP
from concerto_tf.models.dense.network import DenseModel, refuse_made
from concerto_tf.numerics.components import component_directions
from concerto_tf.records.batch import Batch, Minibatch

#: Clusters of a minibatch where none are asked for, and the fewest cells that each then has.
_CLUSTERS, _CELLS_PER_CLUSTER = 20, 8
#: Lloyd steps of the K-means, and cells that a model keeps.
_KMEANS_STEPS, _LANDMARKS = 5, 256


@serializable
class CICL(DenseModel):
    """Cluster-aware iterative contrastive learning.

    The encoder is a transformer whose tokens are the cells of a minibatch (of all replicas). In
    every step K-means clusters the minibatch as the encoder sees it now, and Student's t gives
    each cell its pseudo-label; two views of each cell are then pulled together, and with them, by
    a small part of the loss, the cells of one pseudo-label (equation 17).

    An embedding depends neither on the order of the cells nor on which others come along: the
    model keeps some of the cells it was trained on (``landmarks``), which attend to each other,
    and every further cell attends to them and to itself.

    ``CICL.presets["paper"]`` has the paper's values. There tokens are all genes, normalized after
    each residual connection, and weights begin at random.

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        depth, heads, key_dim, units, normalize_first, identity_start: As in `CellTransformer`.
        width: Width of the tokens and so of the embedding, a linear projection of the genes;
            ``None``: the genes themselves.
        head_units: Widths of the projection head.
        mask_rate: Share of the genes that each view hides, which then stand at their mean.
        noise: Share of the genes to which each view adds noise (`ScaledNoise`).
        clusters: Clusters of a minibatch; by default 20, fewer in one of less than 160 cells.
        cluster_weight: Weight lambda of the cluster-aware loss.
        seed: Seed of the initial weights and of the views.
        **kwargs: Of `DenseModel`: temperature (of both losses), input_epsilon, value_clip,
            components, denoise, align_sources, readout_offset, and those of `ContrastiveModel`.

    Example:

    Trained as `Concerto` is:

    >>> from concerto_tf.models.cicl import CICL
    >>> model = CICL([f"gene{i}" for i in range(50)], depth=2, width=8, clusters=3)
    >>> model.embedding_dim
    8

    Reference:
        CICL, equations 3 to 17.
    """

    presets = PRESETS
    #: Made here, and so no arguments of this class.
    makes = frozenset(
        {"augmentation", "augment_first", "backbone", "head", "scale_inputs", "batch_norm"}
        | {"last_relu"}
    )
    head: MLP

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        depth: int = 4,
        width: int | None = 128,
        heads: int = 4,
        key_dim: int = 32,
        units: int = 256,
        normalize_first: bool = True,
        identity_start: bool = True,
        head_units: Sequence[int] = (1024, 512),
        mask_rate: float = 0.5,
        noise: float = 0.0,
        clusters: int | None = None,
        cluster_weight: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        refuse_made(CICL, kwargs)
        if not 0 <= cluster_weight < float("inf"):
            raise InputError(f"cluster_weight is {cluster_weight!r}; it must be 0 or more.")
        self.depth, self.width, self.n_heads = int(depth), width, int(heads)
        self.key_dim, self.units = int(key_dim), int(units)
        self.normalize_first, self.identity_start = bool(normalize_first), bool(identity_start)
        self.head_units = tuple(int(units) for units in head_units)
        self.mask_rate, self.noise = float(mask_rate), float(noise)
        self.clusters = None if clusters is None else checked_whole("clusters", clusters, least=2)
        self.cluster_weight = float(cluster_weight)
        first = seed * 10_007 + 5_000
        augmentation = keras.Sequential(
            [
                RandomMask(mask_rate, rescale=False, exact=True, seed=first, name="mask"),
                ScaledNoise(noise, seed=first + 1, name="noise"),
            ],
            name="augmentation",
        )
        backbone = CellTransformer(
            depth,
            width,
            heads,
            key_dim,
            units,
            normalize_first,
            identity_start,
            seed=first + 2,
            name="backbone",
        )
        head = MLP(self.head_units, seed=first + 3, name="head")
        super().__init__(
            vocabulary,
            augmentation=augmentation,
            augment_first=False,
            backbone=backbone,
            head=head,
            seed=seed,
            **kwargs,
        )

    def build_more(self) -> None:
        # Standardized genes, without the scale and offset that are learned; zeros are mean cells.
        self.landmarks = state_weight(self, "landmarks", (_LANDMARKS, self.n_inputs))
        self.clusterings = state_weight(self, "clusterings", (), "int64")

    # --- training ---------------------------------------------------------------------------

    def project(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.head(z, training=training)  # equations 10 and 11: no ReLU in front

    def batch_loss(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # Standardized first, as in the paper: noise is then as strong in each gene, and the
        # statistics are those of whole cells, as at inference.
        whole = self.prepare(self.dense(batch), batch, training=True)
        view_a, view_b = (
            self.project(self.encode(x, training=True), training=True)
            for x in (self.augmented(whole), self.augmented(whole))
        )
        loss = self.contrastive_loss(view_a, view_b, Minibatch(batch).source)
        if self.cluster_weight:
            labels = self.pseudo_labels(tf.stop_gradient(whole))
            clustered = cluster_aware(view_a, view_b, labels, self.temperature)
            loss += self.cluster_weight * clustered
        return loss, view_a, view_b

    def pseudo_labels(self, x: tf.Tensor) -> tf.Tensor:
        """The cluster of each cell of a minibatch.

        Args:
            x: What the encoder takes in, of whole cells [B, n_inputs].

        Returns:
            Clusters [B], int64, that mean the same on all replicas (equations 8 and 9).
        """
        z = tf.stop_gradient(self.encode(x, training=True))
        seed = tf.convert_to_tensor(self.clusterings)
        self.clusterings.assign_add(tf.ones((), tf.int64))
        centroids, _ = kmeans(z, self._clusters_of(z), _KMEANS_STEPS, seed + self.seed)
        return tf.argmax(student_t_assignment(z, centroids), axis=1)

    def _clusters_of(self, z: tf.Tensor) -> int:
        """How many clusters to look for in a minibatch."""
        if self.clusters is not None:
            return self.clusters
        if z.shape[0] is None:
            return _CLUSTERS
        cells = z.shape[0] * replica_count()
        return max(1, min(_CLUSTERS, cells // _CELLS_PER_CLUSTER))

    def for_batches(self, batch_size: int) -> CICL:
        if self.clusters is not None and self.clusters > batch_size:
            raise InputError(
                f"{self.clusters} clusters of a minibatch of {batch_size} cells; take a larger "
                "batch or fewer clusters"
            )
        return self

    # --- use --------------------------------------------------------------------------------

    def read_out(self, batch: Batch) -> tf.Tensor:
        x = self.standardized(batch)
        return self.backbone(x, context=self._context(x.dtype), training=False)

    def _context(self, dtype: tf.DType) -> tf.Tensor:
        """What the encoder takes in of the landmarks [M, n_inputs]."""
        x = tf.convert_to_tensor(self.landmarks)
        if self.input_norm is not None:
            x = x * tf.cast(self.input_norm.gamma, x.dtype)
            x += tf.cast(self.input_norm.beta, x.dtype)
            if self.value_clip is not None:
                x = tf.clip_by_value(x, -self.value_clip, self.value_clip)
        return tf.cast(x, dtype)

    @property
    def pca_initialized(self) -> bool:
        return bool(self.components) and self.width is not None

    def begin(self, x: np.ndarray) -> None:
        """Keeps landmarks, and initializes the projection with principal components.

        Args:
            x: What the encoder takes in, of a sample of cells [n, n_inputs], float32.
        """
        if not len(x):
            return
        order = np.random.default_rng(self.seed).permutation(len(x))
        # Of fewer cells than landmarks each is kept several times, as good as equally often.
        self.landmarks.assign(x[np.resize(order, _LANDMARKS)])
        if self.width is None or not self.components:
            return
        most = min(self.components, self.width)
        directions, spread = component_directions(x, most, self.seed, self.denoise)
        if directions.shape[1]:
            self.backbone.take_directions(directions)
            self.placement.place(directions.shape[1], spread)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "depth": self.depth,
            "width": self.width,
            "heads": self.n_heads,
            "key_dim": self.key_dim,
            "units": self.units,
            "normalize_first": self.normalize_first,
            "identity_start": self.identity_start,
            "head_units": list(self.head_units),
            "mask_rate": self.mask_rate,
            "noise": self.noise,
            "clusters": self.clusters,
            "cluster_weight": self.cluster_weight,
        }
