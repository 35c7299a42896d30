"""The methods by the names that users call them."""

from __future__ import annotations

import inspect

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


def arguments_of(cls: type[ContrastiveModel]) -> set[str]:
    """Names of the arguments that a method's model may be given."""
    given = {"self", "vocabulary", "kwargs", "symbols", "genes", "sources", "seed", "name"}
    of = [c for c in cls.__mro__ if issubclass(c, ContrastiveModel)]
    names = {name for c in of for name in inspect.signature(c.__init__).parameters}
    return names - given - cls.makes
