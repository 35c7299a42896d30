"""AnnData as an input: `.h5ad` and `.zarr` on disk, objects in memory, views and backed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp

from concerto_tf._lazy import held
from concerto_tf.errors import InputError, choices
from concerto_tf.records.batch import RNA
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.by_cell import column_entries
from concerto_tf.records.inputs.features import (
    MissingModality,
    as_texts,
    rna_features,
    split_place,
    typed_features,
    vocabulary_of,
)
from concerto_tf.records.inputs.input import Input, InputPart
from concerto_tf.records.inputs.observations import (
    FrameObservations,
    Observations,
    StoredFrame,
    as_text,
    index_name,
)
from concerto_tf.records.inputs.rows import (
    CompressedRows,
    DenseRows,
    FrameRows,
    Rows,
    ViewRows,
    check_numeric,
    sample_rows,
    spread,
)
from concerto_tf.records.units import are_counts

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.records.inputs.by_cell import Scratch

#: The kinds of place of a modality.
PLACES = ("obsm:KEY", "layer:NAME", "feature_types:TYPE")
_GROUPS = {"X": "X", "raw": "raw/X"}
# Values that are looked at in each of several places to tell whether a matrix holds counts.
_SAMPLE = 4096

# Names of the genes, names of var's columns, and a function that gives a column.
Var = tuple[Sequence[str], Sequence[str], Callable[[str], Any]]


def is_stored_anndata(root: Any) -> bool:
    """Whether an open HDF5 file or zarr group looks like an AnnData."""
    return root.attrs.get("encoding-type") == "anndata" or ("obs" in root and "var" in root)


def open_stored(
    path: Path, root: Any, layer: str | None, modalities: dict[str, str], scratch: Scratch
) -> Input:
    """An `.h5ad` or `.zarr` that is open; see `open_input`."""
    return assemble(path.name, StoredElements(path, root, scratch), layer, modalities, path)


def open_adata(adata: AnnData, layer: str | None, modalities: dict[str, str]) -> Input:
    """An AnnData object; see `open_input`."""
    return assemble("AnnData", MemoryElements(adata), layer, modalities, None)


class Elements(Protocol):
    """What `assemble` asks of an AnnData, be it in memory or on disk."""

    obs: Observations
    n_cells: int
    has_raw: bool
    layers: list[str]
    obsm: list[str]

    def rows(self, element: str, key: str | None = None) -> Rows:
        """The matrix "X", "raw", or a member of "layers" or "obsm"."""

    def sample(self, element: str, key: str | None = None) -> np.ndarray | None:
        """Some values from all over one of these matrices; None where there is none."""

    def var(self, element: str) -> Var:
        """var, or that of "raw"."""

    def obsm_names(self, key: str) -> list[str] | None:
        """Column names of a data frame in obsm; None for an array."""


def part_of(elements: Elements) -> tuple[InputPart, list[str]]:
    """The matrix of counts of an AnnData, all its features, and what to say of it."""
    element, key, note = where_counts_are(elements)
    part = InputPart(_genes(elements, element)[0], elements.rows(element, key), key or element)
    return part, [note] if note else []


def assemble(
    name: str, elements: Elements, layer: str | None, modalities: dict[str, str], path: Path | None
) -> Input:
    """An input of an AnnData.

    Args:
        name: for messages.
        elements: of the AnnData.
        layer, modalities: as in `open_input`.
        path: of the file, or None.
    """
    there = [*elements.layers, *(["raw"] if elements.has_raw else [])]
    if layer is not None and layer not in ("X", *there):
        raise InputError(f"no layer {layer!r}; {choices(layer, there)}")
    if layer == "raw" and elements.has_raw and "raw" in elements.layers:
        raise InputError("has a layer 'raw' beside .raw; rename one of them to say which is meant")
    element, key, note = _element(elements, layer) if layer else where_counts_are(elements)
    where = f"layers/{key}" if key else element
    taken = key or element
    genes, types = _genes(elements, element)
    rows = elements.rows(element, key)
    chosen = rna_features(types, name)
    parts = {RNA: InputPart(genes if chosen is None else genes.take(chosen), rows, where, chosen)}
    for modality, place in modalities.items():
        kind, key = split_place(modality, place, PLACES)
        if kind == "feature_types":
            chosen = typed_features(types, key, modality)
            parts[modality] = InputPart(genes.take(chosen), rows, where, chosen)
        elif kind == "layer":
            if key not in elements.layers:
                missing = f"no layer {key!r}; {choices(key, elements.layers)}"
                raise MissingModality(modality, missing)
            own = vocabulary_of(*elements.var("X"))
            parts[modality] = InputPart(own, elements.rows("layers", key), f"layers/{key}")
        else:
            if key not in elements.obsm:
                missing = f"no {key!r} in obsm; {choices(key, elements.obsm)}"
                raise MissingModality(modality, missing)
            own_rows = elements.rows("obsm", key)
            own_names = elements.obsm_names(key)
            if own_names is None:
                own_names = [f"{modality}_{i}" for i in range(own_rows.shape[1])]
            if len(set(own_names)) < len(own_names):
                raise InputError(
                    f"obsm/{key}: two of its columns have one name; make them differ and save again"
                )
            parts[modality] = InputPart(Vocabulary(tuple(own_names)), own_rows, f"obsm/{key}")
    others = [other for other in there if other != taken]
    return Input(
        name,
        elements.n_cells,
        parts,
        elements.obs,
        path=path,
        layers=others,
        layer=taken,
        notes=[f"{name}: {note}"] if note else [],
    )


def _element(elements: Elements, layer: str) -> tuple[str, str | None, str]:
    """The element that a layer is in, its name within that, and nothing to say of it."""
    return ("layers", layer, "") if layer in elements.layers else (layer, None, "")


def where_counts_are(elements: Elements) -> tuple[str, str | None, str]:
    """The element to read where no layer is named, its name within that, what to say of it.

    X, unless it holds no counts (or is not there) and one of the places does where the field's
    tools leave them: `raw`, as in CELLxGENE's files, with all its genes, or a layer "counts".
    """
    places: list[tuple[str, str | None, str]] = []
    places += [("raw", None, "raw.X")] if elements.has_raw else []
    places += [("layers", "counts", "the layer 'counts'")] if "counts" in elements.layers else []
    x = elements.sample("X", None) if places else None
    if x is not None and are_counts(x):
        return "X", None, ""
    for element, key, told in places:
        found = elements.sample(element, key)
        if found is not None and are_counts(found):
            if x is None:
                return element, key, f"there is no X; the counts in {told} are taken"
            note = f"X holds no counts; those in {told} are taken (name 'X' as the layer to take X)"
            return element, key, note
    return "X", None, ""


def _genes(elements: Elements, element: str) -> tuple[Vocabulary, list[str] | None]:
    """The genes of an element, and their feature types where var tells them."""
    names, columns, values = elements.var(element)
    genes = vocabulary_of(names, columns, values)
    if element == "raw" and genes.symbols is None and genes.ensembl is None:
        # What var knows of its genes, raw.var need not repeat.
        known = vocabulary_of(*elements.var("X"))
        for kind in ("symbols", "ensembl"):
            others = getattr(known, kind)
            if others is not None:
                of = dict(zip(known.ids, others, strict=True))
                genes = replace(genes, **{kind: tuple(of.get(name, "") for name in names)})
    return genes, as_texts(values("feature_types")) if "feature_types" in columns else None


class StoredElements:
    """Elements of an AnnData on disk; nothing but var and the offsets of a matrix is read whole."""

    def __init__(self, path: Path, root: Any, scratch: Scratch) -> None:
        for element in ("obs", "var"):
            group = root.get(element)
            if not hasattr(group, "keys") or index_name(group) is None:
                raise InputError(
                    f"{element} is missing or of a format before anndata 0.7; read it with "
                    "anndata.read_h5ad and save it again"
                )
        self._path, self._root, self._scratch = path, root, scratch
        frame = StoredFrame(root["obs"])
        self.obs: Observations = frame
        self.n_cells = len(frame)
        self.has_raw = "raw" in root and "X" in root["raw"]
        self.layers = sorted(root["layers"].keys()) if "layers" in root else []
        self.obsm = sorted(root["obsm"].keys()) if "obsm" in root else []

    def rows(self, element: str, key: str | None = None) -> Rows:
        place = _GROUPS.get(element, f"{element}/{key}")
        if place not in self._root or _encoding(self._root[place]) == "null":
            hint = f"; choose a layer: {', '.join(self.layers)}" if self.layers else ""
            raise InputError(f"there is no {place}{hint}")
        stored = self._root[place]
        if not hasattr(stored, "keys"):
            return DenseRows(stored)
        encoding = _encoding(stored)
        if encoding == "dataframe":
            frame = StoredFrame(stored)
            return FrameRows([stored[name] for name in frame.columns], len(frame))
        if encoding not in ("csr_matrix", "csc_matrix"):
            raise InputError(f"{place} is stored as {encoding!r}; a matrix is needed")
        shape = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))
        if shape is None:
            shape = self.n_cells, len(self.var(element)[0])
        n_cells, n_genes = (int(size) for size in shape)
        arrays = stored["data"], stored["indices"], stored["indptr"]
        if encoding == "csr_matrix":
            return CompressedRows(*arrays, (n_cells, n_genes))
        return self._scratch.sorted_rows(
            self._path,
            place,
            (n_cells, n_genes),
            int(arrays[0].shape[0]),
            arrays[0].dtype,
            column_entries(*arrays, n_genes),
        )

    def sample(self, element: str, key: str | None = None) -> np.ndarray | None:
        place = _GROUPS.get(element, f"{element}/{key}")
        stored = self._root.get(place)
        if stored is None or _encoding(stored) == "null":
            return None
        if "data" in getattr(stored, "keys", tuple)():  # sparse, by cell or by gene
            check_numeric(stored["data"].dtype)
            return spread(stored["data"].shape[0], _SAMPLE, stored["data"].__getitem__)
        return sample_rows(self.rows(element, key))

    def var(self, element: str) -> Var:
        frame = StoredFrame(self._root["raw/var" if element == "raw" else "var"])
        return frame.index, frame.columns, frame.values

    def obsm_names(self, key: str) -> list[str] | None:
        stored = self._root["obsm"][key]
        if _encoding(stored) == "dataframe":
            return StoredFrame(stored).columns
        return None


def _encoding(stored: Any) -> str:
    """What a group or array is; h5sparse said it otherwise, as SeuratDisk and old anndata do."""
    told = as_text(stored.attrs.get("encoding-type"))
    h5sparse = as_text(stored.attrs.get("h5sparse_format"))
    return told or (f"{h5sparse}_matrix" if h5sparse else "")


class MemoryElements:
    """Elements of an AnnData object."""

    def __init__(self, adata: AnnData) -> None:
        self._adata = adata
        self.obs: Observations = FrameObservations(held(adata.obs))
        self.n_cells = adata.n_obs
        self.has_raw = adata.raw is not None
        # anndata 0.13 lists X among the layers, under the key None.
        self.layers = sorted(key for key in adata.layers.keys() if key is not None)
        self.obsm = sorted(adata.obsm.keys())

    def rows(self, element: str, key: str | None = None) -> Rows:
        adata = self._adata
        if adata.is_view and adata.isbacked:
            raise InputError(
                "a view of cells that are on disk, which anndata reads only as a whole; give "
                "view.to_memory()"
            )
        if adata.is_view or adata.isbacked:
            n_columns = adata.n_vars
            if element == "raw":
                n_columns = adata.raw.n_vars
            elif element == "obsm":
                n_columns = adata.obsm[key].shape[1]
            return ViewRows(adata, element, key, (adata.n_obs, n_columns))
        if element in ("layers", "obsm"):
            matrix = getattr(adata, element)[key]
        else:
            matrix = adata.X if element == "X" else adata.raw.X
        if matrix is None:
            hint = f"; choose a layer: {', '.join(self.layers)}" if self.layers else ""
            raise InputError(f"there is no X{hint}")
        matrix = held(matrix)
        if sp.issparse(matrix):
            matrix = matrix.tocsr()
            return CompressedRows(matrix.data, matrix.indices, matrix.indptr, matrix.shape)
        if hasattr(matrix, "iloc"):
            columns = [matrix.iloc[:, i].array for i in range(matrix.shape[1])]
            return FrameRows([_plain(column) for column in columns], matrix.shape[0])
        return DenseRows(matrix)

    def sample(self, element: str, key: str | None = None) -> np.ndarray | None:
        if element == "X" and self._adata.X is None:
            return None
        return sample_rows(self.rows(element, key))

    def var(self, element: str) -> Var:
        frame = held(self._adata.raw.var if element == "raw" else self._adata.var)
        columns = list(map(str, frame.columns))
        return list(map(str, frame.index)), columns, lambda name: frame.iloc[:, columns.index(name)]

    def obsm_names(self, key: str) -> list[str] | None:
        value = held(self._adata.obsm[key])
        return list(map(str, value.columns)) if hasattr(value, "columns") else None


def _plain(column: Any) -> Any:
    """A column of a data frame as NumPy; gaps of nullable numbers become NaN."""
    if getattr(column.dtype, "kind", "O") in "biuf" and hasattr(column.dtype, "numpy_dtype"):
        return column.to_numpy(dtype=float, na_value=float("nan"))
    return column.to_numpy()
