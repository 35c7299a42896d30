"""Cell types from a pre-trained encoder, and how far cells are from the known ones."""

from concerto_tf.models.classifier.calibration import calibrate, learn_types
from concerto_tf.models.classifier.network import Classifier

__all__ = ["Classifier", "calibrate", "learn_types"]
