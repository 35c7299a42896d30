"""The strongest genes of groups of cells, as a figure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from concerto_tf.errors import InputError
from concerto_tf.pl.figures import new_figure, save_figure, short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from concerto_tf.pl.figures import Drawn

_log = logging.getLogger("concerto_tf")
#: Columns (genes of all modalities) and rows (groups) of a heatmap at most: what can be read.
_MOST_COLUMNS, _MOST_ROWS = 150, 80
#: Genes of each group, at most.
_GENES = 5


def heatmap(table: pd.DataFrame, path: str | Path) -> None:
    """Draws the strongest genes of each group; see `draw_heatmap`.

    Args:
        table: What `explain` gives with ``groupby``.
        path: Image file to write.
    """
    save_figure(draw_heatmap(table), path)


def draw_heatmap(table: pd.DataFrame, new: Callable[..., Drawn] = new_figure) -> Figure:
    """The five strongest genes of each group, one panel for each modality.

    They are fewer where there would be more than 150 columns. Of more than 80 groups the first are
    drawn.

    Args:
        table: What `explain` gives with ``groupby``.
        new: Makes the figure, as `new_figure` does.

    Raises:
        InputError: The table has no groups.
    """
    if "group" not in table:
        raise InputError("this table has no groups; call explain with groupby")
    n_modalities = table["modality"].nunique()
    groups = list(table["group"].unique())
    shown = groups[: max(1, min(_MOST_ROWS, _MOST_COLUMNS // n_modalities))]
    most = max(1, min(_GENES, _MOST_COLUMNS // (len(shown) * n_modalities)))
    if len(shown) < len(groups) or most < _GENES:
        _log.info(
            "the figure shows %d of %d groups, by %d genes each, to be readable; the table has all",
            len(shown),
            len(groups),
            most,
        )
        table = table[table["group"].isin(shown)]
    panels = []
    for modality, part in table.groupby("modality", sort=False, observed=True):
        strongest = part[part["rank"] <= most].sort_values(["group", "rank"])
        chosen = list(dict.fromkeys(strongest["gene"]))
        drawn = part[part["gene"].isin(chosen)]
        grid = drawn.pivot_table("weight", "group", "gene", "max", observed=True)[chosen]
        # A table cut to its top genes lacks what is weak elsewhere.
        panels.append((modality, grid.fillna(0.0)))
    sizes = [grid.shape[1] for _, grid in panels]
    rows = max(len(grid) for _, grid in panels)
    width, height = 2.2 + 0.2 * sum(sizes), 1.7 + 0.24 * rows
    figure, axes = new(width, height, 1, len(panels), width_ratios=sizes)
    for ax, (modality, grid) in zip(axes, panels, strict=True):
        low, high = grid.min(), grid.max()
        scaled = ((grid - low) / (high - low).where(high > low, 1.0)).to_numpy()
        image = ax.imshow(scaled, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(grid.shape[1]), grid.columns, rotation=90, fontsize=7)
        ax.set_yticks(range(len(grid)), [short_name(str(g), 24) for g in grid.index], fontsize=8)
        ax.set_title(str(modality), fontsize=10, loc="left")
        ax.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes.tolist(), pad=0.01, fraction=0.05)
    bar.set_label("weight, scaled\nby gene", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
