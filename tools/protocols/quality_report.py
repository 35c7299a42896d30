"""What is made of the scores of `quality`: tables, the choice leaving one set out, a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protocols.charts import strips
from protocols.embeddings import BASELINES, Variant
from protocols.quality import Key, Trial
from protocols.quality_cells import DataSet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ARIS = ("ari_kmeans", "ari_leiden")
SHOWN = {"ari_kmeans": "K-means ARI", "ari_leiden": "Leiden ARI", "knn_macro_f1": "kNN macro-F1"}
SCIB = {
    "scib_total": "partial total (without isolated labels and PCR)",
    "scib_bio": "bio-conservation (without isolated labels)",
    "scib_batch": "batch correction (without PCR)",
}
#: F1 of its Leiden cluster from which on a rare type counts as recovered.
RECOVERED = 0.9
#: Cells above which the spread between seeds is looked at.
MANY_CELLS = 1000


@dataclass(frozen=True)
class Findings:
    """Scores of configurations on data sets.

    Args:
        table: One row per trial: ``data``, ``configuration``, ``seed``, ``cells``, ``seconds`` and
            scores.
        sets: The data sets, in the order they are shown in.
        methods: Method by name of the configuration, in the order they are shown in.
    """

    table: pd.DataFrame
    sets: Sequence[DataSet]
    methods: Mapping[str, str]

    @classmethod
    def of(
        cls,
        sets: Sequence[DataSet],
        configurations: Iterable[Variant],
        trials: Iterable[Trial],
        rows: Mapping[Key, Mapping[str, Any]],
    ) -> Findings:
        """The findings of those trials of a call that have been computed."""
        import pandas as pd

        found = [rows[trial.key()] for trial in trials if trial.key() in rows]
        columns = ["data", "configuration", "seed", "cells", "seconds", *SHOWN]
        columns += dict.fromkeys(k for row in found for k in row if k not in columns)
        return cls(
            pd.DataFrame(found, columns=columns),
            sets,
            {made.name: made.method for made in configurations},
        )

    @property
    def real(self) -> list[str]:
        """Names of the sets from files."""
        return [data.name for data in self.sets if data.path is not None]

    @property
    def simulated(self) -> list[str]:
        """Names of the simulated sets."""
        return [data.name for data in self.sets if data.path is None]

    def over_seeds(self, score: str, how: str = "mean") -> pd.DataFrame:
        """A score by data set (rows) and configuration (columns), NaN where it was not computed.

        Args:
            score: Name of the score.
            how: ``mean``, or ``std`` over the seeds (of the sample; NaN of a single seed).
        """
        found = self.table.groupby(["data", "configuration"])[score].agg(how).unstack()
        found = found.reindex(index=[d.name for d in self.sets], columns=list(self.methods))
        return found.astype(float)

    def means(self, score: str) -> pd.DataFrame:
        """Means over seeds; of Harmony, where there are no sources, those of PCA.

        That is what who uses Harmony has where there is nothing to integrate.
        """
        found = self.over_seeds(score)
        for name, method in self.methods.items():
            alone = [data.name for data in self.sets if not data.has_sources]
            if method == "harmony" and "pca" in found:
                found.loc[alone, name] = found.loc[alone, "pca"]
        return found


def leave_one_out(values: pd.DataFrame, left_out: Sequence[str]) -> dict[str, str]:
    """What would be chosen for each data set by all the others.

    Args:
        values: What is to be high, by data set (rows) and candidate (columns). Candidates without
            a value on some set cannot be chosen.
        left_out: The data sets to choose for.

    Returns:
        By data set the candidate with the best mean over all other data sets, the first of equals;
        empty without candidates or other data sets.

    Example:

    >>> import pandas as pd
    >>> values = pd.DataFrame({"a": [0.9, 0.1, 0.3], "b": [0.2, 0.4, 0.4]}, index=["x", "y", "z"])
    >>> leave_one_out(values, ["x", "y"])
    {'x': 'b', 'y': 'a'}
    """
    whole = values.dropna(axis="columns")
    if whole.shape[1] == 0 or len(whole) < 2:
        return {}
    return {name: str(whole.drop(index=name).mean().idxmax()) for name in left_out}


def report(findings: Findings) -> str:
    """All tables, as Markdown."""
    parts = [_by_set(findings), _summary(findings), _scib(findings), _left_out(findings)]
    return "\n".join(part for part in parts if part)


def figure(findings: Findings) -> Figure | None:
    """ARIs of each configuration less the mean of PCA on the same data set, a dot for each seed.

    Returns:
        The figure; ``None`` where no set has both PCA and another configuration.
    """
    table = findings.table.copy()
    for score in ARIS:
        of_pca = findings.over_seeds(score).get("pca")
        table[score] -= np.nan if of_pca is None else table["data"].map(of_pca).astype(float)
    table = table[(table["configuration"] != "pca") & table[ARIS[0]].notna()]
    if not len(table):
        return None
    order = {data.name: i for i, data in enumerate(findings.sets)}
    table = table.sort_values("data", key=lambda names: names.map(order), kind="stable")
    drawn = strips(
        table,
        "data",
        {score: f"{SHOWN[score]}, less that of PCA" for score in ARIS},
        by="configuration",
        columns=1,
    )
    for ax in drawn.axes:
        ax.axhline(0, color="0.4", lw=1)
    return drawn


def _by_set(findings: Findings) -> str:
    means = {score: findings.means(score) for score in SHOWN}
    spreads = {score: findings.over_seeds(score, "std") for score in ARIS}
    rows = [
        [
            name,
            *(
                " · ".join(
                    _number(means[score].loc[name, made])
                    + (_spread(spreads[score].loc[name, made]) if score in spreads else "")
                    for score in SHOWN
                )
                for made in findings.methods
            ),
        ]
        for name in (data.name for data in findings.sets)
    ]
    for what, names in (("mean, real", findings.real), ("mean, simulated", findings.simulated)):
        if names:
            rows.append(
                [
                    what,
                    *(
                        " · ".join(_number(_mean(means[score], names)[made]) for score in SHOWN)
                        for made in findings.methods
                    ),
                ]
            )
    return markdown(
        f"{' · '.join(SHOWN.values())}; means over seeds, ± their standard deviation. Harmony's "
        "are PCA's where there are no sources.",
        ["data set", *findings.methods],
        rows,
    )


def _summary(findings: Findings) -> str:
    peers = [name for name in findings.methods if name in BASELINES]
    means = {score: findings.means(score) for score in SHOWN}
    real = {score: _mean(means[score], findings.real) for score in SHOWN}
    best = {score: real[score][peers].dropna() for score in SHOWN}
    heads = ["configuration", "real sets", "simulated sets", "less best peer", "worst less PCA"]
    heads += ["largest spread", "rare type recovered", "seconds"]
    rows = []
    for name in findings.methods:
        own = findings.table[findings.table["configuration"] == name]
        simulated = [_number(_mean(means[s], findings.simulated)[name]) for s in SHOWN]
        rows.append(
            [
                name,
                " · ".join(_number(real[score][name]) for score in SHOWN),
                " · ".join(simulated),
                " · ".join(
                    _signed(real[s][name] - best[s].max()) if len(best[s]) else "-" for s in SHOWN
                ),
                " · ".join(_worst(means[s], name) for s in ARIS),
                " · ".join(_largest_spread(findings, s, name) for s in ARIS),
                _recovery(own),
                f"{own['seconds'].mean():.0f}" if len(own) else "-",
            ]
        )
    said = "; ".join(
        f"{SHOWN[s]} {best[s].idxmax()} {_number(best[s].max())}" for s in SHOWN if len(best[s])
    )
    return markdown(
        f"Best single peer on the real sets: {said or 'none on all of them'}. "
        f"{' · '.join(SHOWN.values())}; "
        f"worst and spread (sets of more than {MANY_CELLS:,} cells) of the ARIs alone; recovered "
        f"is a Leiden cluster with an F1 of {RECOVERED} or more.",
        heads,
        rows,
    )


def _scib(findings: Findings) -> str:
    names = [data.name for data in findings.sets if data.has_sources]
    if not names or "scib_total" not in findings.table:
        return ""
    means = {score: findings.over_seeds(score).loc[names] for score in SCIB}
    rows = [
        [
            name,
            *(
                " · ".join(_number(means[s].loc[name, made]) for s in SCIB)
                for made in findings.methods
            ),
        ]
        for name in names
    ]
    rows.append(
        [
            "mean",
            *(
                " · ".join(_number(_mean(means[s], names)[made]) for s in SCIB)
                for made in findings.methods
            ),
        ]
    )
    heads = ["data set", *findings.methods]
    return markdown(f"scIB: {' · '.join(SCIB.values())}.", heads, rows)


def _left_out(findings: Findings) -> str:
    means = {score: findings.means(score) for score in SHOWN}
    candidates = [name for name, method in findings.methods.items() if method not in BASELINES]
    values = sum(means[score][candidates] for score in ARIS) / len(ARIS)
    chosen = leave_one_out(values, findings.real)
    if not chosen:
        return ""
    got = {s: [means[s].loc[name, made] for name, made in chosen.items()] for s in SHOWN}
    rows = [
        [
            name,
            made,
            " · ".join(_number(got[score][i]) for score in SHOWN),
            " · ".join(
                _signed(got[s][i] - means[s].loc[name, "pca"]) if "pca" in means[s] else "-"
                for s in SHOWN
            ),
        ]
        for i, (name, made) in enumerate(chosen.items())
    ]
    less = [
        _signed(np.mean(got[s]) - _mean(means[s], findings.real)["pca"])
        if "pca" in means[s]
        else "-"
        for s in SHOWN
    ]
    mean = " · ".join(_number(np.mean(got[score])) for score in SHOWN)
    rows.append(["mean", "", mean, " · ".join(less)])
    heads = ["left out", "chosen by all others", " · ".join(SHOWN.values()), "less PCA"]
    return markdown(
        "Leaving one out: for each real set the configuration with the best mean of both ARIs "
        "over all other sets, scored on the set that was left out.",
        heads,
        rows,
    )


def _mean(means: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Means over data sets; NaN for a configuration that was not computed on all."""
    return means.loc[list(names)].mean(skipna=False)


def _worst(means: pd.DataFrame, name: str) -> str:
    """The smallest difference to PCA on any data set, and on which."""
    against = "pca" in means and name != "pca"
    less = (means[name] - means["pca"]).dropna() if against else []
    return f"{_signed(less.min())} {less.idxmin()}" if len(less) else "-"


def _largest_spread(findings: Findings, score: str, name: str) -> str:
    cells = findings.table.groupby("data")["cells"].max()
    # What is drawn anew for every seed varies by itself.
    many = [d.name for d in findings.sets if d.rare is None and cells.get(d.name, 0) > MANY_CELLS]
    spread = findings.over_seeds(score, "std").loc[many, name].dropna()
    return f"{_number(spread.max())} {spread.idxmax()}" if len(spread) else "-"


def _recovery(own: pd.DataFrame) -> str:
    found = own["rare_f1"].dropna() if "rare_f1" in own else []
    return f"{int((found >= RECOVERED).sum())} of {len(found)}" if len(found) else "-"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _signed(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.2f}"


def _spread(value: float) -> str:
    return "" if np.isnan(value) else f" ±{value:.2f}"


def markdown(about: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown below what there is to say about it."""
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([about, "", lines[0], f"|{'---|' * len(heads)}", *lines[1:], ""])
