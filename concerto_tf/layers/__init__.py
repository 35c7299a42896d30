"""Building blocks, each usable alone in anybody's Keras model."""

from concerto_tf.layers.attention import GeneAttention, scatter_to_dense
from concerto_tf.layers.masking import RandomMask
from concerto_tf.layers.normalization import LogNormalize
from concerto_tf.layers.source_normalization import (
    SourceBatchNormalization,
    merge_moments,
    moments_by_source,
    pool_moments,
)

__all__ = [
    "GeneAttention",
    "LogNormalize",
    "RandomMask",
    "SourceBatchNormalization",
    "merge_moments",
    "moments_by_source",
    "pool_moments",
    "scatter_to_dense",
]
