"""Initialization of weights with given directions, such as principal components."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

#: What is left of random weights beside given ones.
REMAINDER = 0.02


def take_directions(weight: Any, directions: np.ndarray) -> None:
    """Sets the first columns of a weight to given directions, and shrinks all others.

    Args:
        weight: A weight [n, m].
        directions: [n or fewer, k], k at most m: what the first columns, as far down as these go,
            become.

    Example:

    >>> import numpy as np, tensorflow as tf
    >>> from concerto_tf.layers.directions import take_directions
    >>> kernel = tf.Variable(tf.ones([2, 3]))
    >>> take_directions(kernel, np.array([[5.0], [7.0]]))
    >>> kernel.numpy().astype("float64").round(2).tolist()
    [[5.0, 0.02, 0.02], [7.0, 0.02, 0.02]]
    """
    rows, columns = directions.shape
    started = np.array(tf.convert_to_tensor(weight)) * REMAINDER
    started[:rows, :columns] = directions
    weight.assign(started)


def with_negatives(directions: np.ndarray) -> np.ndarray:
    """Directions [n, k] and their negatives, side by side [n, 2k].

    A component and its negative pass a ReLU without loss: c = relu(c) - relu(-c).
    """
    return np.concatenate([directions, -directions], axis=1)
