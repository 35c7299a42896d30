"""Figures of a run: the map of cells, and how training went."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from concerto_tf._files import atomic
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError, choices
from concerto_tf.pl.naming import in_order, short_name
from concerto_tf.pl.palette import MISSING_COLOR, PALETTE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    History = str | Path | Mapping[str, Sequence[float]]
    Drawn = tuple[Figure, np.ndarray]  # with the axes, row by row

#: Formats of the figures that commands leave in a folder.
FORMATS = ("png", "pdf", "svg")
# Categories up to which colors alone are told apart with ease; more are numbered on the map.
_FEW_CATEGORIES = 8
# Share of the map's width and height that a mark takes.
_MARK = 0.07
# Categories named in the legend, the largest ones.
_LEGEND_ENTRIES = 60

# What is drawn of a training history: column, title, what to read from it.
_CURVES = (
    ("loss", "Loss", "lower is better"),
    ("alignment", "Alignment", "distance of a cell's two views"),
    ("uniformity", "Uniformity", "lower is more evenly spread"),
    ("effective_rank", "Effective rank", "dimensions used; 1 is collapse"),
)


def new_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    layout: Literal["constrained"] | None = "constrained",
    width_ratios: Sequence[float] | None = None,
    of: Callable[..., Figure] | None = None,
) -> Drawn:
    """A figure of its own and its axes, row by row, without pyplot's global state or a display.

    Unless ``of`` makes it, as `matplotlib.pyplot.figure` does.
    """
    if of is not None:
        figure = of(figsize=(width, height), layout=layout)
    else:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, width_ratios=width_ratios).ravel()


def umap_figure(adata: AnnData, color: str, path: str | Path, title: str | None = None) -> None:
    """Draws the map of cells, colored by a column, as a PNG (or whatever the ending says).

    Cells are drawn in random order, so that none of the sources hides the others; cells without
    a value lie below in gray. More than 8 categories are marked on the map too, with their name
    if it is short or else a number that the legend explains.

    Args:
        adata: Cells with `obsm["X_umap"]`.
        color: Column of `adata.obs` with categories (names or codes).
        path: File to write; its folder must exist.
        title: What to write above; the name of the column by default.

    Raises:
        InputError: No such column.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> from concerto_tf.pl.figures import umap_figure
        >>> adata = AnnData(np.zeros((4, 1), "float32"), {"cell_type": ["T", "T", "B", "B"]})
        >>> adata.obsm["X_umap"] = np.array([[0, 0], [0, 1], [3, 0], [3, 1]], "float32")
        >>> path = Path(tempfile.mkdtemp()) / "map.png"
        >>> umap_figure(adata, "cell_type", path)
        >>> path.exists()
        True
    """
    # the legend lies outside of these 5 x 5 inches, which saving extends by what it needs
    figure, [axes] = new_figure(5.0, 5.0, layout=None)
    draw_umap(axes, adata, color, title)
    save_figure(figure, path)


def draw_umap(axes: Axes, adata: AnnData, color: str, title: str | None = None) -> None:
    """Draws what `umap_figure` says on axes that are there."""
    import pandas as pd

    if color not in adata.obs:
        raise InputError(f"no column {color!r} in obs; {choices(color, adata.obs)}")
    column = adata.obs[color]
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    column = column.cat.remove_unused_categories()
    order = in_order(str(name) for name in column.cat.categories)
    place = np.array([order.index(str(name)) for name in column.cat.categories] + [-1])
    codes, names = place[column.cat.codes.to_numpy()], order
    xy = places_on_map(adata)

    _points(axes, xy, codes)
    entries = [short_name(name) for name in names]
    if len(names) > _FEW_CATEGORIES:
        marks = names
        if max(map(len, names)) > 3:  # too long to stand on the map
            marks = [str(i + 1) for i in range(len(names))]
            entries = [f"{mark}  {entry}" for mark, entry in zip(marks, entries, strict=True)]
        _marks(axes, xy, codes, marks)
    _legend(axes, codes, entries)
    axes.set_title(f"{title or color}  ({len(xy):,} cells)", fontsize=11, loc="left")
    frame_map(axes)


def places_on_map(adata: AnnData) -> np.ndarray:
    """Where cells lie on their map [n, 2], or an InputError where they have none."""
    if "X_umap" not in adata.obsm:
        raise InputError("no X_umap in obsm; `run` makes it, or scanpy's tl.umap")
    return np.asarray(adata.obsm["X_umap"], float)[:, :2]


def frame_map(axes: Axes) -> None:
    """Names the axes of a map, which have no scale."""
    axes.set_xlabel("UMAP 1", loc="left", fontsize=9, color="0.35")
    axes.set_ylabel("UMAP 2", loc="bottom", fontsize=9, color="0.35")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")


def training_curve(history: History, path: str | Path) -> None:
    """Draws loss, alignment, uniformity and effective rank over the epochs; see `draw_training`.

    Args:
        history: CSV file as `keras.callbacks.CSVLogger` writes it, or a dict of lists as
            `History.history` is.
        path: File to write; its folder must exist.
    """
    save_figure(draw_training(history), path)


def draw_training(history: History, new: Callable[..., Drawn] = new_figure) -> Figure:
    """Loss, alignment, uniformity and effective rank over the epochs, a panel each.

    Args:
        history: As for `training_curve`. Columns `val_<name>` are drawn dashed.
        new: Makes the figure, as `new_figure` does.

    Raises:
        InputError: No such file, nothing in it that can be drawn, or lengths that differ.
    """
    columns = history_columns(history)
    drawn = [c for c in _CURVES if c[0] in columns]
    if not drawn:
        known = ", ".join(columns) or "none"
        wanted = ", ".join(c[0] for c in _CURVES)
        raise InputError(f"the history has none of {wanted} (there: {known}).")
    lengths = {k: len(v) for k, v in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the history's columns differ in length: {lengths}.")
    n = next(iter(lengths.values()))
    epochs = np.arange(1, n + 1)
    if "passes" in columns and np.isfinite(columns["passes"]).all():
        epochs = columns["passes"]  # on small data Keras counts several passes as one epoch
    elif "epoch" in columns and np.isfinite(columns["epoch"]).all():
        epochs = columns["epoch"] + 1  # Keras counts from 0, people from 1

    rows, across = -(-len(drawn) // 2), min(2, len(drawn))
    figure, panels = new(7.5 if across > 1 else 4.2, 2.6 * rows, rows, across)
    for axes, (name, title, hint) in zip(panels, drawn, strict=False):
        few = {"marker": "o", "markersize": 3} if n <= 20 else {}
        axes.plot(epochs, columns[name], color=PALETTE[0], lw=1.6, label="training", **few)
        held_out = columns.get(f"val_{name}", np.zeros(0))
        if np.isfinite(held_out).any():  # Keras 3 logs empty columns where there is nothing
            axes.plot(epochs, held_out, color=PALETTE[1], lw=1.6, ls="--", label="held out", **few)
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_title(hint, fontsize=8, loc="right", color="0.45")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.tick_params(labelsize=8, colors="0.25")
        axes.grid(axis="y", color="0.92", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("epoch", fontsize=8, color="0.35")
    for axes in panels[len(drawn) :]:
        axes.set_visible(False)
    return figure


def history_columns(history: History) -> dict[str, np.ndarray]:
    """A training's history as float columns; what is not a number becomes NaN.

    Args:
        history: As for `training_curve`.

    Raises:
        InputError: No such file.
    """
    if isinstance(history, Mapping):
        return {k: np.array([_number(x) for x in v]) for k, v in history.items()}
    try:
        with as_path(history).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{history}: {error.strerror}; give the CSV log of a training.") from None
    names = rows[0].keys() if rows else ()
    return {k: np.array([_number(row[k]) for row in rows]) for k in names if k}


def _number(text: object) -> float:
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


def _points(axes: Axes, xy: np.ndarray, codes: np.ndarray) -> None:
    """The cells, as one image in vector formats too."""
    from matplotlib.colors import to_rgb

    colors = np.array([to_rgb(c) for c in (*PALETTE, MISSING_COLOR)])
    shade = np.where(codes < 0, len(PALETTE), codes % len(PALETTE))
    order = np.random.default_rng(0).permutation(len(xy))
    order = order[np.argsort(codes[order] >= 0, kind="stable")]  # the gray ones first
    axes.scatter(
        xy[order, 0],
        xy[order, 1],
        s=float(np.clip(24_000 / max(len(xy), 1), 0.6, 40.0)),
        c=colors[shade[order]],
        linewidths=0,
        alpha=0.9 if len(xy) < 50_000 else 0.7,
        rasterized=True,
    )


def _marks(axes: Axes, xy: np.ndarray, codes: np.ndarray, marks: list[str]) -> None:
    """The mark of each category amid its cells, or above them where it would cover them."""
    from matplotlib.patheffects import withStroke

    room = _MARK * np.maximum(np.ptp(xy, axis=0), 1e-9)
    for code, mark in enumerate(marks):
        own = xy[codes == code]
        # of a category in two pieces the median lies in neither: go to a cell of it
        x, y = own[np.square(own - np.median(own, axis=0)).sum(axis=1).argmin()]
        near = own[(np.abs(own - (x, y)) < 2 * room).all(axis=1)]
        small = (np.ptp(near, axis=0) < room).all() and len(near) > len(own) / 2
        axes.annotate(
            mark,
            (x, near[:, 1].max() if small else y),
            (0, 4 if small else 0),
            textcoords="offset points",
            ha="center",
            va="bottom" if small else "center",
            fontsize=8 if len(marks) <= 20 else 7,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )


def _legend(axes: Axes, codes: np.ndarray, names: list[str]) -> None:
    """Categories with their colors beside the map, in as many columns as it takes."""
    from matplotlib.lines import Line2D

    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    shown = sorted(np.argsort(-sizes, kind="stable")[:_LEGEND_ENTRIES].tolist())
    entries = [(PALETTE[i % len(PALETTE)], names[i]) for i in shown]
    if (codes < 0).any():
        entries.append((MISSING_COLOR, "no value"))
    if len(names) > len(shown):
        entries.append(("none", f"and {len(names) - len(shown)} smaller"))
    marks = [Line2D([], [], marker="o", ls="", markersize=6, color=c, mew=0) for c, _ in entries]
    axes.legend(
        marks,
        [text for _, text in entries],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=8 if len(entries) <= 22 else 7,
        ncols=-(-len(entries) // 22),
        handletextpad=0.2,
        columnspacing=0.8,
        labelspacing=0.45,
    )


def check_format(figure_format: str) -> None:
    """Raises InputError if figures are asked for in a format that is none of ``FORMATS``."""
    if figure_format not in FORMATS:
        raise InputError(
            f"figures cannot be drawn as {figure_format!r}; choose one of {', '.join(FORMATS)}",
            "figure_format",
        )


def check_figure(path: str | Path) -> None:
    """Raises InputError if the ending of a name is of no kind of image that can be drawn."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = as_path(path).suffix.lower().removeprefix(".")
    if suffix not in known:
        raise InputError(
            f"{path}: {suffix or 'no ending'} is no kind of image that can be drawn; let the name "
            f"end in .png, .pdf or .svg (there are: {', '.join(sorted(known))})"
        )


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all; the ending of the name says what kind of image."""
    check_figure(path)
    # without date and version inside, the same cells give the same file
    stamps = {".png": "Software", ".pdf": "CreationDate", ".svg": "Date"}
    suffix = as_path(path).suffix.lower()
    metadata = {stamps[suffix]: None} if suffix in stamps else None
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=metadata, bbox_inches="tight")
