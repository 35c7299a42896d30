"""Figures of a comparison: shares of types, and genes as violins, dots and a heatmap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from concerto_tf.pl.figures import new_figure, save_figure
from concerto_tf.pl.naming import in_order, short_name
from concerto_tf.pl.palette import PALETTE
from concerto_tf.tasks.comparison.genes import fold_changes
from concerto_tf.tasks.comparison.groups import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What can be read: genes of the dots and the heatmap, panels of the violins, types along an axis.
_GENES, _PANELS, _TYPES = 30, 6, 24
# Area of a dot where all cells express a gene, and shares that the legend shows.
_DOT, _SHARES = 90, (0.25, 0.5, 0.75, 1.0)


def composition_figure(groups: Groups, table: pd.DataFrame, path: Path) -> None:
    """Share of every type in every condition; a star where it differs from the control."""
    counts = np.zeros((len(groups.condition_names), len(groups.type_names)))
    np.add.at(counts, (groups.conditions, groups.types), 1)
    shares = 100 * counts / counts.sum(1, keepdims=True)
    shown = _named(groups, np.argsort(-shares.max(0), kind="stable")[:_TYPES])
    figure, [axes] = new_figure(1.5 + 0.5 * len(shown), 3.4)
    width = 0.8 / len(shares)
    starred = table[table["significant"]]
    stars = set(zip(starred["condition"], starred["cell_type"], strict=True))
    for i, (name, share) in enumerate(zip(groups.condition_names, shares, strict=True)):
        x = np.arange(len(shown)) + (i - (len(shares) - 1) / 2) * width
        axes.bar(x, share[shown], width, color=PALETTE[i % len(PALETTE)], label=short_name(name))
        for at, cell_type in zip(x, shown, strict=True):
            if (name, groups.type_names[cell_type]) in stars:
                axes.text(at, share[cell_type], "*", ha="center", va="bottom", fontsize=10)
    _names(axes, [groups.type_names[cell_type] for cell_type in shown])
    axes.set_ylabel("% of cells", fontsize=9)
    title = "Composition; * differs from the control"
    if groups.samples is None:
        title += "\nby tests between cells, which are no replicates"
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _bare(axes)
    save_figure(figure, path)


def violin_figure(groups: Groups, values: pd.DataFrame, title: str, path: Path) -> None:
    """Distributions by type and condition, a panel for each column of `values` [n, ...]."""
    columns = list(values)[:_PANELS]
    largest = _largest(groups)
    n = len(groups.condition_names)
    width = min(16.0, 1.5 + 0.35 * len(largest) * n)
    figure, panels = new_figure(width, 0.6 + 1.9 * len(columns), len(columns), 1)
    for axes, column in zip(panels, columns, strict=True):
        whole = values[column].to_numpy(float)
        for i in range(n):
            parts, places = [], []
            for place, cell_type in enumerate(largest):
                own = whole[(groups.types == cell_type) & (groups.conditions == i)]
                if len(own) > 1 and np.ptp(own) > 0:  # a density needs values that differ
                    parts.append(own)
                    places.append(place + (i - (n - 1) / 2) * 0.8 / n)
            color = PALETTE[i % len(PALETTE)]
            if parts:
                drawn = axes.violinplot(
                    parts, places, widths=0.8 / n, showextrema=False, showmeans=True
                )
                for body in drawn["bodies"]:
                    body.set(facecolor=color, alpha=0.8)
                drawn["cmeans"].set_color("black")
            axes.plot([], [], color=color, lw=5, label=short_name(groups.condition_names[i]))
        axes.set_title(short_name(column), fontsize=9, loc="left")
        axes.set_xticks(range(len(largest)), [])
        _bare(axes)
    _names(panels[-1], [groups.type_names[cell_type] for cell_type in largest])
    panels[0].legend(frameon=False, fontsize=8, loc="upper right")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def dot_figure(groups: Groups, genes: list[str], title: str, path: Path) -> None:
    """Mean (color) and share of expressing cells (size) of genes, by type and condition."""
    rows, means, shares = _summaries(groups, genes[:_GENES])
    figure, [axes] = new_figure(3.3 + 0.27 * means.shape[1], 1.8 + 0.22 * len(rows))
    y, x = np.divmod(np.arange(means.size), means.shape[1])
    dots = axes.scatter(x, y, s=_DOT * shares.ravel(), c=means.ravel(), cmap="viridis", lw=0)
    sizes = [axes.scatter([], [], s=_DOT * share, c="0.4", lw=0) for share in _SHARES]
    figure.legend(
        sizes,
        [f"{share:.0%}" for share in _SHARES],
        title="cells\nexpressing",
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
    _table(axes, rows, genes[:_GENES], title)
    bar = figure.colorbar(dots, ax=axes, pad=0.01, fraction=0.05)
    bar.set_label("mean", fontsize=8)
    save_figure(figure, path)


def heat_figure(table: pd.DataFrame, genes: list[str], title: str, path: Path) -> None:
    """Log fold change of genes, by type and condition; what was not tested is gray."""
    known = set(table["gene"])
    grid = fold_changes(table, [gene for gene in genes[:_GENES] if gene in known])
    figure, [axes] = new_figure(2.5 + 0.27 * grid.shape[1], 1.4 + 0.22 * len(grid))
    axes.set_facecolor("0.85")
    order = in_order(f"{kind}|{case}" for kind, case in grid.index)
    grid = grid.loc[sorted(grid.index, key=lambda row: order.index(f"{row[0]}|{row[1]}"))]
    changes = grid.to_numpy(float)
    masked = np.ma.masked_invalid(changes)
    limit = float(np.nan_to_num(np.abs(changes)).max()) or 1.0  # so that no color stands for more
    image = axes.imshow(masked, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    several = table["condition"].nunique() > 1
    rows = [
        f"{cell_type} | {case}" if several else str(cell_type) for cell_type, case in grid.index
    ]
    _table(axes, rows, list(grid), title)
    figure.colorbar(image, ax=axes, pad=0.01, fraction=0.05).set_label(
        "log2 fold change", fontsize=8
    )
    save_figure(figure, path)


def values_of(groups: Groups, genes: list[str]) -> pd.DataFrame:
    """Values [n, genes] of some genes."""
    places = [groups.genes.index(gene) for gene in genes]
    return pd.DataFrame(groups.values[:, places].toarray(), columns=genes)


def _summaries(groups: Groups, genes: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Rows "type | condition", and the genes' means and shares of expressing cells in each."""
    place = {gene: i for i, gene in reversed(list(enumerate(groups.genes)))}
    part = groups.values[:, [place[gene] for gene in genes]]
    rows, means, shares = [], [], []
    for cell_type in _largest(groups):
        for case, condition in enumerate(groups.condition_names):
            own = part[(groups.types == cell_type) & (groups.conditions == case)]
            if own.shape[0]:
                rows.append(f"{groups.type_names[cell_type]} | {condition}")
                means.append(own.mean(0).A1)
                shares.append((own > 0).mean(0).A1)
    return rows, np.array(means), np.array(shares)


def _largest(groups: Groups) -> np.ndarray:
    """The types that there is room for, in order."""
    sizes = np.bincount(groups.types, minlength=len(groups.type_names))
    return _named(groups, np.argsort(-sizes, kind="stable")[:_TYPES])


def _named(groups: Groups, types: np.ndarray) -> np.ndarray:
    """Types in the order that people count in."""
    places = {groups.type_names[code]: code for code in types}
    return np.array([places[name] for name in in_order(places)], int)


def _table(axes: Axes, rows: list[str], genes: list[str], title: str) -> None:
    axes.set_xticks(range(len(genes)), genes, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), [short_name(row) for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(length=0)


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_xticks(
        range(len(names)),
        [short_name(name, 24) for name in names],
        rotation=45,
        ha="right",
        fontsize=8,
    )


def _bare(axes: Axes) -> None:
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
