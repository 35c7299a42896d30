"""One `keras.Model` per method, over one small base; each trains with `model.fit`."""

from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.cicl import CICL
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.clear import CLEAR
from concerto_tf.models.concerto import Concerto
from concerto_tf.models.contrastive_sc import ContrastiveSC
from concerto_tf.models.dense.network import DenseModel
from concerto_tf.models.ensemble import Ensemble
from concerto_tf.models.methods import METHODS, register_method
from concerto_tf.models.saving import load_model, save_model

__all__ = [
    "CICL",
    "CLEAR",
    "METHODS",
    "Classifier",
    "Concerto",
    "ContrastiveModel",
    "ContrastiveSC",
    "DenseModel",
    "Ensemble",
    "load_model",
    "register_method",
    "save_model",
]
