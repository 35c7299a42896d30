"""Groups of cell types: what a cell is where its type cannot be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from concerto_tf.models.classifier.type_distance import novelty_of_query, type_novelty
from concerto_tf.novelty import Scale, mean_together, scale_by_type

_LEAST_PROBABILITY = 1e-30


@dataclass(frozen=True)
class Coarse:
    """Groups of the cell types of a classifier, and what held-out cells are like beside them.

    A cell has the probability of all types of a group together. Its novelty is told as that of
    types is, but by the odds of the group: a cell between two types of one group is none that is
    new to the group.

    Attributes:
        names: Names of the K groups.
        of_type: Code of the group of each cell type [C].
        mean, width: `Scale` of held-out cells by group [K, 3]; empty where none were held out.
        known: Both scores of held-out cells, each ascending; see `type_novelty`.
        together: `mean_together` of these cells, ascending.

    Example:

    >>> import numpy as np
    >>> coarse = Coarse(("B", "T"), (0, 1, 1))
    >>> found = {
    ...     "probabilities": np.float32([[0.4, 0.3, 0.3]]), "scores": np.zeros((1, 3), "f4"),
    ...     "embedding": np.zeros((1, 2), "f4"), "novelty": np.float32([0.2]),
    ... }
    >>> answer = coarse.answer(found)
    >>> coarse.names[answer["code"][0]], round(float(answer["probability"][0]), 3)
    ('T', 0.6)
    """

    names: tuple[str, ...]
    of_type: tuple[int, ...]
    mean: Sequence[Sequence[float]] = ()
    width: Sequence[Sequence[float]] = ()
    known: Sequence[Sequence[float]] = ((), ())
    together: Sequence[float] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Coarse:
        """The groups that `get_config` describes."""
        return cls(**{key: tuple(value) for key, value in config.items()})

    def get_config(self) -> dict[str, Any]:
        """What a file keeps, as JSON has it."""
        return {key: np.array(value, object).tolist() for key, value in asdict(self).items()}

    def answer(self, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The groups of cells.

        Args:
            found: What `Classifier.annotate` says of them, the novelty by their company too.

        Returns:
            ``code`` of the most probable group [n], its ``probability`` [n], and ``novelty`` [n],
            the p-value: never below that of the cell's type, as a cell of a known type is one of a
            known group. Where no cell was held out it is that.
        """
        scores, code, probability = self._scores(found)
        novelty = found["novelty"]
        if len(self.known[0]):
            scale = Scale(np.array(self.mean, "f4"), np.array(self.width, "f4"))
            score = type_novelty(scores, code, scale, ((), ()))[0].numpy()
            own = novelty_of_query(score, code, found["embedding"], self.known, self.together)
            novelty = np.maximum(novelty, own)
        return {"code": code, "probability": probability, "novelty": novelty}

    def calibrated(
        self, found: Mapping[str, np.ndarray], left_out: Mapping[str, np.ndarray], label: np.ndarray
    ) -> Coarse:
        """The same groups, with held-out cells to compare others with.

        A new type of a group is as far from its known types as these are from each other. So cells
        of a group of several types are taken as if their own was not known, where what is then
        most probable is of their group still.

        Args:
            found: What `Classifier.annotate` says of cells that nothing was learned of.
            left_out: From `own_type_left_out`, of the same cells.
            label: Their types [n].
        """
        scores, code, _ = self._scores(found)
        others, other_code, _ = self._scores(left_out)
        group = np.array(self.of_type)[label]
        alone = np.bincount(self.of_type)[group] == 1
        new = ~alone & (other_code == group)
        scores = np.where(new[:, np.newaxis], others, scores)
        code = np.where(new, other_code, code)
        scale = scale_by_type(scores, code, len(self.names))
        known = np.sort(type_novelty(scores, code, scale, ((), ()))[0].numpy(), axis=0).T
        p_value = type_novelty(scores, code, scale, known.tolist())[1].numpy()
        return replace(
            self,
            mean=scale.mean.tolist(),
            width=scale.width.tolist(),
            known=known.tolist(),
            together=np.sort(mean_together(p_value, found["embedding"])).tolist(),
        )

    def _scores(self, found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Conformity to the groups [n, 3], code [n] and probability [n] of the most probable."""
        member = np.eye(len(self.names), dtype=np.float32)[list(self.of_type)]
        of_group = found["probabilities"] @ member
        code = of_group.argmax(axis=1).astype(np.int32)
        own = member[:, code].T > 0
        own, others = (
            (found["probabilities"] * part).sum(axis=1).clip(_LEAST_PROBABILITY)
            for part in (own, ~own)
        )
        scores = found["scores"].copy()
        scores[:, 1] = np.log(own) - np.log(others)
        return scores, code, of_group.max(axis=1)
