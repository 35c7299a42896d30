"""Keras objects as plain data: to be compared, made anew, and checked to be known to Keras."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from concerto_tf._identity import json_checksum
from concerto_tf._keras import keras
from concerto_tf.errors import InputError, first_line

_log = logging.getLogger("concerto_tf")

#: What Keras itself has, under the names of its versions.
_KERAS = ("keras", "tf_keras", "builtins")


def plain(value: Any) -> Any:
    """A value as JSON holds it, with Keras objects as their configurations.

    Names that Keras chose count for nothing: they depend on what else a process has made.

    Args:
        value: Layers, losses and the like, plain values, and lists and dictionaries of them.

    Raises:
        InputError: An object does not say what it is made from.

    Example:

    >>> from concerto_tf._keras import keras
    >>> from concerto_tf.models.objects import plain
    >>> plain(keras.layers.Dense(3)) == plain(keras.layers.Dense(3))
    True
    >>> plain(keras.layers.Dense(3)) == plain(keras.layers.Dense(4))
    False
    """
    return without_automatic_names(_mapped(value, _serialized))


def anew(value: Any) -> Any:
    """A value with every Keras object in it made again from its configuration, without weights.

    Args:
        value: As for `plain`.

    Raises:
        InputError: An object cannot be made from its configuration.
    """
    return _mapped(value, lambda held: _again(held, _serialized(held)))


def identity_of(model: Any) -> dict[str, str]:
    """What tells a model from others: its class, its configuration, and once trained its weights.

    Args:
        model: A `ContrastiveModel`, of any package.
    """
    config = {**plain(model.get_config()), "name": None}
    told = {"class": keras.utils.get_registered_name(type(model)), "config": json_checksum(config)}
    if model.started.numpy():
        digest = hashlib.sha256()
        for weight in model.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        told["weights"] = digest.hexdigest()
    return told


def is_ours(config: Any) -> bool:
    """Whether a configuration names no class but those of this package."""
    names = [name for name, _ in _classes(config)]
    return all(str(name).startswith("concerto_tf>") for name in names)


def missing_class(config: Any) -> tuple[str, str] | None:
    """Registered name and module of a class that a configuration names and Keras does not know."""
    for name, module in _classes(config):
        if name is None or str(module).split(".")[0] in _KERAS:
            continue  # Keras' own, which it finds by itself
        if keras.utils.get_registered_object(name) is None:
            return str(name), str(module)
    return None


def check_config(name: str, made: Any) -> None:
    """Raises InputError where an object's configuration lacks an argument of its class.

    Args:
        name: What to call it.
        made: An object of a class that may be anybody's.
    """
    cls = type(made)
    if cls.__init__.__module__.split(".")[0] in _KERAS:
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    asked = {p.name for p in inspect.signature(cls.__init__).parameters.values() if p.kind in named}
    makes: frozenset[str] = getattr(cls, "makes", frozenset())
    lost = asked - set(made.get_config()) - makes - {"self", "name", "dtype"}
    if lost:
        raise InputError(
            f"{name}: get_config leaves out {', '.join(sorted(lost))}, which its constructor "
            "takes; return it there, too"
        )


#: What Keras 2 calls objects of some classes.
_KERAS_2 = {"Functional": "model", "InputLayer": r"(\w+_)?input"}


def is_automatic(name: Any, class_name: str) -> bool:
    """Whether Keras gave this name to an object of a class: ``dense``, ``dense_7``."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    own = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    own = f"({re.escape(own)}|{_KERAS_2.get(class_name, own)})"
    return isinstance(name, str) and re.fullmatch(rf"{own}(_\d+)?", name) is not None


def without_automatic_names(config: Any) -> Any:
    """A configuration in which the names that Keras chose are numbered from 0 on."""
    named: dict[str, str] = {}

    def collect(held: Any) -> None:
        if isinstance(held, Mapping):
            own = held.get("config")
            if isinstance(own, Mapping) and is_automatic(own.get("name"), str(held["class_name"])):
                named.setdefault(own["name"], f"{held['class_name']}#{len(named)}")
        for item in _items(held):
            collect(item)

    def renamed(held: Any) -> Any:
        if isinstance(held, Mapping):
            return {key: renamed(of) for key, of in held.items() if key != "shared_object_id"}
        if isinstance(held, list | tuple):
            return [renamed(item) for item in held]
        return named.get(held, held) if isinstance(held, str) else held

    collect(config)
    return renamed(config)


def _mapped(value: Any, change: Any) -> Any:
    """A value with the Keras objects in it changed."""
    if isinstance(value, Mapping):
        return {key: _mapped(of, change) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return (
        change(value) if hasattr(value, "get_config") and hasattr(value, "from_config") else value
    )


def _serialized(made: Any) -> Any:
    try:
        config = keras.utils.serialize_keras_object(made)
    except Exception as error:  # noqa: BLE001 - whatever a class of others raises
        raise InputError(
            f"{_named(made)}: its get_config fails ({first_line(error)}); mend it"
        ) from error
    check_config(_named(made), made)
    return config


def _again(made: Any, config: Any) -> Any:
    if getattr(made, "weights", ()):
        _log.warning("%s begins with new weights; to keep those it has, give a model", _named(made))
    return made_again(_named(made), made, config["config"])


def made_again(name: str, made: Any, config: dict[str, Any]) -> Any:
    """Another object of the class, by what the first says of itself; InputError if it cannot be."""
    try:
        return type(made).from_config(config)
    except Exception as error:  # noqa: BLE001 - whatever a class of others raises
        raise InputError(
            f"{name}: cannot be made from its get_config ({first_line(error)}); its constructor "
            "must take what that returns"
        ) from error


def _named(made: Any) -> str:
    return f"a {type(made).__module__}.{type(made).__qualname__}"


def _items(held: Any) -> Iterator[Any]:
    if isinstance(held, Mapping):
        yield from held.values()
    elif isinstance(held, list | tuple):
        yield from held


def _classes(config: Any) -> Iterator[tuple[Any, Any]]:
    """Registered names and modules of all classes that a configuration names."""
    if isinstance(config, Mapping) and "class_name" in config and "config" in config:
        yield config.get("registered_name"), config.get("module")
    for item in _items(config):
        yield from _classes(item)
