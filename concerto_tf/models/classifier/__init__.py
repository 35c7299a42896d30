"""Cell types from a pre-trained encoder, and how far cells are from the known ones."""

from concerto_tf.models.classifier.calibration import (
    calibrate,
    learn_types,
    measure_types,
    state_novelty,
)
from concerto_tf.models.classifier.coarse import Coarse
from concerto_tf.models.classifier.exemplars import Exemplars, chosen_rows
from concerto_tf.models.classifier.linear import learn_linear, weigh_voices
from concerto_tf.models.classifier.network import Classifier
from concerto_tf.models.classifier.relearning import Relearned, relearned, with_encoder
from concerto_tf.models.classifier.type_distance import novelty_of_query

__all__ = [
    "Classifier",
    "Coarse",
    "Exemplars",
    "Relearned",
    "calibrate",
    "chosen_rows",
    "learn_linear",
    "weigh_voices",
    "learn_types",
    "measure_types",
    "novelty_of_query",
    "relearned",
    "state_novelty",
    "with_encoder",
]
