"""Losses as pure functions of tensors, each with a thin Keras class around it."""

from concerto_tf.losses.diagnostics import (
    Alignment,
    EffectiveRank,
    Uniformity,
    alignment,
    effective_rank,
    uniformity,
)
from concerto_tf.losses.nt_xent import NTXent, nt_xent

__all__ = [
    "Alignment",
    "EffectiveRank",
    "NTXent",
    "Uniformity",
    "alignment",
    "effective_rank",
    "nt_xent",
    "uniformity",
]
