"""Losses as pure functions of tensors, each with a thin Keras class around it."""

from concerto_tf.losses.cluster_aware import ClusterAware, cluster_aware
from concerto_tf.losses.diagnostics import (
    Alignment,
    EffectiveRank,
    Uniformity,
    alignment,
    effective_rank,
    uniformity,
)
from concerto_tf.losses.info_nce import InfoNCE, info_nce
from concerto_tf.losses.nt_xent import NTXent, nt_xent
from concerto_tf.losses.vicreg import VICReg, vicreg

__all__ = [
    "Alignment",
    "ClusterAware",
    "EffectiveRank",
    "InfoNCE",
    "NTXent",
    "Uniformity",
    "VICReg",
    "alignment",
    "cluster_aware",
    "effective_rank",
    "info_nce",
    "nt_xent",
    "uniformity",
    "vicreg",
]
