"""What a training step asks of a device, told without a GPU: no host, fixed shapes, GPU kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from concerto_tf._keras import keras
from concerto_tf.models import CICL, CLEAR, Concerto, ContrastiveSC

CALLS_TO_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
# What they return is as long as the values say, so that every step would be compiled anew.
SHAPES_BY_VALUE = {
    "Where",
    "Unique",
    "UniqueV2",
    "UniqueWithCounts",
    "DynamicPartition",
    "ListDiff",
}


def devices(op: str) -> set[str]:
    """Devices that this TensorFlow has kernels of an op for; DEFAULT are all."""
    return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}


def ops_of(function: tf.types.experimental.ConcreteFunction) -> set[str]:
    """Types of the ops of a function, and of those that it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    return {node.op for node in nodes}


@pytest.mark.parametrize(
    "method",
    [Concerto, *(pytest.param(of, marks=pytest.mark.slow) for of in (CLEAR, ContrastiveSC, CICL))],
)
def test_training_step_stays_on_the_device(method: type, make_batch: Callable) -> None:
    cells = make_batch(32)
    batch = {key: tf.constant(cells[key]) for key in ("genes", "values", "source")}
    model = method([f"G{i}" for i in range(30)], sources=("a", "b"))
    model.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    model.train_step(batch)  # makes the optimizer's variables
    ops = ops_of(tf.function(model.train_step).get_concrete_function(batch))
    assert "MatMul" in ops and len(ops) > 20
    assert not ops & CALLS_TO_PYTHON
    assert not ops & SHAPES_BY_VALUE
    assert {op for op in ops if not devices(op) & {"GPU", "DEFAULT"}} <= {"Placeholder"}


def test_what_does_not_belong_there_is_seen() -> None:
    """The ops that are looked for are those that TensorFlow writes down."""

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        return tf.py_function(lambda y: y, [tf.boolean_mask(x, x > 0)], tf.float32)

    ops = ops_of(step.get_concrete_function(tf.zeros(3)))
    assert ops & CALLS_TO_PYTHON and ops & SHAPES_BY_VALUE
    assert not devices("DecodeJpeg") & {"GPU", "DEFAULT"}
