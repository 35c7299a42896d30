"""The noise of real experiments, simulated: views of a cell as CLEAR makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import serializable
from concerto_tf.layers.exchange import Crossover, CrossoverMany, RandomSwap
from concerto_tf.layers.masking import RandomMask
from concerto_tf.layers.noise import GaussianNoise
from concerto_tf.layers.random_layer import CellLayer


@serializable
class Augmentation(CellLayer):
    """CLEAR's five augmentations in its order; every call in training draws a new view.

    Mask, Gaussian noise, swap, crossover with one other cell, crossover with several. Each step
    changes a cell with the same probability, independently of the others. The crossovers read
    the other cells as they came in. A step with fraction 0 is left out, which changes nothing
    about the others. For other orders put the layers one after another.

    Args:
        mask: Share of the genes that become zero.
        noise: Share of the genes with noise added.
        swap: Share of the genes whose values are swapped within the cell.
        crossover: Share of the genes exchanged with one other cell.
        crossover_many: Share of the genes exchanged with several other cells.
        probability: Probability of each step for a cell.
        stddev: Standard deviation of the noise.
        partners: Number of cells in the crossover with several.
        seed: Seed of all steps.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Normalized values [B, G], or of one cell [G].
        others: Values [N, G] of the cells to exchange with; by default the other cells of
            ``inputs``. A cell alone in its batch exchanges nothing.
        training: Whether to change anything.
        index: Which draw, by its number from 0 on; by default the next (`RandomLayer`).

    Returns:
        Values [B, G].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import Augmentation
    >>> augment, cells = Augmentation(), tf.random.stateless_uniform([32, 100], [0, 0])
    >>> views = [augment(cells, training=True) for _ in range(2)]
    >>> bool(tf.reduce_all(views[0] == views[1])), bool(tf.reduce_all(augment(cells) == cells))
    (False, True)

    Without one of the steps:

    >>> augment = Augmentation(crossover=0.0)

    Reference:
        CLEAR, Data augmentation (i) to (v); the defaults are its values.
    """

    def __init__(
        self,
        mask: float = 0.2,
        noise: float = 0.8,
        swap: float = 0.1,
        crossover: float = 0.25,
        crossover_many: float = 0.25,
        probability: float = 0.5,
        stddev: float = 0.2,
        partners: int = 4,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.seed = int(seed)
        seeds = (int(s) for s in np.random.SeedSequence(self.seed).generate_state(5))

        def options(name: str) -> dict[str, Any]:
            return {
                "probability": probability,
                "seed": next(seeds),
                "name": name,
                "dtype": kwargs.get("dtype"),
            }

        self.mask = RandomMask(mask, rescale=False, exact=True, **options("mask"))
        self.noise = GaussianNoise(stddev, noise, **options("noise"))
        self.swap = RandomSwap(swap, **options("swap"))
        self.crossover = Crossover(crossover, **options("crossover"))
        self.crossover_many = CrossoverMany(
            crossover_many, partners=partners, **options("crossover_many")
        )

    def build(self, input_shape: Any) -> None:
        for step in (self.mask, self.noise, self.swap, self.crossover, self.crossover_many):
            step.build(input_shape)
        super().build(input_shape)

    def call(
        self,
        inputs: tf.Tensor,
        others: tf.Tensor | None = None,
        training: bool | None = None,
        index: tf.Tensor | int | None = None,
    ) -> tf.Tensor:
        if not training:
            return inputs
        now: dict[str, Any] = {"training": True, "index": index}
        view = self.swap(self.noise(self.mask(inputs, **now), **now), **now)
        with_whom = {"others": inputs, "aligned": True} if others is None else {"others": others}
        view = self.crossover(view, **with_whom, **now)
        return self.crossover_many(view, **with_whom, **now)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mask": self.mask.rate,
            "noise": self.noise.fraction,
            "swap": self.swap.fraction,
            "crossover": self.crossover.fraction,
            "crossover_many": self.crossover_many.fraction,
            "probability": self.mask.probability,
            "stddev": self.noise.stddev,
            "partners": self.crossover_many.partners,
            "seed": self.seed,
        }
