"""Barlow Twins on single cells: a contrastive method in a package of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from concerto_tf.layers import RandomMask
from concerto_tf.models import DenseModel, register_method
from concerto_tf.models.extending import DEFAULT, Preset, Training, by_name, gather_over_replicas


def barlow_twins(view_a: tf.Tensor, view_b: tf.Tensor, redundancy: float) -> tf.Tensor:
    """Loss of two views [B, h]: how far their cross-correlation [h, h] is from the identity."""
    # Every replica looks at all cells of the minibatch, so that the loss is that of one replica.
    a, b = (tf.cast(gather_over_replicas(z), tf.float32) for z in (view_a, view_b))
    a, b = ((z - tf.reduce_mean(z, 0)) / (tf.math.reduce_std(z, 0) + 1e-6) for z in (a, b))
    correlation = tf.matmul(a, b, transpose_a=True) / tf.cast(tf.shape(a)[0], tf.float32)
    diagonal = tf.linalg.diag_part(correlation)
    on = tf.reduce_sum((1 - diagonal) ** 2)
    off = tf.reduce_sum(correlation**2) - tf.reduce_sum(diagonal**2)
    return on + redundancy * off


@register_method("barlow-twins")
class BarlowTwins(DenseModel):
    """Two masked views of a cell whose projections correlate unit by unit, and not across units.

    Args:
        vocabulary: Identifiers of all genes.
        mask_rate: Share of the genes that a view hides.
        redundancy: Weight of the correlations across units.
        **kwargs: Of `DenseModel`.

    Reference:
        Zbontar et al. 2021, equations 1 and 2.
    """

    presets = by_name(
        Preset(DEFAULT, Training(learning_rate=1e-3, genes="hvg:2000", most_epochs=30))
    )
    makes = frozenset({"augmentation"})

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        mask_rate: float = 0.5,
        redundancy: float = 5e-3,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        mask = RandomMask(mask_rate, seed=seed)
        super().__init__(vocabulary, augmentation=mask, seed=seed, **kwargs)
        self.mask_rate = float(mask_rate)
        self.redundancy = float(redundancy)

    def contrastive_loss(
        self, view_a: tf.Tensor, view_b: tf.Tensor, source: tf.Tensor | None = None
    ) -> tf.Tensor:
        return barlow_twins(view_a, view_b, self.redundancy)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mask_rate": self.mask_rate,
            "redundancy": self.redundancy,
        }
