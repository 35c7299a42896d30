"""Sets of cell types that cannot be excluded for a cell, with a stated coverage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.novelty import UNKNOWN, Calibration
from concerto_tf.numerics.prediction_sets import label_sets, threshold

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("concerto_tf")
#: What stands between the types of a set.
SEPARATOR = "|"


def add_sets(
    table: pd.DataFrame,
    probabilities: np.ndarray,
    names: Sequence[str],
    known: Calibration,
    alpha: float,
) -> None:
    """Tells for each cell which types cannot be excluded, and how often such sets are right.

    Of cells like the known ones a share of about 1 - alpha has a set with their type in it. What
    is predicted for a cell is always in its set.

    Args:
        table: One row per cell with ``label`` and ``predicted``; gains ``set``, the types joined by
            "|", the most probable first, empty where the label is ``unknown``; and
            ``attrs["sets"]``, the ``coverage`` and the ``mean_size`` of sets that are not empty.
        probabilities: Probability [n, L] of each cell type.
        names: Names of these.
        known: Nonconformity of the types of known cells (`kept_scores`).
        alpha: Share of known cells whose set may lack their type.

    Example:

    >>> import numpy as np, pandas as pd
    >>> from concerto_tf.novelty import Calibration
    >>> table = pd.DataFrame({"label": ["B", "B", "unknown"], "predicted": ["B", "B", "T"]})
    >>> p = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    >>> known = Calibration(np.repeat([0.0, 0.7], [7, 2]), 9)
    >>> add_sets(table, p, ["B", "T"], known, alpha=0.2)
    >>> table["set"].tolist(), table.attrs["sets"]
    (['B', 'B|T', ''], {'coverage': 0.8, 'mean_size': 1.5})
    """
    limit = threshold(known.scores, int(known.n_cells), 1 - alpha)
    members = label_sets(probabilities, limit)
    place = {name: code for code, name in enumerate(names)}
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sets = []
    for i, (label, predicted) in enumerate(zip(table["label"], table["predicted"], strict=True)):
        if label != UNKNOWN:
            members[i, place[predicted]] = True
        ranked = [names[code] for code in order[i] if members[i, code]]
        sets.append("" if label == UNKNOWN else SEPARATOR.join(ranked))
    table["set"] = np.array(sets, object)
    labelled = (table["label"] != UNKNOWN).to_numpy()
    size = float(members[labelled].sum(axis=1).mean()) if labelled.any() else 0.0
    table.attrs["sets"] = {"coverage": 1 - alpha, "mean_size": round(size, 3)}
    if limit < 1:
        _log.info(
            "sets of cell types: of known cells %g%% have theirs in it; %.2f types on average",
            100 * (1 - alpha),
            size,
        )
    else:
        _log.info(
            "sets of cell types: too little is known of these types for any of them to be excluded "
            "at a coverage of %g%%, and sets hold all",
            100 * (1 - alpha),
        )
