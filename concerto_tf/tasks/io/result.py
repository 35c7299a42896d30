"""Writes what a task found beside the cells that it was found for."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._files import atomic
from concerto_tf._paths import as_path, copy_tree, is_hdf5, is_remote, open_hdf5
from concerto_tf._progress import stage
from concerto_tf.errors import InputError, first_line
from concerto_tf.records import CellSet, open_input
from concerto_tf.records.batch import RNA, label_key
from concerto_tf.records.cell_set import is_records
from concerto_tf.records.genes.overlap import union
from concerto_tf.records.inputs.input import Input
from concerto_tf.records.inputs.observations import column_names
from concerto_tf.tasks.io import provenance
from concerto_tf.tasks.io.on_disk import RowsOnDisk

if TYPE_CHECKING:
    import h5py
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
_CHUNK_CELLS = 4096


def write_found(
    cells: Any,
    out: str | Path,
    records: CellSet,
    *,
    obsm: Mapping[str, Any],
    obs: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    layer: str | None = None,
) -> None:
    """Writes what a task found beside the cells that it was given.

    Args:
        cells: What the task was given: something to convert, or records, of whose cells names,
            sources and labels are written.
        out: The `.h5ad` to write.
        records: The cells as they were read.
        obsm: Embeddings or tables [n, d] by key, in the order of the cells.
        obs: Columns [n] by key.
        uns: Tables and the like about all cells, by key.
        layer: The layer that was converted.
    """
    known, obs = records.obs(), dict(obs or {})
    if not is_records(cells):
        write_result(
            [cells],
            out,
            obsm=obsm,
            obs=obs,
            names=known["cell"],
            rows=known["row"],
            uns=uns,
            layer=layer,
        )
        return
    labels = {name: known[label_key(name)] for name in records.labels}
    write_cells(out, known["cell"], {"source": known["source"], **labels, **obs}, obsm, uns)


def write_result(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    obsm: Mapping[str, np.ndarray],
    obs: Mapping[str, Any],
    names: Sequence[str] | np.ndarray,
    rows: np.ndarray,
    uns: Mapping[str, Any] | None = None,
    obsp: Mapping[str, Any] | None = None,
    layer: str | None = None,
) -> None:
    """Writes the cells of the inputs with what was found about them, whole or not at all.

    A single AnnData, in an `.h5ad`, in memory or the RNA of a MuData, is kept as it is, all layers
    and annotation included; of anything else the values, the genes and the columns of obs are
    written. Memory does not grow with the values.

    Args:
        inputs: What was converted, in order.
        out: The `.h5ad` to write; replaced if it is there.
        obsm: Embeddings [n, d] by key, in the order of ``rows``.
        obs: Columns [n] by key.
        names: Names of the cells [n].
        rows: Position of each cell over all inputs [n], ascending.
        uns: Tables and the like about all cells, by key.
        obsp: Matrices between cells [n, n] by key.
        layer: The layer that was converted.
    """
    out = as_path(out)
    check_target(out)
    with stage(f"writing {out}"), atomic(out) as temporary, ExitStack() as stack:
        opened = [stack.enter_context(open_input(item, layer=layer)) for item in inputs]
        only = opened[0]
        whole = len(opened) == 1 and len(rows) == only.n_cells
        path = only.path if len(opened) == 1 and only.path and _is_h5ad(only.path) else None
        copied = whole and _copied(only, inputs[0], temporary)
        if not (copied and _append(temporary, obsm, _lacking(only, temporary, obs), uns, obsp)):
            assemble(opened, temporary, obsm, obs, names, rows, uns)
            _append(temporary, {}, {}, {}, obsp)
        stamp(temporary, temporary if copied else path)


def replace_found(path: str | Path, obs: Mapping[str, Any], uns: Mapping[str, Any]) -> None:
    """Replaces what an `.h5ad` says of its cells, whole or not at all; the rest stays.

    Args:
        path: The file.
        obs: Columns [n] by key; ``None`` removes one.
        uns: Tables and the like about all cells, by key; ``None`` removes one.
    """
    path = as_path(path)
    with atomic(path) as temporary:
        copy_tree(path, temporary)
        _append(temporary, {}, obs, uns)
        stamp(temporary, temporary)


def check_target(out: str | Path) -> None:
    """Raises InputError if a file cannot be written there, before there is anything to lose.

    Args:
        out: The file to write.
    """
    out = as_path(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name a file to write, as in {out / 'out.h5ad'}")
    if is_remote(out):
        return  # folders need not be made there, and only writing tells
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: there is no such folder; make it, or write elsewhere")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise InputError(
            f"{out.parent}: cannot be written ({error.strerror}); write elsewhere"
        ) from error


def write_cells(
    out: str | Path,
    names: np.ndarray,
    obs: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray],
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Writes an `.h5ad` of cells without values: their names, columns and embeddings."""
    import pandas as pd
    from anndata import AnnData

    out = as_path(out)
    check_target(out)
    frame = pd.DataFrame({key: _storable(value) for key, value in obs.items()})
    frame.index = list(names)
    with atomic(out) as temporary:
        AnnData(obs=frame).write_h5ad(temporary)
        _append(temporary, {key: _matrix(z, names) for key, z in obsm.items()}, {}, uns)
        stamp(temporary)


def stamp(path: Path, origin: Path | None = None) -> None:
    """Adds what was done to an `.h5ad`: the call that is at work.

    Args:
        path: The file.
        origin: The file that its cells come from, which says what was done to them before.
    """
    import h5py
    from anndata.io import write_elem

    entry = provenance.with_step(None if origin is None else what_was_done(origin))
    if entry is not None:
        with h5py.File(path, "r+") as file:
            if "uns" not in file:
                write_elem(file, "uns", {})
            write_elem(file["uns"], provenance.KEY, entry)


def what_was_done(path: str | Path) -> Any:
    """What ``uns["concerto"]`` of an `.h5ad` holds; None where there is none."""
    from anndata.io import read_elem

    with open_hdf5(path) as file:
        uns = file.get("uns")
        held = None if uns is None else uns.get(provenance.KEY)
        # what is no group is of somebody else
        return read_elem(held) if hasattr(held, "keys") else None


def _is_h5ad(path: Path) -> bool:
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return "obs" in file and "column-order" in file["obs"].attrs and "mod" not in file


def _copied(cells: Input, given: Any, path: Path) -> bool:
    """Writes the AnnData that cells were read from; False where they are of something else."""
    import h5py

    if cells.path is not None:
        if _is_h5ad(cells.path):
            copy_tree(cells.path, path)
            return True
        if not cells.group or not is_hdf5(cells.path):
            return False
        with open_hdf5(cells.path) as source, h5py.File(path, "w") as target:
            group = source[cells.group]
            target.attrs.update(group.attrs)
            for name in group:
                source.copy(group[name], target, name)
        return True
    adata = given.mod[cells.group.removeprefix("mod/")] if cells.group else given
    if isinstance(adata, Input) or adata.isbacked:
        return False
    try:
        adata.write_h5ad(path, convert_strings_to_categoricals=False)
    except Exception as error:  # noqa: BLE001 - whatever it holds that cannot be written
        _log.info(
            "%s: cannot be written whole (%s); its values and obs are",
            cells.name,
            first_line(error),
        )
        return False
    return True


def _lacking(cells: Input, path: Path, obs: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of obs to add to a copy: those given, and those that the cells have and it lacks."""
    import h5py

    with h5py.File(path, "r") as file:
        plain = "column-order" not in file["obs"].attrs  # one array, as anndata once wrote it
        known = set(cells.columns if plain else column_names(file["obs"])) | set(obs)
    return {**{key: cells.values(key) for key in cells.columns if key not in known}, **obs}


def _append(
    path: Path,
    obsm: Mapping[str, np.ndarray],
    obs: Mapping[str, Any],
    uns: Mapping[str, Any] | None,
    obsp: Mapping[str, Any] | None = None,
) -> bool:
    """Adds to an `.h5ad`; False where it is of an old layout that cannot be added to."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        if not isinstance(file["obs"], h5py.Group):
            return False
        for group in ("obsm", "obsp", "uns"):
            if group not in file:
                write_elem(file, group, {})
        for key, z in obsm.items():
            if isinstance(z, RowsOnDisk):
                _copy(z, file["obsm"], key)
            else:
                write_elem(file["obsm"], key, _matrix(z))
        for key, matrix in (obsp or {}).items():
            write_elem(file["obsp"], key, matrix)
        for key, value in (uns or {}).items():
            if value is not None:
                write_elem(file["uns"], key, value)
            elif key in file["uns"]:
                del file["uns"][key]
        order = column_names(file["obs"])
        for key, values in obs.items():
            if values is not None:
                write_elem(file["obs"], key, _storable(values))
            elif key in file["obs"]:
                del file["obs"][key]
        columns = [key for key in dict.fromkeys([*order, *obs]) if key in file["obs"]]
        file["obs"].attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())
    return True


def _copy(rows: RowsOnDisk, group: h5py.Group, key: str) -> None:
    """Writes rows as anndata writes an array, some at a time."""
    if key in group:
        del group[key]
    dataset = group.create_dataset(key, rows.shape, "float32")
    dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = 0
    for block in rows.blocks():
        dataset[start : start + len(block)] = block
        start += len(block)


def assemble(
    opened: list[Input],
    path: Path,
    obsm: Mapping[str, np.ndarray],
    obs: Mapping[str, Any],
    names: Sequence[str] | np.ndarray,
    rows: np.ndarray,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Writes an `.h5ad` of any inputs, the values chunk by chunk."""
    import h5py
    import pandas as pd
    from anndata import AnnData

    vocabulary, places = union([cells.genes for cells in opened], [c.name for c in opened], None)
    frame = _columns(opened, rows)
    for key, values in obs.items():
        frame[key] = _storable(values)
    frame.index = list(names)
    var = pd.DataFrame(index=list(vocabulary.ids))
    if vocabulary.symbols is not None:
        var["symbol"] = list(vocabulary.symbols)
    AnnData(obs=frame, var=var).write_h5ad(path)
    _append(path, {key: _matrix(z, names) for key, z in obsm.items()}, {}, uns)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": np.array([len(rows), len(vocabulary)]),
            }
        )
        _stream(opened, places, rows, group)


def _stream(opened: list[Input], places: list[Any], rows: np.ndarray, group: h5py.Group) -> None:
    data, indices = (
        group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(65_536,))
        for name, dtype in (("data", "float32"), ("indices", "int32"))
    )
    indptr, first = [np.zeros(1, np.int64)], 0
    for cells, place in zip(opened, places, strict=True):
        for start in range(0, cells.n_cells, _CHUNK_CELLS):
            stop = min(start + _CHUNK_CELLS, cells.n_cells)
            kept = rows[(rows >= first + start) & (rows < first + stop)] - first - start
            matrix = place.apply(cells.chunk(start, stop)[RNA])[kept]
            matrix.sort_indices()
            old = data.shape[0]
            for dataset, part in ((data, matrix.data), (indices, matrix.indices)):
                dataset.resize((old + matrix.nnz,))
                dataset[old:] = part
            indptr.append(matrix.indptr[1:].astype(np.int64) + old)
        first += cells.n_cells
    group.create_dataset("indptr", data=np.concatenate(indptr))


def _columns(opened: list[Input], rows: np.ndarray) -> pd.DataFrame:
    """The columns of obs that every input has."""
    import pandas as pd

    shared = [key for key in opened[0].columns if all(key in c.columns for c in opened)]
    if gone := dict.fromkeys(key for c in opened for key in c.columns if key not in shared):
        _log.info("left out of obs, as not every input has them: %s", ", ".join(gone))
    parts = {}
    for key in shared:
        columns = [pd.Series(cells.values(key)).reset_index(drop=True) for cells in opened]
        whole = pd.concat(columns, ignore_index=True)
        if any(isinstance(column.dtype, pd.CategoricalDtype) for column in columns):
            whole = whole.astype("category")
        parts[key] = _storable(whole.iloc[rows].reset_index(drop=True))
    if len(opened) > 1:
        names = np.repeat(np.array([c.stem for c in opened]), [c.n_cells for c in opened])
        parts["concerto_input"] = pd.Categorical(names[rows])
    return pd.DataFrame(parts, index=pd.RangeIndex(len(rows)))


def _matrix(z: Any, names: Sequence[str] | np.ndarray | None = None) -> Any:
    """A table with its columns' names, under the cells' names; anything else as an array."""
    if isinstance(z, RowsOnDisk):
        return z
    if not hasattr(z, "columns"):
        return np.asarray(z)
    return z if names is None else z.set_axis(list(names))


def _storable(values: Any) -> Any:
    """Text as a category; everything else as it is."""
    import pandas as pd

    if isinstance(values, pd.Series | pd.Index):
        values = values.values  # of NumPy where they can be, as anndata writes no other
    if isinstance(values, pd.Categorical):
        return values
    return pd.Categorical(values) if np.asarray(values).dtype.kind in "OUS" else values
