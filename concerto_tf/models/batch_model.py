"""A Keras model over the batches of records: how it is compiled, and what it passes to Keras."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import keras
from concerto_tf.models.batches import without_text
from concerto_tf.models.fitting.optimizers import cosine_schedule, make_optimizer
from concerto_tf.models.presets import Training


def compiled(step: Any) -> Any:
    """A step as a TensorFlow function, compiled by XLA; see `BatchModel.use_xla`."""
    return tf.function(step, jit_compile=BatchModel.use_xla)


class BatchModel(keras.Model):
    """Base of the models: the constructor makes all weights, and the loss is the model's own."""

    #: Whether XLA compiles steps where nothing else is said. It makes them quicker, but takes
    #: seconds for each, which is most of the time of many tests.
    use_xla = True
    built: bool

    def compile(
        self,
        optimizer: Any = "adam",
        learning_rate: float | None = None,
        steps: int | None = None,
        jit_compile: bool | str = "auto",
        warmup: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Chooses how to train.

        Args:
            optimizer: A name (`make_optimizer`) or a Keras optimizer.
            learning_rate: Learning rate, its peak where ``steps`` is given. For names only.
            steps: Steps of the whole training: the rate then warms up and falls along a cosine.
                Without it the rate is constant. For names only.
            jit_compile: Whether XLA compiles the step; by default where there is one replica.
            warmup: Share of the steps over which the rate warms up.
            **kwargs: Of `keras.Model.compile`. The loss is the model's own.
        """
        if isinstance(optimizer, str):
            learning_rate = learning_rate or self.recipe.learning_rate
            rate = learning_rate if steps is None else cosine_schedule(learning_rate, steps, warmup)
            optimizer = make_optimizer(optimizer, rate)
        self._jit_compile_asked = jit_compile
        if jit_compile == "auto":
            # XLA places a step on one device; over several logical ones it fails.
            jit_compile = self.use_xla and self.distribute_strategy.num_replicas_in_sync == 1
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)
        if hasattr(self.optimizer, "build"):
            # Here and not in `fit`, where Keras would do it from a batch of a replica.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.learned_variables)

    @property
    def recipe(self) -> Training:
        """How the model is trained by default."""
        return Training()

    @property
    def learned_variables(self) -> list[Any]:
        """What training changes by gradients."""
        return self.trainable_variables

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset):
            kwargs.setdefault("shuffle", False)  # Keras warns that it cannot shuffle a dataset.
        return super().fit(without_text(x), *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().evaluate(without_text(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return super().predict(without_text(x), *args, **kwargs)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Keras 3 would build from a batch of one replica, and fails. Nothing is left to build:
        # the weights exist since the model does, the optimizer's since `compile`.
        pass

    def build_from_config(self, config: dict[str, Any]) -> None:
        # The constructor has built everything. What Keras 2 and 3 save for this differs, and so
        # would keep one from reading the other's file.
        pass
