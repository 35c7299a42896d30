"""`run` on blood cells that come with scanpy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._files import atomic
from concerto_tf._paths import as_path
from concerto_tf.tasks.run import StageProgress, run

if TYPE_CHECKING:
    from anndata import AnnData

LABEL_KEY = "bulk_labels"


def demo_cells() -> AnnData:
    """700 blood cells of the 68k-PBMC data set, with 765 genes and 10 cell types.

    They come with scanpy. Its X is standardized; the log-normalized values are in `raw`.

    Returns:
        The cells, X log-normalized.
    """
    import scanpy as sc

    with warnings.catch_warnings():
        # The file is of an older layout of anndata.
        warnings.simplefilter("ignore")
        adata = sc.datasets.pbmc68k_reduced()
        cells = adata.raw.to_adata()
    cells.obs = cells.obs[[LABEL_KEY]]
    for annotation in (cells.uns, cells.obsm, cells.obsp):
        annotation.clear()
    return cells


def demo(out: str | Path, seed: int = 0, progress: StageProgress | None = None) -> dict[str, Any]:
    """Calls `run` on `demo_cells`; called again, it continues.

    Args:
        out: Folder of the result; the cells are written into its parent's ``demo-cells.h5ad``.
        seed: Seed of everything.
        progress: Called with the stage, the number of cells done and of all cells.

    Returns:
        What ``metrics.json`` holds.
    """
    out = as_path(out)
    cells = out.with_name(f"{out.name}-cells.h5ad")
    if not cells.exists():
        cells.parent.mkdir(parents=True, exist_ok=True)
        with atomic(cells) as temporary:
            demo_cells().write_h5ad(temporary)
    return run(cells, out, label_key=LABEL_KEY, seed=seed, progress=progress)
