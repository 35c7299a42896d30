"""Figures of an order of cells: pseudotime on the map, and PAGA of the groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.pl.figures import frame_map, new_figure, places_on_map, save_figure
from concerto_tf.pl.naming import short_name
from concerto_tf.pl.palette import MISSING_COLOR, PALETTE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Weight of a connection below which PAGA draws no line, and width of the strongest.
_LEAST, _WIDEST = 0.05, 5.0


def trajectory_figure(adata: AnnData, path: str | Path, column: str) -> None:
    """Draws pseudotime on the map of cells, and PAGA of their groups beside it.

    Args:
        adata: Cells with `obsm["X_umap"]` and what `pseudotime` found.
        path: File to write; its folder must exist.
        column: Column of obs with the pseudotime.
    """
    figure, [left, right] = new_figure(9.5, 4.6, 1, 2)
    draw_pseudotime(left, adata, column)
    draw_paga(right, adata)
    save_figure(figure, path)


def draw_pseudotime(axes: Axes, adata: AnnData, column: str) -> None:
    """Draws the map of cells, colored by pseudotime; a star is the root, gray has none."""
    if column not in adata.obs:
        raise InputError(f"no column {column!r} in obs; `pseudotime` makes it")
    xy, time = places_on_map(adata), adata.obs[column].to_numpy(float)
    has, size = np.isfinite(time), float(np.clip(24_000 / max(len(xy), 1), 0.6, 40.0))
    axes.scatter(xy[~has, 0], xy[~has, 1], s=size, c=MISSING_COLOR, linewidths=0, rasterized=True)
    order = np.random.default_rng(0).permutation(np.flatnonzero(has))
    dots = axes.scatter(
        xy[order, 0],
        xy[order, 1],
        s=size,
        c=time[order],
        cmap="viridis",
        linewidths=0,
        rasterized=True,
    )
    if "iroot" in adata.uns:
        x, y = xy[int(adata.uns["iroot"])]
        axes.plot(x, y, "*", ms=14, color="#E10F4B", mec="white", label="root")
        axes.legend(frameon=False, fontsize=8)
    axes.figure.colorbar(dots, ax=axes, pad=0.01, fraction=0.05).set_label("pseudotime", fontsize=8)
    axes.set_title("pseudotime", fontsize=11, loc="left")
    frame_map(axes)


def draw_paga(axes: Axes, adata: AnnData) -> None:
    """Draws how the groups are connected: each amid its cells, lines as wide as connections."""
    if "paga" not in adata.uns:
        raise InputError("no PAGA in uns; `pseudotime` makes it")
    held = adata.uns["paga"]
    groups = adata.obs[str(held["groups"])]
    names, codes = list(groups.cat.categories), groups.cat.codes.to_numpy()
    xy = places_on_map(adata)
    weights = np.asarray(held["connectivities"].todense())
    weights = np.maximum(weights, weights.T)
    middles = np.array([np.median(xy[codes == i], axis=0) for i in range(len(names))])
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    axes.scatter(xy[:, 0], xy[:, 1], s=1, c="0.93", linewidths=0, rasterized=True)
    for i, j in zip(*np.nonzero(np.triu(weights > _LEAST, 1)), strict=True):
        axes.plot(
            middles[[i, j], 0],
            middles[[i, j], 1],
            color="0.35",
            lw=_WIDEST * weights[i, j],
            zorder=2,
        )
    area = 60 + 340 * np.sqrt(sizes / max(sizes.max(), 1))
    shades = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    axes.scatter(middles[:, 0], middles[:, 1], s=area, c=shades, edgecolors="white", zorder=3)
    for name, (x, y), of in zip(names, middles, area, strict=True):
        axes.annotate(
            short_name(str(name), 24),
            (x, y),
            (0, np.sqrt(of) / 2 + 1),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            zorder=4,
        )
    axes.set_title(f"PAGA of {held['groups']}", fontsize=11, loc="left")
    frame_map(axes)
