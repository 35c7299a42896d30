"""Figures for notebooks, in scanpy's manner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from concerto_tf.pl.figures import draw_umap, save_figure
from concerto_tf.pl.trajectory import draw_paga, draw_pseudotime

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


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
        InputError: No such column.

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
