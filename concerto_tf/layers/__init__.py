"""Building blocks, each usable alone in anybody's Keras model."""

from concerto_tf.layers.attention import GeneAttention, scatter_to_dense
from concerto_tf.layers.augmentation import Augmentation
from concerto_tf.layers.cell_attention import CellTransformer, CellTransformerLayer
from concerto_tf.layers.exchange import Crossover, CrossoverMany, RandomSwap
from concerto_tf.layers.kmeans import kmeans, student_t_assignment
from concerto_tf.layers.masking import RandomMask
from concerto_tf.layers.noise import GaussianNoise, ScaledNoise
from concerto_tf.layers.normalization import LogNormalize
from concerto_tf.layers.queue import EmbeddingQueue
from concerto_tf.layers.source_normalization import SourceBatchNormalization

__all__ = [
    "Augmentation",
    "CellTransformer",
    "CellTransformerLayer",
    "Crossover",
    "CrossoverMany",
    "EmbeddingQueue",
    "GaussianNoise",
    "GeneAttention",
    "LogNormalize",
    "RandomMask",
    "RandomSwap",
    "ScaledNoise",
    "SourceBatchNormalization",
    "kmeans",
    "scatter_to_dense",
    "student_t_assignment",
]
