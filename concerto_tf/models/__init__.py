"""One `keras.Model` per method, over one small base; each trains with `model.fit`."""

from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.concerto import Concerto
from concerto_tf.models.saving import load_model, save_model

__all__ = ["Concerto", "ContrastiveModel", "load_model", "save_model"]
