"""The tables of `delivered`: scores by data set beside those of peers, and their means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protocols.delivered_parts import OURS, WITHOUT
from protocols.quality_report import markdown

if TYPE_CHECKING:
    import pandas as pd

#: Head, who answered, and the scores that are shown of it.
Column = tuple[str, str, tuple[str, ...]]
_TOLD = ("accuracy", "accuracy_unrejected")
_NEW = ("rejected_unseen", "rejected_known")
_MIXED = ("ilisi", "kbet")
_OF_OURS: tuple[Column, ...] = (
    ("annotate", OURS + "annotate", _TOLD),
    ("map", OURS + "map", _TOLD),
)
_OF_PEERS: tuple[Column, ...] = (
    ("logistic regression", "logistic", ("accuracy",)),
    ("kNN on PCA", "knn", ("accuracy",)),
)


@dataclass(frozen=True)
class _Table:
    """What is shown of a part: the columns, of those tasks that it holds."""

    part: str
    about: str
    columns: tuple[Column, ...]
    holds: Callable[[str], bool] = lambda task: True
    by_task: bool = False


_TABLES = (
    _Table(
        "clusters",
        "**Clusters as delivered**, ARI. scanpy's recipe: 2,000 variable genes, 50 components, "
        "Leiden at resolution 1. The oracle takes the best of ten resolutions by the labels.",
        (
            ("run", OURS + "run", ("ari",)),
            ("scanpy", "scanpy", ("ari",)),
            ("scanpy, scaled genes", "scanpy, scaled", ("ari",)),
            ("oracle: best of ten resolutions of our embedding", OURS + "run", ("best_of_ten",)),
        ),
    ),
    _Table(
        "labels",
        "**Labels of the other half**, accuracy as delivered · before rejection.",
        (*_OF_OURS, *_OF_PEERS),
        lambda task: not task.startswith(WITHOUT),
    ),
    _Table(
        "labels",
        "**New types**, each left out of the reference: share of its cells called unknown · share "
        "of known cells called unknown. Beside them how well kNN on PCA tells the type where the "
        "reference has it (F1).",
        (
            ("annotate", OURS + "annotate", _NEW),
            ("map", OURS + "map", _NEW),
            ("F1 by kNN on PCA", "knn", ("f1",)),
        ),
        lambda task: task.startswith(WITHOUT),
    ),
    _Table(
        "shift",
        "**Another source**, one the reference and one the query: accuracy as delivered · before "
        "rejection, of types that the reference has.",
        (
            *_OF_OURS,
            *_OF_PEERS,
            ("kNN on Harmony", "harmony", ("accuracy",)),
            ("scANVI", "scanvi", ("accuracy",)),
        ),
    ),
    _Table(
        "panels",
        "**Panels and shallow queries**, accuracy as delivered · before rejection.",
        (*_OF_OURS, *_OF_PEERS),
        by_task=True,
    ),
    _Table(
        "impute",
        "**Proteins imputed**, mean Pearson r over the proteins, log1p.",
        (("impute", OURS + "impute", ("r",)), ("kNN on PCA", "knn", ("r",))),
    ),
    _Table(
        "mixing",
        "**Sources within cell types**, iLISI · kBET.",
        (("run", OURS + "run", _MIXED), ("Harmony", "harmony", _MIXED), ("PCA", "pca", _MIXED)),
    ),
)


def report(rows: Iterable[Mapping[str, Any]], held_out: Collection[str] = ()) -> str:
    """All tables, as Markdown: means over seeds, and the means of these over sets.

    A command that ended with an error told nothing: it has the worst scores, and is named below.

    Args:
        rows: As `delivered.run` returns them.
        held_out: Names of the sets that chose no default.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    if not len(table):
        return "Nothing is computed.\n"
    found = [_made(each, table[table["part"] == each.part], held_out) for each in _TABLES]
    errors = table["error"].dropna() if "error" in table else []
    said = ["Ended with an error:", "", *(f"- {text}" for text in dict.fromkeys(errors)), ""]
    return "\n".join([*filter(None, found), *(said if len(errors) else [])])


def _made(table: _Table, rows: pd.DataFrame, held_out: Collection[str]) -> str:
    import pandas as pd

    rows = rows[rows["task"].map(table.holds).astype(bool)]
    columns = [column for column in table.columns if (rows["variant"] == column[1]).any()]
    if not columns:
        return ""
    index = pd.MultiIndex.from_frame(rows[["data", "task"]].drop_duplicates())
    values = pd.DataFrame(
        {
            (head, score): _scores(rows[rows["variant"] == variant], score)
            for head, variant, scores in columns
            for score in scores
        },
    ).reindex(index)
    lines = [
        [data, task, "yes" if data in held_out else "no", *_cells(columns, row)]
        for (data, task), row in values.iterrows()
    ]
    # A set without some score would make the means of columns those of different sets.
    whole = values.dropna()
    for task, own in whole.groupby(level="task", sort=False) if table.by_task else [("", whole)]:
        by_set = own.groupby(level="data").mean()
        kept = by_set.index.isin(list(held_out))
        for what, chosen in (("all", kept | True), ("held out", kept), ("others", ~kept)):
            if chosen.any() and (what == "all" or not chosen.all()):
                name = f"mean, {what} ({chosen.sum()})"
                lines.append([name, task, "", *_cells(columns, by_set[chosen].mean())])
    return markdown(table.about, ["data set", "task", "held out", *(c[0] for c in columns)], lines)


def _scores(rows: pd.DataFrame, score: str) -> pd.Series:
    """Means over seeds of a score, by data set and task."""
    values = rows[score].astype(float) if score in rows else rows["seed"] * np.nan
    if "error" in rows:
        refused = rows["error"].notna() & rows["variant"].str.startswith(OURS)
        values = values.mask(refused, float(score == "rejected_known"))
    return values.groupby([rows["data"], rows["task"]]).mean()


def _cells(columns: Sequence[Column], row: pd.Series) -> list[str]:
    return [
        " · ".join(
            "-" if np.isnan(row[head, score]) else f"{row[head, score]:.2f}" for score in scores
        )
        for head, _, scores in columns
    ]
