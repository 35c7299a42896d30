"""Models as SavedModels, which answer with TensorFlow alone."""

from concerto_tf.export.saved_model import export

__all__ = ["export"]
