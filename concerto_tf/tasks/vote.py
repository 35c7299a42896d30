"""Labels by majority within groups of cells: what most cells of a group say, and how many do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError, choices
from concerto_tf.novelty import UNKNOWN
from concerto_tf.records import open_input
from concerto_tf.records.batch import ROW, label_key
from concerto_tf.records.cell_set import is_records
from concerto_tf.tasks.cluster import CLUSTER, cluster

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("concerto_tf")
#: Key in `uns` of the table of groups.
VOTE = "concerto_vote"
#: Numbers of cells and, below each, the resolution of clusters small enough to be of one type:
#: those of CellTypist (Dominguez Conde et al., Science 376, eabl5197, 2022).
_RESOLUTIONS = ((5_000, 5), (20_000, 10), (40_000, 15), (100_000, 20), (200_000, 25))
_MOST = 30
#: Cells that a resolution of 1 takes: with less, clusters of a tiny query would be single cells.
_CELLS_PER_RESOLUTION = 100


def named_groups(
    cells: Any, vote: bool | str, known: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """The groups that cells vote in, where a column was named; to be asked before long work.

    Args:
        cells: What the task was given: records, or something to convert.
        vote: Name of the column; True for clusters, and False for no vote.
        known: The cells as they were read (`CellSet.obs`).

    Returns:
        Group of each cell [n], None where it has none; or None where no column was named.

    Raises:
        InputError: There is no such column.
    """
    return column_of(cells, vote, known) if isinstance(vote, str) else None


def column_of(cells: Any, key: str, known: Mapping[str, np.ndarray]) -> np.ndarray:
    """A column of the obs of cells [n], None where missing; an InputError where there is none."""
    if is_records(cells):
        if label_key(key) not in known:
            prefix = label_key("")
            held = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
            raise InputError(f"the query's records have no column {key!r}; {choices(key, held)}")
        return known[label_key(key)]
    with open_input(cells) as opened:
        codes, names = opened.column(key)
    return np.array([*names, None], object)[codes[known[ROW]]]


def fine_clusters(z: np.ndarray, seed: int = 0) -> np.ndarray:
    """Many small Leiden clusters, each of one cell type as far as can be.

    Args:
        z: Embeddings [n, d].
        seed: Seed of Leiden.

    Returns:
        Names of the clusters [n], "0" the largest.
    """
    from anndata import AnnData

    adata = cluster(AnnData(obsm={"X_concerto": z}), resolution=fine_resolution(len(z)), seed=seed)
    return adata.obs[CLUSTER].astype(str).to_numpy(object)


def fine_resolution(n: int) -> float:
    """Resolution of `fine_clusters` of n cells: CellTypist's, and less below 500 cells.

    Example:

    >>> [fine_resolution(n) for n in (20, 250, 4_999, 5_000, 10**6)]
    [1.0, 2.5, 5.0, 10.0, 30.0]
    """
    step = next((value for most, value in _RESOLUTIONS if n < most), _MOST)
    return float(min(step, max(1, n / _CELLS_PER_RESOLUTION)))


def add_vote(
    table: pd.DataFrame,
    groups: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
) -> pd.DataFrame:
    """Gives each cell the label that most cells of its group have.

    ``unknown`` takes part like a label. Of labels with as many cells the one wins whose cells are
    surer together, then the first by name. A cell without a group keeps its own label, without a
    share.

    Args:
        table: One row per cell with ``label`` and ``confidence``; gains ``vote``, ``vote_share``
            (share of the group's cells that have it) and ``attrs["vote"]``, the rows of what is
            returned.
        groups: Group of each cell [n]; None or NaN for none.
        probabilities: Probability [n, L] of each cell type.
        names: Names of these.

    Returns:
        One row per group, its name as index, the largest first: ``cells``, ``label``, ``share``,
        and ``expected_error``, one minus the mean probability that all cells of the group give to
        the label; NaN where it is ``unknown``.

    Example:

    >>> import numpy as np, pandas as pd
    >>> table = pd.DataFrame({"label": ["B", "B", "T"], "confidence": [0.9, 0.8, 0.6]})
    >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
    >>> add_vote(table, np.array(["g", "g", "g"]), p, ["B", "T"]).round(2)
           cells label  share  expected_error
    group
    g          3     B   0.67             0.3
    >>> table["vote"].tolist()
    ['B', 'B', 'B']
    """
    import pandas as pd

    cells = table[["label", "confidence"]].reset_index(drop=True)
    cells["group"] = pd.Series(list(groups), dtype=object)
    cells = cells.dropna(subset=["group"]).astype({"group": str, "label": str})
    counted = cells.groupby(["group", "label"])["confidence"].agg(["size", "sum"]).reset_index()
    counted = counted.sort_values(
        ["group", "size", "sum", "label"], ascending=[True, False, False, True]
    )
    size = counted.groupby("group")["size"].sum()
    won = counted.drop_duplicates("group").set_index("group")
    found = pd.DataFrame({"cells": size, "label": won["label"], "share": won["size"] / size})
    code = found["label"].map({name: i for i, name in enumerate(names)})
    own = cells["group"].map(code).dropna().astype(int)
    given = pd.Series(probabilities[own.index, own.to_numpy()], own.index, float)
    found["expected_error"] = 1 - given.groupby(cells["group"]).mean()
    found = found.sort_values("cells", ascending=False, kind="stable")
    for name, column, alone in (
        ("vote", "label", table["label"].to_numpy()),
        ("vote_share", "share", np.nan),
    ):
        told = cells["group"].map(found[column]).reindex(range(len(table)))
        table[name] = told.where(told.notna(), alone).to_numpy()
    # As plain rows: pandas cannot compare tables in `attrs`, and fails to print them.
    rows = found.reset_index().astype(object)
    table.attrs["vote"] = rows.where(rows.notna(), None).to_dict("records")
    _say(table, found)
    return found


def _say(table: pd.DataFrame, found: pd.DataFrame) -> None:
    """Says what the vote changed."""
    _log.info(
        "voted in %d groups: %.1f%% of the cells are given another label than their own; on "
        "average %.0f%% of a group agree, and %.0f%% of groups are %s",
        len(found),
        100 * (table["vote"] != table["label"]).mean(),
        100 * found["share"].mean(),
        100 * (found["label"] == UNKNOWN).mean(),
        UNKNOWN,
    )
