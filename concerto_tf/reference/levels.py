"""Labels of query cells at one level or several, the coarsest first, `unknown` where novel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.novelty import UNKNOWN, Calibration, novelty_together
from concerto_tf.reference.cells import Reference
from concerto_tf.reference.conformity import calibrated
from concerto_tf.reference.transfer import heard_of, transfer

if TYPE_CHECKING:
    import pandas as pd


class Finest(NamedTuple):
    """What reference cells say of the labels of the finest level.

    Attributes:
        names: Names of the L labels.
        shares: Their probabilities [n, L]; see `transfer`.
        known: How unlikely the reference's own labels are told; see `calibrate_shares`.
    """

    names: tuple[str, ...]
    shares: np.ndarray
    known: Calibration


def label_levels(
    reference: Reference,
    z: np.ndarray,
    keys: Sequence[str],
    k: int,
    alpha: float,
    by_genes: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, pd.DataFrame], Finest]:
    """Labels of query cells by key: at each level among the reference cells of the coarser label.

    Args:
        reference: The reference.
        z: Embeddings of the query [n, d].
        keys: Keys of the labels, the coarsest first.
        k: Number of neighbours that vote; in a group of fewer reference cells all of them.
        alpha: Novelty p-value below which a cell is ``unknown``, and at all finer levels too.
        by_genes: What the genes say [n, L], by key; see `Voices.heard`.

    Returns:
        By key one row per cell: ``label``, ``confidence``, ``predicted``, ``probability`` and
        ``novelty``, as `map` describes them; and what all reference cells, of whichever group, say
        of the finest labels.

    Raises:
        InputError: There are no such labels, or they contradict each other.
    """
    check_levels(reference, keys)
    whole = reference.labelled(keys[-1])
    found: dict[str, pd.DataFrame] = {}
    group = np.full(len(z), "", object)  # one group before the first level
    sure = np.ones(len(z), np.float32)
    coarser = None
    for key in keys:
        level = _empty(len(z))
        for name in sorted({g for g in group if g != UNKNOWN}):
            rows = np.flatnonzero(group == name)
            part = whole if len(keys) == 1 else _of_group(reference, key, coarser, name)
            if part is not None:
                said = heard_of(part, z[rows], key, (by_genes or {}).get(key), rows)
                answer = transfer(part, z[rows], key, min(k, part.n_cells), said)
                known = calibrated(part, key).together
                answer["novelty"] = novelty_together(
                    answer["novelty"], part.embedded.compared(z[rows]), known
                )
                # The last name is what code -1 takes.
                names = np.array([*part.labels[key].names, UNKNOWN], object)
                level.loc[rows, "predicted"] = names[answer["code"]]
                for column in ("probability", "novelty"):
                    level.loc[rows, column] = answer[column].astype(np.float64)
        level["probability"] *= sure
        level["confidence"] = np.sqrt(level["probability"] * level["novelty"])
        level["label"] = level["predicted"].where(level["novelty"] >= alpha, UNKNOWN)
        group = level["label"].to_numpy(object)
        sure, coarser = level["probability"].to_numpy(np.float32), key
        found[key] = level
    if len(keys) > 1:
        said = heard_of(whole, z, keys[-1], (by_genes or {}).get(keys[-1]))
        answer = transfer(whole, z, keys[-1], 1, said)
    of_finest = whole.labels_of(keys[-1]).names
    return found, Finest(of_finest, answer["shares"], calibrated(whole, keys[-1]).votes)


def _empty(n: int) -> pd.DataFrame:
    import pandas as pd

    unknown = np.full(n, UNKNOWN, object)
    return pd.DataFrame(
        {
            "label": unknown,
            "confidence": 0.0,
            "predicted": unknown,
            "probability": 0.0,
            "novelty": 0.0,
        }
    )


def _of_group(reference: Reference, key: str, coarser: str | None, group: str) -> Reference | None:
    """The reference cells of a coarse group that have a finer label; None where none has."""
    among = reference.labels_of(key).codes >= 0
    if coarser is not None:
        upper = reference.labels_of(coarser)
        among &= upper.codes == upper.names.index(group)
    if among.all():
        return reference
    return reference.part(np.flatnonzero(among)) if among.any() else None


def check_levels(reference: Reference, keys: Sequence[str]) -> None:
    """Raises InputError where a label of a level stands under two labels of the level above."""
    for upper, lower in zip(keys, keys[1:], strict=False):
        above, below = reference.labels_of(upper), reference.labels_of(lower)
        both = (above.codes >= 0) & (below.codes >= 0)
        pairs = np.unique(np.stack([below.codes[both], above.codes[both]], axis=1), axis=0)
        lows, times = np.unique(pairs[:, 0], return_counts=True)
        torn = []
        for low in lows[times > 1]:
            highs = ", ".join(above.names[high] for high in pairs[pairs[:, 0] == low, 1])
            torn.append(f"{below.names[low]!r} ({highs})")
        if torn:
            more = f" and {len(torn) - 5} more" if len(torn) > 5 else ""
            raise InputError(
                f"labels of {lower!r} stand under several of {upper!r} in the reference: "
                f"{'; '.join(torn[:5])}{more}; give each one coarser label, or name other levels"
            )
