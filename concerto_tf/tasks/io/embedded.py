"""Opens cells that have an embedding: an `.h5ad` that a task wrote, or an AnnData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf._paths import as_path, is_hdf5, is_remote, local_copy, open_hdf5
from concerto_tf.errors import InputError, choices
from concerto_tf.metrics.checks import as_embedding

if TYPE_CHECKING:
    from anndata import AnnData


def open_embedded(cells: str | Path | AnnData, backed: bool) -> AnnData:
    """Opens an `.h5ad` that a task wrote, or takes the AnnData.

    Args:
        cells: The file, or what is in memory already.
        backed: Leave the values on disk, where only the annotation is wanted.

    Returns:
        The AnnData.

    Raises:
        InputError: The file is missing, damaged, or no AnnData.
    """
    import anndata

    if not isinstance(cells, str | Path):
        return cells
    path = as_path(cells)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; check the path")
    if not path.is_dir() and not is_hdf5(path):
        raise InputError(f"{path}: no .h5ad; `embed` or `run` writes one")
    if not path.is_dir():
        try:
            open_hdf5(path).close()
        except InputError:
            raise
        except Exception:  # noqa: BLE001, S110 - damage is told below
            pass
    try:
        if path.is_dir():
            return anndata.io.read_zarr(path)
        if is_remote(path):  # whose copy does not outlast this call
            with local_copy(path) as copy:
                return anndata.io.read_h5ad(copy)
        return anndata.io.read_h5ad(path, backed="r" if backed else None)
    except Exception as error:  # noqa: BLE001 - whatever the libraries raise, the file is wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"{path}: cannot be read as .h5ad ({reason}); `embed` or `run` writes one"
        ) from error


def embedding_of(name: str | Path, adata: AnnData, rep: str) -> np.ndarray:
    """An embedding of cells.

    Args:
        name: What to call the cells in a message.
        adata: The cells.
        rep: Key of the embedding in obsm, or ``X``.

    Returns:
        The embedding, float32 [n, d].

    Raises:
        InputError: There is none of this name, or it has values that are not finite.
    """
    if rep == "X":
        x = adata.X
        return as_embedding(x.toarray() if hasattr(x, "toarray") else x)
    if rep not in adata.obsm:
        raise InputError(
            f"{name}: no embedding {rep!r} in obsm; {choices(rep, adata.obsm)}. Make one with "
            "`embed`, or name another",
            "rep",
        )
    return as_embedding(np.asarray(adata.obsm[rep]))
