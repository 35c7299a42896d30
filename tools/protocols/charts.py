"""The figures of comparisons: scores by choice, or by data set, or along a ladder of levels."""

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
                own = table.loc[(table[by] == choice) & (table[x] == place), name]
                where = at + step * (i - (len(choices) - 1) / 2)
                _spread(ax, where, own, color, str(choice) if at == 0 else None)
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


def dots(table: pd.DataFrame, by: str, panels: Mapping[str, Sequence[str]]) -> Figure:
    """One panel for each group of scores: a dot for each measurement and a bar at the mean.

    Args:
        table: One row per measurement.
        by: Column that is told apart by color.
        panels: Title to columns of scores, which stand side by side; those that the table lacks
            are left out.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    shown = {title: [name for name in names if name in table] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    figure = Figure((1.5 + 0.95 * sum(map(len, shown.values())), 3.2), layout="constrained")
    axes = figure.subplots(
        1, len(shown), sharey=True, squeeze=False, width_ratios=[len(n) for n in shown.values()]
    )[0]
    choices = list(dict.fromkeys(table[by]))
    step = min(0.22, 0.8 / len(choices))
    for ax, (title, names) in zip(axes, shown.items(), strict=True):
        for i, choice in enumerate(choices):
            color = PALETTE[i % len(PALETTE)]
            for at, name in enumerate(names):
                where = at + step * (i - (len(choices) - 1) / 2)
                own = table.loc[table[by] == choice, name]
                _spread(ax, where, own, color, str(choice) if at == 0 else None)
        ax.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=7)
        _dress(ax, title)
    axes[0].set_ylabel("score (higher is better)", fontsize=8)
    _legend(figure, axes[0])
    return figure


def curves(
    table: pd.DataFrame,
    x: str,
    scores: Mapping[str, str],
    panel: str | None = None,
    label: str = "",
) -> Figure:
    """Scores of methods along levels: a line through the means, a dot for each measurement.

    Args:
        table: One row per measurement.
        x: Column with the levels, in the order they come; drawn at equal distances.
        scores: Column of a score to its title.
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
    choices = list(dict.fromkeys(table["method"]))
    figure, axes = _panels(len(shown), 3.6, len(parts) if len(parts) <= _COLUMNS else None)
    for ax, (name, title, part) in zip(axes, shown, strict=False):
        levels = list(dict.fromkeys(part[x]))
        for i, choice in enumerate(choices):
            own = part[part["method"] == choice]
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


def _spread(ax: Axes, where: float, values: pd.Series, color: str, label: str | None) -> None:
    """A dot for each of some measurements, and a bar at their mean."""
    ax.plot([where] * len(values), values, "o", color=color, ms=3.5, alpha=0.6, mew=0)
    ax.plot(where, values.mean(), "_", color=color, ms=9, mew=2.2, label=label)


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
