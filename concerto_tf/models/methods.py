"""The methods by the names that users call them: those of the package, and those of others.

A method of another package is known by an entry point of the group ``concerto_tf.methods``, or once
its module is imported, by `register_method`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.cicl import CICL
from concerto_tf.models.clear import CLEAR
from concerto_tf.models.concerto import Concerto
from concerto_tf.models.contrastive_sc import ContrastiveSC
from concerto_tf.models.presets import DEFAULT

#: Group of the entry points ``name = module:Class`` by which installed packages add methods.
GROUP = "concerto_tf.methods"

#: Those of the package, and those that `register_method` has added.
METHODS: dict[str, type[ContrastiveModel]] = {
    "concerto": Concerto,
    "clear": CLEAR,
    "contrastive-sc": ContrastiveSC,
    "cicl": CICL,
}

#: What the cells say, or `train` by arguments of its own.
_SETTLED = {"vocabulary", "symbols", "genes", "sources", "modality", "modalities"}
_SETTLED |= {"self", "kwargs", "seed", "name", "batch_size"}

Model = TypeVar("Model", bound=type[ContrastiveModel])


def register_method(name: str) -> Callable[[Model], Model]:
    """Class decorator: `train`, `run` and the command line know the method by this name.

    The class is registered with Keras, too, under the name of its package, so that its models are
    saved and loaded; where that has been done already, it stays.

    Args:
        name: What the method is called by.

    Returns:
        The decorator, which returns the class.

    Raises:
        InputError: Another class has this name, or the class is no `ContrastiveModel`.

    Example:

    >>> from concerto_tf.models import METHODS, DenseModel
    >>> from concerto_tf.models.methods import register_method
    >>> @register_method("plain")
    ... class Plain(DenseModel):
    ...     "Dense layers without any augmentation."
    >>> METHODS.pop("plain") is Plain
    True
    """

    def register(cls: Model) -> Model:
        if not (inspect.isclass(cls) and issubclass(cls, ContrastiveModel)):
            raise InputError(
                f"method {name!r}: {cls!r} is no subclass of concerto_tf.models.ContrastiveModel"
            )
        held = METHODS.get(name)
        # A module that is run again, as cells of a notebook are, brings its class again.
        if held is not None and _place(held) != _place(cls):
            raise InputError(f"there is a method {name!r} already, {_place(held)}; choose another")
        if DEFAULT not in cls.presets:
            raise InputError(f"method {name!r}: {_place(cls)} has no preset {DEFAULT!r}")
        if ">" not in keras.utils.get_registered_name(cls):
            package = cls.__module__.partition(".")[0]
            keras.utils.register_keras_serializable(package=package)(cls)
        METHODS[name] = cls
        return cls

    return register


def method(name: str) -> type[ContrastiveModel]:
    """The class of a method.

    Args:
        name: What it is called by.

    Raises:
        InputError: There is no such method, or the package that has it cannot be imported.
    """
    if name not in METHODS:
        found = [entry for entry in _entries() if entry.name == name]
        if not found:
            raise InputError(
                f"there is no method {name!r}; choose one of {', '.join(method_names())}, or "
                "import the module that registers it"
            )
        _load(found[0])
    return METHODS[name]


def method_names() -> list[str]:
    """Names of all methods that can be asked for."""
    return list(dict.fromkeys([*METHODS, *(entry.name for entry in _entries())]))


def load_installed(module: str = "") -> list[str]:
    """Imports the methods of installed packages, so that Keras knows their classes.

    Args:
        module: A module; methods of its package are imported first.

    Returns:
        What went wrong with those that cannot be imported.
    """
    package, wrong = module.partition(".")[0], []
    for entry in sorted(_entries(), key=lambda entry: entry.value.split(".")[0] != package):
        if entry.name not in METHODS:
            try:
                _load(entry)
            except InputError as error:
                wrong.append(str(error))
    return wrong


def arguments_of(cls: type[ContrastiveModel]) -> set[str]:
    """Names of the arguments that a method's model may be given."""
    of = [c for c in cls.__mro__ if issubclass(c, ContrastiveModel)]
    names = {name for c in of for name in inspect.signature(c.__init__).parameters}
    return names - _SETTLED - cls.makes


def _entries() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def _load(entry: EntryPoint) -> None:
    try:
        cls = entry.load()
    except Exception as error:  # noqa: BLE001 - what others have written may raise anything
        whose = entry.dist.name if entry.dist is not None else entry.value
        raise InputError(
            f"method {entry.name!r} of the installed package {whose} cannot be imported "
            f"({type(error).__name__}: {str(error)[:200]}); install what it needs, or remove it"
        ) from error
    register_method(entry.name)(cls)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
