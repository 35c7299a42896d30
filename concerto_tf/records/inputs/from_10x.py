"""10x Genomics' matrices as an input: `.h5` of Cell Ranger 2 and later, and `mtx` folders."""

from __future__ import annotations

import csv
import gzip
import logging
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._paths import is_remote
from concerto_tf.errors import InputError, choices, first_line
from concerto_tf.records.batch import RNA
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.by_cell import ENTRIES_PER_SLAB
from concerto_tf.records.inputs.features import rna_features, split_place, typed_features
from concerto_tf.records.inputs.input import Input, InputPart
from concerto_tf.records.inputs.observations import (
    BarcodeObservations,
    check_stored,
    read_text,
)
from concerto_tf.records.inputs.rows import CompressedRows, Rows

if TYPE_CHECKING:
    from concerto_tf.records.inputs.by_cell import Scratch

_log = logging.getLogger("concerto_tf")


def is_10x(file: Any) -> bool:
    """Whether an open HDF5 file is Cell Ranger's (version 2: one group per genome)."""
    return bool(_groups(file))


def open_10x_h5(path: Path, file: Any, layer: str | None, modalities: dict[str, str]) -> Input:
    """A 10x `.h5` that is open; see `open_input`.

    The matrix is stored genes x cells by column, which is cells x genes by row.
    """
    groups = _groups(file)
    if groups == ["matrix"]:
        _no_layer(layer)
        group = file["matrix"]
        features = group["features"]
        check_stored(features["id"])
        n = int(features["id"].shape[0])
        genes = Vocabulary(
            tuple(read_text(features["id"], 0, n)), tuple(read_text(features["name"], 0, n))
        )
        types = read_text(features["feature_type"], 0, n) if "feature_type" in features else None
    else:
        layer = None if layer == "X" else layer
        if layer is None and len(groups) > 1:
            raise InputError(f"holds several genomes; name one as layer: {', '.join(groups)}")
        if layer is not None and layer not in groups:
            raise InputError(f"no genome {layer!r}; {choices(layer, groups)}")
        group = file[layer or groups[0]]
        check_stored(group["genes"])
        n = int(group["genes"].shape[0])
        genes = Vocabulary(
            tuple(read_text(group["genes"], 0, n)), tuple(read_text(group["gene_names"], 0, n))
        )
        types = None
    check_stored(group["barcodes"])
    shape = group["shape"][:][::-1]
    rows = CompressedRows(group["data"], group["indices"], group["indptr"], shape)
    parts = _parts(path.name, genes, types, rows, group.name.strip("/"), modalities)
    observations = BarcodeObservations(group["barcodes"])
    return Input(path.name, int(group["barcodes"].shape[0]), parts, observations, path=path)


def open_mtx(
    folder: Path,
    matrix: str | None,
    layer: str | None,
    modalities: dict[str, str],
    scratch: Scratch,
) -> Input:
    """A 10x `mtx` folder; see `open_input`.

    Plain or gzipped, `features.tsv` or `genes.tsv`, and with one prefix before the three names, as
    GEO has them.

    Args:
        folder: holds the three files.
        matrix: name of the matrix, or None to look for it.
        layer: None; there are none.
        modalities: see `open_input`.
        scratch: for the copy sorted by cell.
    """
    _no_layer(layer)
    matrix = matrix or _find_matrix(folder)
    prefix = matrix.removesuffix(".gz").removesuffix(".mtx").removesuffix("matrix")
    zipped = matrix.endswith(".gz")
    lines = _read_tsv(_find(folder, [f"{prefix}features.tsv", f"{prefix}genes.tsv"], zipped))
    barcodes = [line[0] for line in _read_tsv(_find(folder, [f"{prefix}barcodes.tsv"], zipped))]
    ids = tuple(line[0] for line in lines)
    symbols = tuple(line[1] if len(line) > 1 else "" for line in lines)
    types = [line[2] if len(line) > 2 else "" for line in lines]
    genes = Vocabulary(ids, symbols if any(symbols) else None)
    path = folder / matrix
    with _open_text(path) as file:
        shape, n_entries, dtype = _read_header(file)
    n_genes, n_cells = shape
    if shape != (len(genes), len(barcodes)):
        raise InputError(
            f"{matrix} has {n_genes} genes x {n_cells} cells where there are {len(genes)} features "
            f"and {len(barcodes)} barcodes; are the three files of one sample?"
        )
    if not n_cells or not n_genes:
        raise InputError(f"{matrix} has {n_cells} cells and {n_genes} genes; is it the right file?")
    entries = _read_entries(path, dtype)
    rows = scratch.sorted_rows(path, matrix, (n_cells, n_genes), n_entries, dtype, entries)
    parts = _parts(folder.name, genes, types if any(types) else None, rows, matrix, modalities)
    observations = BarcodeObservations(barcodes)
    return Input(folder.name, n_cells, parts, observations, path=folder)


def _parts(
    name: str,
    genes: Vocabulary,
    types: list[str] | None,
    rows: Rows,
    where: str,
    modalities: dict[str, str],
) -> dict[str, InputPart]:
    chosen = rna_features(types, name)
    parts = {RNA: InputPart(genes if chosen is None else genes.take(chosen), rows, where, chosen)}
    for modality, place in modalities.items():
        _, kind = split_place(modality, place, ["feature_types:TYPE"])
        chosen = typed_features(types, kind, modality)
        parts[modality] = InputPart(genes.take(chosen), rows, where, chosen)
    return parts


def _no_layer(layer: str | None) -> None:
    if layer not in (None, "X"):
        raise InputError(f"no layer {layer!r}: a 10x matrix has none; leave it out")


def _groups(file: Any) -> list[str]:
    needed = {"barcodes", "data", "indices", "indptr", "shape"}
    groups = [
        name for name, group in file.items() if hasattr(group, "keys") and needed <= set(group)
    ]
    if "matrix" in groups and "features" in file["matrix"]:
        return ["matrix"]
    return [name for name in groups if {"genes", "gene_names"} <= set(file[name])]


def _find_matrix(folder: Path) -> str:
    there = sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith(("matrix.mtx", "matrix.mtx.gz"))
    )
    # A file and its gzipped copy are one matrix.
    names = {name.removesuffix(".gz") for name in there}
    if len(names) > 1:
        raise InputError(f"several matrices in one folder; give one of them: {', '.join(there)}")
    if not there:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise InputError(
            f"a folder without a matrix.mtx or matrix.mtx.gz (it holds: {held}); give the folder "
            "that holds matrix.mtx, features.tsv and barcodes.tsv"
        )
    return there[0]


def _find(folder: Path, names: list[str], zipped: bool) -> Path:
    """One of the names, gzipped or not as the matrix is: the others may be of another sample."""
    there = {path.name for path in folder.iterdir()}
    for ending in (".gz", "") if zipped else ("", ".gz"):
        for name in names:
            path = folder / f"{name}{ending}"
            if path.name in there:
                if bool(ending) != zipped:
                    _log.warning(
                        "%s: %s is %s and the matrix not; check that they are of one sample",
                        folder.name,
                        path.name,
                        "gzipped" if ending else "plain",
                    )
                return path
    raise InputError(f"no {' or '.join(f'{name}[.gz]' for name in names)} beside the matrix")


def _open_text(path: Path) -> BufferedIOBase:
    if path.suffix != ".gz":
        return path.open("rb")
    return gzip.open(path.open("rb") if is_remote(path) else path, "rb")


def _read_tsv(path: Path) -> list[list[str]]:
    try:
        with _open_text(path) as file:
            lines = file.read().decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read ({error}); the file is damaged") from error
    return list(
        csv.reader((line for line in lines if line), delimiter="\t", quoting=csv.QUOTE_NONE)
    )


def _read_header(file: BufferedIOBase) -> tuple[tuple[int, int], int, np.dtype]:
    """Rows and columns, number of entries, and dtype of a Matrix Market file, up to its entries."""
    try:
        words = file.readline().decode("ascii").lower().split()
        if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or words[4:] != ["general"]:
            raise ValueError("it is not a general coordinate matrix")
        dtype = {"integer": "i8", "real": "f8"}.get(words[3])
        if dtype is None:
            raise ValueError(f"its values are {words[3]}, not integer or real")
        line = file.readline()
        while line.startswith(b"%") or line.strip() == b"" != line:
            line = file.readline()
        n_rows, n_columns, n_entries = map(int, line.split())
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"the matrix's header cannot be read ({error})") from error
    return (n_rows, n_columns), n_entries, np.dtype(dtype)


def _read_entries(
    path: Path, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cell, gene and value of the entries, in slabs, without holding the file."""
    import pandas as pd

    with _open_text(path) as file:
        _read_header(file)
        try:
            table = pd.read_csv(
                file,
                sep=r"\s+",
                header=None,
                names=["gene", "cell", "value"],
                dtype={"gene": np.int64, "cell": np.int64, "value": dtype},
                chunksize=ENTRIES_PER_SLAB,
                # In a matrix, "NA" or an empty field is damage, but "nan" is a value.
                keep_default_na=False,
                na_values={"value": ["nan", "NaN"]} if dtype.kind == "f" else [],
            )
            for part in table:
                yield (
                    part["cell"].to_numpy() - 1,
                    part["gene"].to_numpy() - 1,
                    part["value"].to_numpy(),
                )
        except pd.errors.EmptyDataError:
            return
        except (OSError, EOFError, ValueError, OverflowError, pd.errors.ParserError) as error:
            raise InputError(
                f"{path.name} cannot be read ({first_line(error)}); the file is damaged"
            ) from error
