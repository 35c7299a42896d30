"""The methods by the names that users call them."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict

from concerto_tf._version import __version__
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.cicl import CICL
from concerto_tf.models.clear import CLEAR
from concerto_tf.models.concerto import Concerto
from concerto_tf.models.contrastive_sc import ContrastiveSC
from concerto_tf.models.presets import DEFAULT

#: Raised when the same arguments make something else: other initial weights, another training.
DEFAULTS = 8
METHODS: dict[str, type[ContrastiveModel]] = {
    "concerto": Concerto,
    "clear": CLEAR,
    "contrastive-sc": ContrastiveSC,
    "cicl": CICL,
}


def configuration(method: str, preset: str | None = None) -> str:
    """What tells the defaults (or a preset) of a method apart from those of other versions.

    Args:
        method: One of `METHODS`.
        preset: One of its presets.

    Returns:
        Eight hexadecimal digits.

    Example:

    >>> from concerto_tf.models.methods import configuration
    >>> configuration("clear") == configuration("clear")
    True
    >>> configuration("clear") == configuration("clear", "paper")
    False
    """
    cls = METHODS[method]
    chosen = cls.presets[preset or DEFAULT]
    # Named, or Keras would number the models that it makes.
    config = cls(["a", "b"], name=method, **chosen.options).get_config()
    whole = [__version__, config, asdict(chosen.training), DEFAULTS]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]


def arguments_of(cls: type[ContrastiveModel]) -> set[str]:
    """Names of the arguments that a method's model may be given."""
    given = {"self", "vocabulary", "kwargs", "symbols", "genes", "sources", "seed", "name"}
    of = [c for c in cls.__mro__ if issubclass(c, ContrastiveModel)]
    names = {name for c in of for name in inspect.signature(c.__init__).parameters}
    return names - given - cls.makes
