"""The one place that knows which Keras TensorFlow presents.

Everything else is written against the API that Keras 2 and Keras 3 share, through the
``keras`` object of this module. What differs between the two is wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

keras = tf.keras

#: Major version of the Keras that TensorFlow presents: 2 (tf_keras, TensorFlow 2.15) or 3.
KERAS_MAJOR = 3 if hasattr(keras, "ops") else 2

#: Class decorator: the class loads from a saved model without ``custom_objects``.
serializable = keras.utils.register_keras_serializable(package="concerto_tf")


def state_weight(
    layer: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: str = "float32",
    initializer: str = "zeros",
) -> Any:
    """Adds a weight that a layer updates itself: not trained, never cast, saved with the model.

    Every replica computes the same update (statistics are synchronized, counters advance in
    step), so the first replica's value is the value.

    Args:
        layer: The layer that owns the weight.
        name: Name of the weight.
        shape: Shape of the weight.
        dtype: Its dtype; mixed precision does not change it.
        initializer: A Keras initializer.

    Returns:
        The variable.
    """
    if KERAS_MAJOR >= 3:
        extra = {"autocast": False, "aggregation": "only_first_replica"}
    else:
        extra = {
            "experimental_autocast": False,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
    return layer.add_weight(
        name=name, shape=shape, dtype=dtype, initializer=initializer, trainable=False, **extra
    )


def layers_within(layer: Any, recursive: bool = False) -> list[Any]:
    """The layers directly within a layer, or with ``recursive`` also those within these.

    Both Keras walk them by a method that neither calls public; metrics, which have no layers,
    lack it.
    """
    walk = getattr(layer, "_flatten_layers", None)
    return list(walk(include_self=False, recursive=recursive)) if walk else []


def compute_dtype(layer: Any) -> tf.DType:
    """The dtype a layer computes in under its precision policy."""
    return tf.as_dtype(layer.compute_dtype)


def accumulation_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype for sums and exponentials: float32 where computing is done in half precision."""
    dtype = tf.as_dtype(dtype)
    return tf.float32 if dtype in (tf.bfloat16, tf.float16) else dtype


def replica_count() -> int:
    """Number of replicas that take part in the present step (1 outside a strategy)."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_index() -> tf.Tensor | int:
    """Index of the present replica (0 outside a strategy)."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return 0
    return context.replica_id_in_sync_group


def sum_over_replicas(*tensors: tf.Tensor) -> list[tf.Tensor]:
    """Sums tensors over all replicas; differentiable, and free where there is one replica."""
    if replica_count() == 1:
        return list(tensors)
    context = tf.distribute.get_replica_context()
    return [context.all_reduce(tf.distribute.ReduceOp.SUM, tensor) for tensor in tensors]


def gather_over_replicas(tensor: tf.Tensor) -> tf.Tensor:
    """Concatenates a tensor of every replica along axis 0; differentiable."""
    if replica_count() == 1:
        return tensor
    return tf.distribute.get_replica_context().all_gather(tensor, axis=0)


def assign_everywhere(
    variables: Sequence[Any], values: Sequence[Any], update: Callable[[Any, Any], tf.Tensor]
) -> None:
    """Updates variables from others within a training step, alike on all replicas.

    Args:
        variables: Variables to change; any layer's, so none may know how replicas aggregate.
        values: As many variables that they are updated from, the same on all replicas.
        update: The new value of a variable, from its old one and its counterpart in ``values``.
    """
    pairs = [
        (
            getattr(v, "value", v) if KERAS_MAJOR >= 3 else v,
            getattr(x, "value", x) if KERAS_MAJOR >= 3 else x,
        )
        for v, x in zip(variables, values, strict=True)
    ]
    if replica_count() == 1:
        for variable, value in pairs:
            variable.assign(update(variable, value))
        return

    def merged(strategy: tf.distribute.Strategy) -> None:
        for variable, value in pairs:
            strategy.extended.update(variable, lambda v, x: v.assign(update(v, x)), args=(value,))

    tf.distribute.get_replica_context().merge_call(merged)


def apply_gradient_step(
    optimizer: Any, tape: tf.GradientTape, loss: tf.Tensor, variables: list[Any]
) -> None:
    """One step of an optimizer, summed over replicas, with loss scaling where it does any.

    Args:
        optimizer: Any Keras optimizer; those of tensorflow-addons work too.
        tape: The tape under which ``loss`` was computed.
        loss: This replica's part of the loss; the parts of all replicas add up.
        variables: The trainable variables.
    """
    if hasattr(optimizer, "minimize"):  # Keras 2
        optimizer.minimize(loss, variables, tape=tape)
        return
    with tape:
        scaled = optimizer.scale_loss(loss)
    gradients = tape.gradient(scaled, variables)
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
