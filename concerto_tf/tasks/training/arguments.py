"""What may be asked of a training, before there is any work to lose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from concerto_tf.errors import InputError
from concerto_tf.models.asked import check_options
from concerto_tf.models.fitting.optimizers import make_optimizer
from concerto_tf.models.methods import method as find_method
from concerto_tf.tasks.training.distribution import MULTIWORKER, STRATEGIES

DEFAULT_METHOD = "concerto"
FEWEST_CELLS = 10


def check_cells(where: str, n_cells: int, n_genes: int, sources: Mapping[str, int]) -> None:
    """Raises InputError if there is too little to learn from.

    Args:
        where: What the cells lie in, for the message.
        n_cells: Number of cells.
        n_genes: Number of genes.
        sources: Number of cells by source.
    """
    if n_cells < FEWEST_CELLS:
        raise InputError(
            f"{where}: {n_cells} cell{'s' * (n_cells != 1)}; contrastive learning compares cells "
            f"and needs at least {FEWEST_CELLS}"
        )
    if n_genes < 2:
        raise InputError(f"{where}: one gene; training needs at least 2 genes to compare cells by")
    for name, count in sources.items():
        if count == 1:
            raise InputError(
                f"{where}: source {name!r} has one cell, which has no statistics of its own; merge "
                "it with another source, leave it out, or train without a source key"
            )


def check_arguments(
    *,
    method: str | None = None,
    preset: str | None = None,
    ensemble: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    optimizer: str | None = None,
    strategy: str = "auto",
    options: Mapping[str, Any] | None = None,
    **others: Any,
) -> None:
    """Raises InputError if an argument of `train` is unsuitable, whatever the cells."""
    method = method or DEFAULT_METHOD
    presets = find_method(method).presets
    if preset is not None and preset not in presets:
        known = ", ".join(presets)
        raise InputError(f"{method} has no preset {preset!r}; it has {known}")
    for name, value in {
        "epochs": epochs,
        "batch size": batch_size,
        "learning rate": learning_rate,
    }.items():
        if value is None:
            continue
        if not isinstance(value, Real) or not 0 < value < math.inf:
            raise InputError(f"{name} is {value}; it must be positive")
        if name != "learning rate" and value != int(value):
            raise InputError(f"{name} is {value}; it must be a whole number")
    if ensemble is not None and (not isinstance(ensemble, int) or ensemble < 1):
        raise InputError(f"ensemble is {ensemble}; it must be a whole number, 1 or more")
    if batch_size == 1:
        raise InputError("batch size is 1; a cell is contrasted with others, so at least 2")
    if strategy == MULTIWORKER:
        raise InputError("strategy multiworker is for `train` alone")
    if strategy not in STRATEGIES:
        known = ", ".join((*STRATEGIES, MULTIWORKER))
        raise InputError(f"there is no strategy {strategy!r}; choose one of {known}")
    _check_stopping(**{name: others.get(name) for name in ("validation_share", "patience")})
    make_optimizer("adam" if optimizer is None else optimizer, 1e-3)
    check_options(method, preset, options or {})


def _check_stopping(validation_share: Any, patience: Any) -> None:
    if validation_share is not None and not (
        isinstance(validation_share, int | float) and 0 < validation_share <= 0.5
    ):
        raise InputError(
            f"validation share is {validation_share}; it must be above 0 and at most 0.5",
            "validation_share",
        )
    if patience is not None and (not isinstance(patience, int) or patience < 1):
        raise InputError(f"patience is {patience}; it must be a whole number, 1 or more")
    if patience is not None and validation_share is None:
        raise InputError(
            "patience is of the loss on a validation share; give that", "validation_share"
        )
