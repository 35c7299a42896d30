"""contrastive-sc: most of the genes hidden from both views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from concerto_tf._keras import serializable
from concerto_tf.layers import RandomMask
from concerto_tf.models.contrastive_sc.presets import PRESETS
from concerto_tf.models.dense.network import DenseModel, LayerLike, refuse_made
from concerto_tf.models.seeds import Seeds


@serializable
class ContrastiveSC(DenseModel):
    """Contrastive learning with strong input dropout in front of a small encoder.

    Each view keeps a small random share of the cell's genes; NT-Xent pulls the two views of a cell
    together. Several such networks make an `Ensemble`.

    ``ContrastiveSC.presets["paper"]`` has the paper's values for real cells, ``"simulation"`` those
    for simulated ones, and ``"authors"`` those of the authors' program. The widths of the first two
    of three layers are not printed: in the former they are 512 and 128.

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        mask_rate: Share of the genes that each view hides.
        rescale: Whether what remains is divided by the share that remains, as dropout layers do.
        backbone: As in `DenseModel`.
        temperature: Temperature of the loss.
        seed: Seed of the initial weights and of the views.
        **kwargs: Of `DenseModel`, except for augmentation.

    Example:

    Trained as `Concerto` is:

    >>> from concerto_tf.models import ContrastiveSC
    >>> model = ContrastiveSC([f"gene{i}" for i in range(50)], backbone=(16, 8))
    >>> model.embedding_dim
    8

    Reference:
        contrastive-sc, Methods, "Representation learning"; Figure 8 for the share of genes kept.
    """

    presets = PRESETS
    makes = frozenset({"augmentation"})
    augmentation: RandomMask

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        mask_rate: float = 0.8,
        rescale: bool = False,
        backbone: LayerLike = (128,),
        temperature: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        refuse_made(ContrastiveSC, kwargs)
        mask = RandomMask(
            mask_rate, rescale, seed=Seeds(seed)() + 1_000, exact=True, name="augmentation"
        )
        super().__init__(
            vocabulary,
            augmentation=mask,
            backbone=backbone,
            temperature=temperature,
            seed=seed,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        mask = self.augmentation
        return {**super().get_config(), "mask_rate": mask.rate, "rescale": mask.rescale}
