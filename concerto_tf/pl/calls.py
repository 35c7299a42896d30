"""Figures for notebooks, in scanpy's manner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf.pl.figures import draw_training, draw_umap, new_figure, save_figure
from concerto_tf.pl.flows import draw_sankey
from concerto_tf.pl.heatmap import draw_heatmap
from concerto_tf.pl.trajectory import draw_paga, draw_pseudotime

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

    from concerto_tf.pl.figures import Drawn, History


def umap(
    adata: AnnData,
    color: str = "concerto_cluster",
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Draws the map of cells, colored by a column.

    Args:
        adata: Cells with ``obsm["X_umap"]``.
        color: Column of obs with categories.
        title: What to write above; the name of the column by default.
        ax: Axes to draw on; new ones by default.
        show: Whether to show it; by default unless ``ax`` or ``save`` is given.
        save: File to write; its ending says the format.

    Returns:
        The axes where it is not shown, otherwise None.

    Raises:
        InputError: No such column, or no map.

    Example:
        >>> import numpy as np
        >>> from anndata import AnnData
        >>> import concerto_tf as ct
        >>> adata = AnnData(np.zeros((4, 1), "float32"), {"cell_type": ["T", "T", "B", "B"]})
        >>> adata.obsm["X_umap"] = np.array([[0, 0], [0, 1], [3, 0], [3, 1]], "float32")
        >>> ct.pl.umap(adata, "cell_type", show=False).get_title(loc="left")
        'cell_type  (4 cells)'
    """
    axes = _axes(ax)
    draw_umap(axes, adata, color, title)
    return _shown(axes, ax, show, save)


def pseudotime(
    adata: AnnData,
    column: str = "concerto_pseudotime",
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Draws the map of cells, colored by pseudotime; a star marks the root.

    Args:
        adata: Cells with ``obsm["X_umap"]`` and what `concerto_tf.pseudotime` found.
        column: Column of obs with the pseudotime.
        ax, show, save: As in `umap`.

    Returns:
        The axes where it is not shown, otherwise None.

    Raises:
        InputError: There is no pseudotime, or no map.
    """
    axes = _axes(ax)
    draw_pseudotime(axes, adata, column)
    return _shown(axes, ax, show, save)


def paga(
    adata: AnnData,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Draws how groups of cells are connected, each amid its cells on the map.

    Args:
        adata: Cells with ``obsm["X_umap"]`` and PAGA, as `concerto_tf.pseudotime` leaves it.
        ax, show, save: As in `umap`.

    Returns:
        The axes where it is not shown, otherwise None.

    Raises:
        InputError: There is no PAGA, or no map.
    """
    axes = _axes(ax)
    draw_paga(axes, adata)
    return _shown(axes, ax, show, save)


def sankey(
    table: pd.DataFrame,
    *,
    left: str = "query",
    right: str = "reference",
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Draws which reference labels the groups of a query have.

    Args:
        table: Columns ``group``, ``label``, ``cells`` and ``share``: what `concerto_tf.map` leaves
            beside its figure, or made by hand.
        left, right: Titles of groups and labels.
        show, save: As in `umap`. The figure is as high as it has groups.

    Returns:
        The axes where it is not shown, otherwise None.

    Raises:
        InputError: There is nothing to draw.

    Example:
        >>> import pandas as pd
        >>> import concerto_tf as ct
        >>> flows = {"group": ["1", "1"], "label": ["B", "unknown"], "cells": 10}
        >>> flows = pd.DataFrame(flows | {"share": [0.8, 0.2]})
        >>> [text.get_text() for text in ct.pl.sankey(flows, show=False).texts]
        ['1  (20)', 'B', 'unknown', 'query', 'reference']
    """
    axes = draw_sankey(table, left, right, _figure)
    return _shown(axes, None, show, save)


def explained(
    table: pd.DataFrame, *, show: bool | None = None, save: str | Path | None = None
) -> list[Axes] | None:
    """Draws the genes that place groups of cells in the embedding, one panel for each modality.

    Args:
        table: What `concerto_tf.explain` gives with ``groupby``.
        show, save: As in `umap`.

    Returns:
        The axes where it is not shown, otherwise None; the last are those of the color bar.

    Raises:
        InputError: The table has no groups.
    """
    axes = draw_heatmap(table, _figure).axes
    return None if _shown(axes[0], None, show, save) is None else axes


def training(
    history: History, *, show: bool | None = None, save: str | Path | None = None
) -> list[Axes] | None:
    """Draws loss, alignment, uniformity and effective rank of a training over its epochs.

    Args:
        history: ``training.csv`` of a model's folder, or ``History.history`` of Keras.
        show, save: As in `umap`.

    Returns:
        The axes where it is not shown, otherwise None.

    Raises:
        InputError: No such file, or nothing in it that can be drawn.

    Example:
        >>> import concerto_tf as ct
        >>> axes = ct.pl.training({"loss": [3.0, 2.0]}, show=False)
        >>> [one.get_title(loc="left") for one in axes]
        ['Loss']
    """
    axes = draw_training(history, _figure).axes
    return None if _shown(axes[0], None, show, save) is None else axes


def _figure(width: float, height: float, *panels: Any, **options: Any) -> Drawn:
    """A figure that pyplot knows, and so shows."""
    import matplotlib.pyplot as plt

    options["of"] = plt.figure
    return new_figure(width, height, *panels, **options)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(5.0, 5.0))[1]


def _shown(
    axes: Axes, given: Axes | None, show: bool | None, save: str | Path | None
) -> Axes | None:
    if save is not None:
        figure = axes.get_figure(root=True)
        assert figure is not None  # axes are of one
        save_figure(figure, save)
    if show is None:
        show = given is None and save is None
    if not show:
        return axes
    import matplotlib.pyplot as plt

    plt.show()
    return None
