"""Optimizers by name, tensorflow-addons' among them where it exists."""

from __future__ import annotations

from numbers import Real
from typing import Any

from concerto_tf._keras import keras
from concerto_tf.errors import InputError

_NAMES = ("adam", "adamw", "lamb", "lazyadam", "momentum", "sgd")


def cosine_schedule(learning_rate: float, steps: int, warmup: float = 0.1) -> Any:
    """Learning rate that rises over the first steps and falls along a cosine to zero.

    Args:
        learning_rate: Peak learning rate.
        steps: Steps of the whole training.
        warmup: Share of them over which the rate rises.

    Returns:
        A Keras learning-rate schedule.

    Example:

    >>> from concerto_tf.models.fitting.optimizers import cosine_schedule
    >>> schedule = cosine_schedule(1e-3, steps=100)
    >>> [round(float(schedule(step)), 6) for step in (0, 10, 100)]
    [0.0, 0.001, 0.0]
    """
    rising = int(warmup * steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if rising else learning_rate,
        decay_steps=max(1, steps - rising),
        warmup_target=learning_rate if rising else None,
        warmup_steps=rising,
    )


def make_optimizer(name: str, learning_rate: Any, **kwargs: Any) -> Any:
    """Builds an optimizer by its name.

    ``lamb`` and ``lazyadam`` are tensorflow-addons' where that can be imported; ``lamb`` is
    otherwise Keras' own, where this Keras has one.

    Args:
        name: ``adam``, ``adamw``, ``lamb``, ``lazyadam``, ``momentum`` (SGD with a momentum of
            0.9) or ``sgd``, in any case.
        learning_rate: A number or a Keras schedule.
        **kwargs: Further arguments of the optimizer.

    Returns:
        The optimizer.

    Raises:
        InputError: If there is no such optimizer in this environment.

    Example:

    >>> from concerto_tf.models.fitting.optimizers import make_optimizer
    >>> type(make_optimizer("adam", 1e-3)).__name__
    'Adam'
    """
    if isinstance(learning_rate, Real):  # Keras takes no whole number
        learning_rate = float(learning_rate)
    key = name.lower()
    if key not in _NAMES:
        raise InputError(f"There is no optimizer {name!r}; choose one of {', '.join(_NAMES)}.")
    if key in ("lamb", "lazyadam"):
        addons = _tensorflow_addons()
        if addons is not None:
            cls = addons.optimizers.LAMB if key == "lamb" else addons.optimizers.LazyAdam
        elif key == "lamb" and hasattr(keras.optimizers, "Lamb"):
            cls = keras.optimizers.Lamb
        else:
            raise InputError(
                f"The optimizer {name!r} comes from tensorflow-addons, which works only up to "
                "TensorFlow 2.15 on Python 3.11: pip install 'concerto_tf[addons]' in an "
                "environment of its own, or choose adam or adamw."
            )
        return cls(learning_rate=learning_rate, **kwargs)
    if key == "momentum":
        return keras.optimizers.SGD(learning_rate=learning_rate, momentum=0.9, **kwargs)
    cls = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "sgd": keras.optimizers.SGD,
    }[key]
    return cls(learning_rate=learning_rate, **kwargs)


def _tensorflow_addons() -> Any:
    """The module, or None where it is not installed or does not fit this TensorFlow."""
    try:
        import warnings

        with warnings.catch_warnings():
            # It announces its own end of life on import.
            warnings.simplefilter("ignore")
            import tensorflow_addons
    except Exception:  # noqa: BLE001 - beside a newer TensorFlow its import fails in many ways
        return None
    return tensorflow_addons
