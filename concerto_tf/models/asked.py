"""Whether a method's model can be made with what is asked for, before there is any work to lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from concerto_tf.errors import InputError
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.methods import METHODS, arguments_of
from concerto_tf.models.methods import method as find_method
from concerto_tf.models.modality import MEDIAN
from concerto_tf.models.presets import DEFAULT

#: What a value from a command line or a preset is made of; Keras objects are tried as they are met.
_PLAIN = (str, int, float, list, tuple, type(None))


def model_of_two_genes(
    method: str, preset: str | None = None, options: Mapping[str, Any] | None = None
) -> ContrastiveModel:
    """The least model that a preset and options make, to look at what they ask for.

    Args:
        method: One of the package's methods.
        preset: One of its presets; None for its default.
        options: Arguments of the class, which go before those of the preset.

    Example:
        >>> model_of_two_genes("contrastive-sc", "authors").backbone.widths
        (200, 40, 60)
    """
    cls = find_method(method)
    own = {**cls.presets[preset or DEFAULT].options, **(options or {})}
    if own.get("target_sum") == MEDIAN:
        del own["target_sum"]
    # Named, or Keras would number the models that it makes.
    return cls(["a", "b"], name=method, **own)


def check_options(method: str, preset: str | None, options: Mapping[str, Any]) -> None:
    """Raises InputError if a method's model cannot be made with some arguments of its class.

    Args:
        method: What the method is called by.
        preset: One of its presets; None for its default.
        options: The arguments by name.

    Example:
        >>> check_options("clear", "paper", {"mask": 0.3})
        >>> check_options("clear", None, {"masks": 0.3})
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: clear has no option 'masks'; it has align_sources, ...
    """
    known = arguments_of(find_method(method))
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(
            f"{method} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}"
        )
    ours = METHODS[method].__module__.startswith("concerto_tf.")
    if not options or not ours or not all(isinstance(o, _PLAIN) for o in options.values()):
        return
    try:
        model_of_two_genes(method, preset, options)
    except (TypeError, ValueError) as error:  # what a model, a number or a layer says of a value
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise InputError(f"{method} cannot be made with {given}: {error}") from error
