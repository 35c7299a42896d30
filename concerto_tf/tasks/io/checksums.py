"""Checksums of cells, in whatever they are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from concerto_tf._files import sha256
from concerto_tf._identity import identity_of_records, json_checksum
from concerto_tf._lazy import row_blocks
from concerto_tf._paths import as_path
from concerto_tf.records import Records
from concerto_tf.records.cell_set import is_records
from concerto_tf.records.inputs.input import Input


def sha256_of_cells(cells: Any) -> tuple[str, str]:
    """The name of cells without its folder, and a checksum of what they hold.

    Args:
        cells: Records, a file or folder, an AnnData, a MuData, or None.

    Returns:
        Name and SHA-256 in hexadecimal: of a file's bytes, as `sha256sum` tells it; of the files
        of a folder by their names; of the shards of records by theirs; of an AnnData or MuData of
        names and values. Both empty where there is nothing to tell.
    """
    if isinstance(cells, Input) and cells.path is not None:
        cells = cells.path
    if cells is None:
        return "", ""
    if is_records(cells):
        records = cells if isinstance(cells, Records) else Records(cells)
        return as_path(records.path).absolute().name, identity_of_records(records)
    if isinstance(cells, str | Path):
        path = as_path(cells).expanduser().absolute()
        return path.name, _of_path(path)
    if getattr(cells, "isbacked", False):
        return Path(cells.filename).name, sha256(cells.filename)
    if hasattr(cells, "mod"):
        parts = [_of_anndata(one) for one in cells.mod.values()]
        return "MuData", json_checksum(parts)
    if hasattr(cells, "obs_names"):
        return "AnnData", _of_anndata(cells)
    return "", ""


def _of_path(path: Path) -> str:
    if not path.exists():
        return ""
    if not path.is_dir():
        return sha256(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return json_checksum([[str(file)[len(str(path)) :], sha256(file)] for file in files])


def _of_anndata(cells: Any) -> str:
    digest = hashlib.sha256()
    for names in (cells.obs_names, cells.var_names):
        digest.update("\n".join(map(str, names)).encode())
    for x in row_blocks(cells.X):
        for part in [x.data, x.indices, x.indptr] if sp.issparse(x) else [np.asarray(x)]:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
