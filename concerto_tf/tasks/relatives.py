"""Groups of a query beside the reference labels that their cells lie nearest to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._paths import as_path
from concerto_tf.novelty import UNKNOWN
from concerto_tf.tasks.embed import KEY
from concerto_tf.tasks.vote import column_of

if TYPE_CHECKING:
    import pandas as pd


def relatives(
    groups: Iterable[str | None], nearest: Sequence[str], label: Sequence[str] | None = None
) -> pd.DataFrame:
    """Which reference labels the cells of each query group lie nearest to.

    Args:
        groups: Group of each query cell [n]; None or NaN for none.
        nearest: Reference label nearest to it [n], whether or not it was rejected.
        label: Label after rejection [n].

    Returns:
        One row per group and label: ``group``, ``label``, ``cells``, ``share`` of the group's
        cells, and ``unknown``, the share of these that was rejected; the largest share first.

    Example:

    >>> from concerto_tf.tasks.relatives import relatives
    >>> relatives(["a", "a", "b"], ["T", "B", "T"], ["T", "B", "unknown"])
      group label  cells  share  unknown
    0     a     B      1    0.5      0.0
    1     a     T      1    0.5      0.0
    2     b     T      1    1.0      1.0
    """
    import pandas as pd

    cells = pd.DataFrame({"group": list(groups), "label": list(nearest)}).astype(object)
    cells["unknown"] = 0.0 if label is None else (np.asarray(label) == UNKNOWN).astype(float)
    cells = cells.dropna(subset=["group"]).astype({"group": str, "label": str})
    counted = cells.groupby(["group", "label"], observed=True)["unknown"].agg(["size", "mean"])
    table = counted.reset_index().rename(columns={"size": "cells", "mean": "unknown"})
    table["share"] = table["cells"] / table.groupby("group")["cells"].transform("sum")
    table = table[["group", "label", "cells", "share", "unknown"]]
    order = ["group", "share", "label"]
    return table.sort_values(order, ascending=[True, False, True], ignore_index=True)


def groups_of(
    query: Any, groupby: str, z: np.ndarray, known: Mapping[str, np.ndarray], seed: int
) -> np.ndarray:
    """Group of each query cell by a column of its obs, or by Leiden."""
    if groupby == "leiden":
        from anndata import AnnData

        from concerto_tf.tasks.cluster import CLUSTER, cluster

        adata = cluster(AnnData(obsm={KEY: z}), seed=seed)
        return adata.obs[CLUSTER].astype(str).to_numpy(object)
    return column_of(query, groupby, known)


def show_relatives(table: pd.DataFrame, groupby: str, key: str, figure: str | Path | None) -> None:
    """Writes the table of groups and its figure."""
    from concerto_tf._files import atomic
    from concerto_tf.pl.flows import sankey_figure

    if figure is None:
        return
    with atomic(as_path(figure).with_suffix(".tsv")) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    sankey_figure(table, figure, left=f"query: {groupby}", right=f"reference: {key}")
