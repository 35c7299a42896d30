"""What a method is by default, and what its paper printed: as data.

Each method has its presets in a file of that name in its own folder, ``default`` among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

#: Passes over the cells behind a PCA initialization, at most. There is little to be found anew, and
#: a few cells looked at again and again are told apart by their noise.
MOST_EPOCHS = 30


@dataclass(frozen=True)
class Training:
    """How a model is trained by default.

    Attributes:
        learning_rate: Peak learning rate.
        genes: Genes to look at, as `train` takes them.
        epochs: Passes over the cells; None for as many as their number calls for.
        most_epochs: Passes where ``epochs`` is None, at most.
        batch_size: Cells per minibatch over all replicas; None for what suits their number.
        cosine: Whether the rate falls along a cosine; otherwise it is constant.
        optimizer: Name of the optimizer (`make_optimizer`).
        ensemble: Number of networks that are joined.
        settling_steps: Steps at the start whose losses do not compare with later ones.
        finetuning_rate: Peak learning rate of fine-tuning to labels.
    """

    learning_rate: float = 1e-3
    genes: str = "hvg:5000"
    epochs: int | None = None
    most_epochs: int | None = None
    batch_size: int | None = None
    cosine: bool = False
    optimizer: str = "adam"
    ensemble: int = 1
    settling_steps: int = 0
    finetuning_rate: float = 1e-3


@dataclass(frozen=True)
class Preset:
    """A named choice of a method's options and of its training.

    Attributes:
        name: What it is called by.
        training: How a model is trained with it.
        options: Arguments of the model's class; all others are as the class has them.
    """

    name: str
    training: Training
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


DEFAULT = "default"


def by_name(*presets: Preset) -> Mapping[str, Preset]:
    """Presets of a method by their names."""
    return MappingProxyType({preset.name: preset for preset in presets})
