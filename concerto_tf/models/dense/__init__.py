"""Any augmentation in front of any encoder with any loss: the base of CLEAR and contrastive-sc."""

from concerto_tf.models.dense.network import DenseModel

__all__ = ["DenseModel"]
