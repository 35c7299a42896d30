"""Losses that a model can be given: by name, or any Keras loss."""

from __future__ import annotations

from typing import Any

from concerto_tf._keras import keras
from concerto_tf.errors import InputError
from concerto_tf.losses import InfoNCE, NTXent, VICReg

#: The losses that go by a name; those with a temperature take the model's.
LOSSES = ("nt_xent", "info_nce", "vicreg")
#: Which cells a cell may be told apart from: all others, or those of its own source.
_NEGATIVES = ("all", "source")


def view_loss(
    loss: str | dict[str, Any] | keras.losses.Loss, temperature: float, negatives: str = "all"
) -> Any:
    """The Keras loss between two views of the same cells.

    Args:
        loss: A name (`LOSSES`), a Keras loss whose ``call(view_b, view_a)`` gives a loss per cell
            [B] or one for all, or the configuration of one.
        temperature: Temperature of the losses that go by a name.
        negatives: Which cells a cell is told apart from: ``all`` or those of its own ``source``.

    Returns:
        The loss.

    Raises:
        InputError: There is no loss of this name, it is no loss, or an argument is unsuitable.

    Example:

    >>> from concerto_tf.models.view_loss import view_loss
    >>> view_loss("nt_xent", temperature=0.5).temperature
    0.5
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, not {temperature}.")
    if negatives not in _NEGATIVES:
        raise InputError(f"negatives must be {' or '.join(_NEGATIVES)}, not {negatives!r}.")
    found = _of(loss, temperature)
    if negatives == "source" and not isinstance(found, NTXent):
        raise InputError("negatives of the same source only are possible with loss nt_xent.")
    return found


def _of(loss: Any, temperature: float) -> Any:
    if loss == "nt_xent":
        return NTXent(temperature)
    if loss == "info_nce":
        return InfoNCE(temperature)
    if loss == "vicreg":
        return VICReg()
    if isinstance(loss, dict):
        loss = keras.losses.deserialize(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss
    raise InputError(
        f"there is no loss {loss!r}; choose one of {', '.join(LOSSES)}, or give a "
        "tf.keras.losses.Loss of two views"
    )
