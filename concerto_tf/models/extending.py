"""What a method of one's own is built from, beside the layers and losses: the public hooks.

`concerto_tf.models.ContrastiveModel` and `DenseModel` say which methods of theirs a subclass may
write anew; docs/extending.md lists them and shows a whole package. The names here are those that
such a subclass needs: presets, minibatches, weights that no gradient changes, and sums over
replicas, so that a loss over all cells of a minibatch is the same on one device and on several.

Example:

>>> from concerto_tf.models import DenseModel
>>> from concerto_tf.models.extending import DEFAULT, Preset, Training, by_name
>>> class Short(DenseModel):
...     "Dense layers that train for three passes over the cells."
...
...     presets = by_name(Preset(DEFAULT, Training(epochs=3)))
>>> Short(["CD3E", "MS4A1"], components=0).recipe.epochs
3
"""

from concerto_tf._keras import (
    assign_everywhere,
    gather_over_replicas,
    replica_count,
    state_weight,
    sum_over_replicas,
)
from concerto_tf.models.presets import DEFAULT, Preset, Training, by_name
from concerto_tf.models.seeds import Seeds
from concerto_tf.records.batch import Batch, Minibatch

__all__ = [
    "DEFAULT",
    "Batch",
    "Minibatch",
    "Preset",
    "Seeds",
    "Training",
    "assign_everywhere",
    "by_name",
    "gather_over_replicas",
    "replica_count",
    "state_weight",
    "sum_over_replicas",
]
