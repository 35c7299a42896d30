"""The encoder of dense models: dense layers with a ReLU in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, serializable
from concerto_tf.errors import InputError
from concerto_tf.layers.directions import take_directions, with_negatives
from concerto_tf.models.seeds import Seeds


def scaled_glorot(gain: float, seed: int) -> Any:
    """Glorot's initializer of a dense layer whose inputs are multiplied with a gain."""
    return keras.initializers.VarianceScaling(
        gain**-2, mode="fan_avg", distribution="uniform", seed=seed
    )


@serializable
class MLP(keras.layers.Layer):
    """Dense layers with a ReLU between them; the last is linear unless it is asked otherwise.

    Args:
        widths: Width of each layer.
        seed: Seed of the initial weights.
        scale_inputs: Whether the inputs are divided by the root of their number, and the first
            weights larger by that, so that Adam changes these in proportion for any width.
        batch_norm: Whether each layer but the last is batch-normalized before its ReLU.
        last_relu: Whether a ReLU follows the last layer, too.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Values [B, n], float.

    Returns:
        Values [B, widths[-1]].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.models.dense.mlp import MLP
    >>> MLP([16, 4])(tf.ones([2, 50])).shape
    TensorShape([2, 4])
    """

    def __init__(
        self,
        widths: Sequence[int],
        seed: int = 0,
        scale_inputs: bool = False,
        batch_norm: bool = False,
        last_relu: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not widths or min(widths) < 1:
            raise InputError(f"the widths of an encoder must be positive, not {list(widths)}")
        self.widths = tuple(int(width) for width in widths)
        self.seed = int(seed)
        self.scale_inputs = bool(scale_inputs)
        self.batch_norm, self.last_relu = bool(batch_norm), bool(last_relu)
        self.gain = 1.0
        seeds = Seeds(self.seed)
        self.steps = [
            keras.layers.Dense(
                width,
                kernel_initializer=keras.initializers.GlorotUniform(seed=seeds()),
                name=f"dense_{i}",
                dtype=kwargs.get("dtype"),
            )
            for i, width in enumerate(self.widths)
        ]
        self.norms = [
            keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"norm_{i}", dtype=kwargs.get("dtype")
            )
            for i in range(len(self.widths) - 1 if self.batch_norm else 0)
        ]

    def build(self, input_shape: Any) -> None:
        width = tuple(input_shape)[-1]
        if self.scale_inputs:
            self.gain = width**-0.5
            first = self.steps[0]
            first.kernel_initializer = scaled_glorot(self.gain, first.kernel_initializer.seed)
        for step in self.steps:
            step.build((None, width))
            width = step.units
        for step, norm in zip(self.steps, self.norms, strict=False):
            norm.build((None, step.units))
        super().build(input_shape)

    def room(self, paired: bool) -> int:
        """How many directions `take_directions` can take at most."""
        *inner, last = self.widths
        return min([width // 2 for width in inner] + [last // 2 if paired else last])

    def take_directions(self, directions: np.ndarray, paired: bool) -> int:
        """Initializes the layers, so that the output holds given combinations of the inputs.

        The first layer projects on them and on their negatives, which together pass a ReLU without
        loss, and each further one passes them on.

        Args:
            directions: [n, k] with k at most `room`.
            paired: Whether the output holds their negatives too, as a ReLU behind it needs them.

        Returns:
            Number of units of the output that hold them, the first ones.
        """
        part = directions / self.gain
        for step in self.steps:
            columns = part if step is self.steps[-1] and not paired else with_negatives(part)
            full = np.zeros((int(step.kernel.shape[0]), columns.shape[1]), np.float32)
            full[: len(columns)] = columns
            take_directions(step.kernel, full)
            part = np.concatenate([np.eye(directions.shape[1]), -np.eye(directions.shape[1])])
        return columns.shape[1]

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = self.steps[0](inputs * self.gain)
        for i, step in enumerate(self.steps[1:]):
            if self.norms:
                x = self.norms[i](x, training=training)
            x = step(tf.nn.relu(x))
        return tf.nn.relu(x) if self.last_relu else x

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*tuple(input_shape)[:-1], self.widths[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "widths": list(self.widths),
            "seed": self.seed,
            "scale_inputs": self.scale_inputs,
            "batch_norm": self.batch_norm,
            "last_relu": self.last_relu,
        }
