"""Any augmentation before any encoder with any loss: base of CLEAR, contrastive-sc and CICL."""

from concerto_tf.models.dense.network import DenseModel

__all__ = ["DenseModel"]
