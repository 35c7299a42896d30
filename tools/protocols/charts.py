"""The two figures of comparisons: scores by choice, and scores along a ladder of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from concerto_tf.pl.figures import PALETTE, short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3


def strips(
    table: pd.DataFrame,
    x: str,
    scores: Mapping[str, str],
    by: str = "method",
    beside: Sequence[tuple[str, str, str, float]] = (),
    columns: int | None = None,
) -> Figure:
    """One panel for each score: a dot for each measurement and a bar at the mean.

    Args:
        table: One row per measurement.
        x: Column whose values stand side by side, data sets for example.
        scores: Column of a score to the title of its panel; those that the table lacks are left
            out.
        by: Column that is told apart by color.
        beside: Further values, drawn as diamonds: value of `x`, value of `by`, score, number.
        columns: Panels side by side; by default at most three.

    Returns:
        The figure.
    """
    scores = {name: title for name, title in scores.items() if name in table}
    places, choices = list(dict.fromkeys(table[x])), list(dict.fromkeys(table[by]))
    width = 1.2 + len(places) * (0.35 + 0.13 * len(choices))
    figure, axes = _panels(len(scores), width, columns)
    step = 0.8 / len(choices)
    for ax, (name, title) in zip(axes, scores.items(), strict=False):
        for i, choice in enumerate(choices):
            color = PALETTE[i % len(PALETTE)]
            for at, place in enumerate(places):
                own = table.loc[(table[by] == choice) & (table[x] == place), name].dropna()
                where = at + step * (i - (len(choices) - 1) / 2)
                ax.plot([where] * len(own), own, "o", color=color, ms=3.5, alpha=0.6, mew=0)
                ax.plot(
                    where,
                    own.mean() if len(own) else float("nan"),
                    "_",
                    color=color,
                    ms=9,
                    mew=2.2,
                    label=str(choice) if at == 0 else None,
                )
                for value in (v for *what, v in beside if what == [place, choice, name]):
                    ax.plot(where, value, "D", color=color, ms=4.5, mfc="none")
        ax.set_xticks(
            range(len(places)),
            [short_name(str(place), 24) for place in places],
            fontsize=8,
            rotation=25 if len(places) > 2 else 0,
            ha="right" if len(places) > 2 else "center",
        )
        _dress(ax, title)
    _legend(figure, axes[0])
    return figure


def curves(
    table: pd.DataFrame,
    x: str,
    scores: Mapping[str, str],
    by: str = "method",
    panel: str | None = None,
    label: str = "",
) -> Figure:
    """Scores along levels, a line through the means with a dot for each measurement.

    Args:
        table: One row per measurement.
        x: Column with the levels, in the order they come; drawn at equal distances.
        scores: Column of a score to its title.
        by: Column that is told apart by color.
        panel: Column with a panel, for each score, for each of its values.
        label: What the levels are.

    Returns:
        The figure.
    """
    parts: list[tuple[Any, pd.DataFrame]] = [("", table)]
    if panel is not None:
        parts = [(value, table[table[panel] == value]) for value in dict.fromkeys(table[panel])]
    shown = [
        (name, f"{title}, {value}" if str(value) else title, part)
        for name, title in scores.items()
        for value, part in parts
        if name in part and part[name].notna().any()
    ]
    choices = list(dict.fromkeys(table[by]))
    figure, axes = _panels(len(shown), 3.6, len(parts) if len(parts) <= _COLUMNS else None)
    for ax, (name, title, part) in zip(axes, shown, strict=False):
        levels = list(dict.fromkeys(part[x]))
        for i, choice in enumerate(choices):
            own = part[part[by] == choice]
            color = PALETTE[i % len(PALETTE)]
            at = [levels.index(level) for level in own[x]]
            ax.plot(at, own[name], "o", color=color, ms=3.5, alpha=0.5, mew=0)
            means = own.groupby(x, sort=False)[name].mean()
            ax.plot(
                [levels.index(level) for level in means.index],
                means,
                color=color,
                lw=1.6,
                label=str(choice),
            )
        ax.set_xticks(range(len(levels)), [str(level) for level in levels], fontsize=8)
        ax.set_xlabel(label, fontsize=8)
        _dress(ax, title)
    _legend(figure, axes[0])
    return figure


def _panels(number: int, width: float, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with panels, those that are too many hidden."""
    from matplotlib.figure import Figure

    columns = min(number, columns or _COLUMNS)
    rows = -(-number // columns)
    figure = Figure((max(4.0, width * columns), 0.5 + 2.7 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[number:]:
        ax.set_axis_off()
    return figure, axes


def _dress(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9, loc="left")
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper right",
        ncols=min(4, max(1, len(names))),
        frameon=False,
        fontsize=8,
    )
