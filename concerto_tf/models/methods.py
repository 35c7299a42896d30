"""The methods by the names that users call them."""

from __future__ import annotations

from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.cicl import CICL
from concerto_tf.models.clear import CLEAR
from concerto_tf.models.concerto import Concerto
from concerto_tf.models.contrastive_sc import ContrastiveSC

METHODS: dict[str, type[ContrastiveModel]] = {
    "concerto": Concerto,
    "clear": CLEAR,
    "contrastive-sc": ContrastiveSC,
    "cicl": CICL,
}
