"""What the contrastive losses share: a temperature, and similarities that never count."""

from __future__ import annotations

from typing import Any

from concerto_tf._keras import keras

#: A similarity that never counts: exp() of it is 0 in every float type.
NEVER = -1e9


class TemperatureLoss(keras.losses.Loss):
    """Base of the losses that divide similarities by a temperature.

    Args:
        temperature: Divisor of the similarities; small values weigh near negatives more.
        **kwargs: Of `keras.losses.Loss`.
    """

    def __init__(self, temperature: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, not {temperature!r}.")
        self.temperature = float(temperature)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}
