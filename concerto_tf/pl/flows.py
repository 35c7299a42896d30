"""A Sankey figure: which reference labels the groups of a query lie nearest to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.pl.figures import MISSING_COLOR, PALETTE, new_figure, save_figure, short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from concerto_tf.pl.figures import Drawn

OTHER = "other"
#: Flows smaller than this share of their group run together into "other".
_SMALLEST_SHARE = 0.05
_GAP = 0.012
_BAR = 0.035


def sankey_figure(table: pd.DataFrame, path: str | Path, *, left: str, right: str) -> None:
    """Writes the figure that `draw_sankey` draws.

    Args:
        table, left, right: As for `draw_sankey`.
        path: File to write; its folder must exist.
    """
    figure = draw_sankey(table, left, right).get_figure(root=True)
    assert figure is not None  # axes are of one
    save_figure(figure, path)


def draw_sankey(
    table: pd.DataFrame, left: str, right: str, new: Callable[..., Drawn] = new_figure
) -> Axes:
    """Draws groups on the left, labels on the right, and flows as wide as their share of cells.

    Every group is as high as any other, so that small ones can be read; its number of cells
    stands beside its name. Flows that are small run together into "other".

    Args:
        table: Columns ``group``, ``label``, ``cells`` and ``share``, as `relatives` gives it.
        left: Title of the groups.
        right: Title of the labels.
        new: Makes the figure, as `new_figure` does.

    Raises:
        InputError: There is nothing to draw.
    """
    flows = merge_small(table)
    if not len(flows):
        raise InputError("no group has cells; there is nothing to draw")
    sizes = table.groupby("group")["cells"].sum()
    weight = flows.pivot_table(
        index="group", columns="label", values="share", fill_value=0.0, aggfunc="sum"
    )
    groups, labels = _orders(weight)
    weight = weight.loc[groups, labels].to_numpy()
    colors = _colors(labels)

    rows = max(len(groups), len(labels))
    _, [axes] = new(8.0, float(np.clip(0.34 * rows + 0.8, 2.6, 24.0)), layout=None)
    starts_left = _stack(weight.sum(axis=1))
    starts_right = _stack(weight.sum(axis=0))
    at_left, at_right = starts_left.copy(), starts_right.copy()
    scale_left, scale_right = _scale(weight.sum(axis=1)), _scale(weight.sum(axis=0))
    for i in range(len(groups)):
        for j in range(len(labels)):
            if weight[i, j] > 0:
                high, low = weight[i, j] * scale_left, weight[i, j] * scale_right
                _flow(axes, at_left[i], high, at_right[j], low, colors[labels[j]])
                at_left[i] -= high
                at_right[j] -= low
    _bars(axes, 0.0, starts_left, weight.sum(axis=1) * scale_left, ["0.35"] * len(groups))
    _bars(
        axes,
        1.0 - _BAR,
        starts_right,
        weight.sum(axis=0) * scale_right,
        [colors[label] for label in labels],
    )
    size = 9 if rows <= 30 else 7 if rows <= 60 else 5
    for name, start, share in zip(groups, starts_left, weight.sum(axis=1), strict=True):
        axes.text(
            -0.012,
            start - share * scale_left / 2,
            f"{short_name(name)}  ({sizes[name]:,})",
            ha="right",
            va="center",
            fontsize=size,
        )
    for name, start, share in zip(labels, starts_right, weight.sum(axis=0), strict=True):
        axes.text(
            1.012,
            start - share * scale_right / 2,
            short_name(name),
            ha="left",
            va="center",
            fontsize=size,
        )
    axes.text(0.0, 1.02, left, ha="left", va="bottom", fontsize=10, color="0.35")
    axes.text(1.0, 1.02, right, ha="right", va="bottom", fontsize=10, color="0.35")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.axis("off")
    return axes


def merge_small(table: pd.DataFrame) -> pd.DataFrame:
    """Flows of at least 5% of their group; what is smaller becomes one flow to "other".

    Args:
        table: Columns ``group``, ``label`` and ``share``.

    Returns:
        The same columns; the shares of every group add up to what they were.

    Example:

    >>> import pandas as pd
    >>> from concerto_tf.pl.flows import merge_small
    >>> shares = {"T": 0.9, "B": 0.04, "NK": 0.04, "DC": 0.02}
    >>> flows = pd.DataFrame({"group": "a", "label": list(shares), "share": list(shares.values())})
    >>> merged = merge_small(flows)
    >>> dict(zip(merged["label"], merged["share"].round(2)))
    {'T': 0.9, 'other': 0.1}
    """
    import pandas as pd

    flows = table[["group", "label", "share"]]
    small = flows["share"] < _SMALLEST_SHARE
    # One small flow alone keeps its name: calling it "other" would hide it and save nothing.
    alone = small & (small.groupby(flows["group"]).transform("sum") == 1)
    small &= ~alone
    rest = flows[small].groupby("group", as_index=False)["share"].sum().assign(label=OTHER)
    return pd.concat([flows[~small], rest[["group", "label", "share"]]], ignore_index=True)


def _orders(weight: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Groups and labels from top to bottom so that few flows cross."""
    labels = weight.sum(axis=0).sort_values(ascending=False, kind="stable").index.tolist()
    groups = weight.index.tolist()
    # Each side in turn goes where its flows lead to, on the average.
    for _ in range(8):
        place = {label: i for i, label in enumerate(labels)}
        groups = _by_barycenter(groups, weight, place)
        place = {group: i for i, group in enumerate(groups)}
        labels = _by_barycenter(labels, weight.T, place)
    if OTHER in labels:
        labels.remove(OTHER)
        labels.append(OTHER)
    return groups, labels


def _by_barycenter(
    names: Sequence[str], weight: pd.DataFrame, place: Mapping[str, int]
) -> list[str]:
    position = np.array([place[column] for column in weight.columns], float)
    center = weight.to_numpy() @ position / np.maximum(weight.to_numpy().sum(axis=1), 1e-12)
    of = dict(zip(weight.index, center, strict=True))
    return sorted(names, key=lambda name: of[name])


def _colors(labels: Sequence[str]) -> dict[str, str]:
    named = [label for label in sorted(labels) if label != OTHER]
    colors = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(named)}
    return {**colors, OTHER: MISSING_COLOR}


def _scale(sizes: np.ndarray) -> float:
    """Height of one unit of share, when the gaps between the bars are taken off."""
    return (1.0 - _gap(len(sizes)) * (len(sizes) - 1)) / sizes.sum()


def _stack(sizes: np.ndarray) -> np.ndarray:
    """Upper ends of bars that fill the height from 1 down to 0."""
    heights = sizes * _scale(sizes)
    return 1.0 - np.concatenate([[0.0], np.cumsum(heights + _gap(len(sizes)))[:-1]])


def _gap(n: int) -> float:
    return min(_GAP, 0.25 / max(n, 1))


def _flow(axes: Axes, left: float, high: float, right: float, low: float, color: str) -> None:
    """A band between the bars, of one height at the left and another at the right."""
    t = np.linspace(0, 1, 50)
    ease = t * t * (3 - 2 * t)
    upper = left + (right - left) * ease
    lower = (left - high) + (right - low - left + high) * ease
    x = _BAR + t * (1 - 2 * _BAR)
    axes.fill_between(x, lower, upper, color=color, alpha=0.45, lw=0)


def _bars(
    axes: Axes, x: float, starts: np.ndarray, heights: np.ndarray, colors: Sequence[str]
) -> None:
    axes.bar(
        np.full(len(starts), x), heights, _BAR, starts - heights, align="edge", color=list(colors)
    )
