"""Contrastive learning on single cells, from counts to embeddings.

What is listed here is the face of the package: the Python call of every command (`run`,
`convert`, `train`, ...), the model with its files, and the building blocks for Keras models of
your own. Importing it is quick: TensorFlow, scanpy and the like are imported with the first name
that needs them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from concerto_tf._version import __version__
from concerto_tf.errors import InputError

if TYPE_CHECKING:
    from concerto_tf import pl
    from concerto_tf.export import export
    from concerto_tf.layers import GeneAttention, LogNormalize, RandomMask, SourceBatchNormalization
    from concerto_tf.losses import Alignment, EffectiveRank, NTXent, Uniformity, nt_xent
    from concerto_tf.models import Classifier, Concerto, load_model, save_model
    from concerto_tf.records import Records, convert
    from concerto_tf.reference.cells import Reference
    from concerto_tf.reference.files import load_reference, save_reference
    from concerto_tf.serve import serve
    from concerto_tf.tasks.annotate import annotate
    from concerto_tf.tasks.cluster import cluster
    from concerto_tf.tasks.compare import compare
    from concerto_tf.tasks.demo import demo
    from concerto_tf.tasks.embed import embed
    from concerto_tf.tasks.evaluate import evaluate
    from concerto_tf.tasks.explain import explain
    from concerto_tf.tasks.finetune import finetune
    from concerto_tf.tasks.impute import impute
    from concerto_tf.tasks.inspect import inspect
    from concerto_tf.tasks.map import map
    from concerto_tf.tasks.pseudotime import pseudotime
    from concerto_tf.tasks.run import run
    from concerto_tf.tasks.score import score
    from concerto_tf.tasks.simulate import simulate
    from concerto_tf.tasks.train import train

__all__ = [
    "Alignment",
    "Classifier",
    "Concerto",
    "EffectiveRank",
    "GeneAttention",
    "InputError",
    "LogNormalize",
    "NTXent",
    "RandomMask",
    "Records",
    "Reference",
    "SourceBatchNormalization",
    "Uniformity",
    "__version__",
    "annotate",
    "cluster",
    "compare",
    "convert",
    "demo",
    "embed",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "impute",
    "inspect",
    "load_model",
    "load_reference",
    "map",
    "nt_xent",
    "pl",
    "pseudotime",
    "run",
    "save_model",
    "save_reference",
    "score",
    "serve",
    "simulate",
    "train",
]

# Where each name lives; type checkers read the same from the imports above.
_HOMES = {
    "export": ("export",),
    "layers": ("GeneAttention", "LogNormalize", "RandomMask", "SourceBatchNormalization"),
    "losses": ("Alignment", "EffectiveRank", "NTXent", "Uniformity", "nt_xent"),
    "models": ("Classifier", "Concerto", "load_model", "save_model"),
    "records": ("Records", "convert"),
    "reference.cells": ("Reference",),
    "reference.files": ("load_reference", "save_reference"),
    "serve": ("serve",),
    "tasks.annotate": ("annotate",),
    "tasks.cluster": ("cluster",),
    "tasks.compare": ("compare",),
    "tasks.demo": ("demo",),
    "tasks.embed": ("embed",),
    "tasks.evaluate": ("evaluate",),
    "tasks.explain": ("explain",),
    "tasks.finetune": ("finetune",),
    "tasks.impute": ("impute",),
    "tasks.inspect": ("inspect",),
    "tasks.map": ("map",),
    "tasks.pseudotime": ("pseudotime",),
    "tasks.run": ("run",),
    "tasks.score": ("score",),
    "tasks.simulate": ("simulate",),
    "tasks.train": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # type checkers are to see a name that is not there

    def __getattr__(name: str) -> Any:
        if name == "pl":  # as scanpy's
            return import_module(f"{__name__}.pl")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        setattr(sys.modules[__name__], name, value)
        return value


def __dir__() -> list[str]:
    return list(__all__)


class _Face(ModuleType):
    """Keeps a name of the face what it is when a subpackage of the same name is imported.

    Python makes an imported subpackage an attribute of its package. `export` is both, and the
    function is meant; `from concerto_tf.export import ...` finds the subpackage all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
