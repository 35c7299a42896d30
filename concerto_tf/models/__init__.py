"""One `keras.Model` per method, over one small base; each trains with `model.fit`."""

from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.concerto import Concerto
from concerto_tf.models.reference import Reference
from concerto_tf.models.reference_files import load_reference, save_reference
from concerto_tf.models.saving import load_model, save_model

__all__ = [
    "Classifier",
    "Concerto",
    "ContrastiveModel",
    "Reference",
    "load_model",
    "load_reference",
    "save_model",
    "save_reference",
]
