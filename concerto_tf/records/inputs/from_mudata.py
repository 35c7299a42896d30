"""MuData as an input: `.h5mu` and `.zarr` on disk, objects in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import Argument, InputError, choices
from concerto_tf.records.batch import RNA
from concerto_tf.records.inputs.features import MissingModality, split_place
from concerto_tf.records.inputs.from_anndata import (
    PLACES,
    Elements,
    MemoryElements,
    StoredElements,
    assemble,
    part_of,
    where_counts_are,
)
from concerto_tf.records.inputs.input import Input, InputPart
from concerto_tf.records.inputs.observations import (
    FrameObservations,
    Observations,
    StoredFrame,
)
from concerto_tf.records.inputs.rows import PlacedRows

if TYPE_CHECKING:
    from concerto_tf.records.inputs.by_cell import Scratch

# What the field's tools call a modality.
_CALLED = {RNA: (RNA, "gex"), "protein": ("protein", "prot", "adt")}


def is_stored_mudata(root: Any) -> bool:
    """Whether an open HDF5 file or zarr group looks like a MuData."""
    return "mod" in root and hasattr(root["mod"], "keys")


def open_stored_mudata(
    path: Path, root: Any, layer: str | None, modalities: dict[str, str] | None, scratch: Scratch
) -> Input:
    """An `.h5mu` or `.zarr` that is open; see `open_input`."""
    groups = root["mod"]
    obs = StoredFrame(root["obs"]) if "obs" in root else None

    def elements(name: str) -> Elements:
        return StoredElements(path, groups[name], scratch)

    return _open(path.name, list(groups), elements, obs, layer, modalities, path)


def open_mudata(mdata: Any, layer: str | None, modalities: dict[str, str] | None) -> Input:
    """A MuData object; see `open_input`."""

    def elements(name: str) -> Elements:
        return MemoryElements(mdata.mod[name])

    obs = FrameObservations(mdata.obs)
    return _open("MuData", list(mdata.mod), elements, obs, layer, modalities, None)


def _open(
    name: str,
    there: Sequence[str],
    elements: Callable[[str], Elements],
    obs: Observations | None,
    layer: str | None,
    modalities: dict[str, str] | None,
    path: Path | None,
) -> Input:
    asked = dict(modalities or {})
    rna = _the_rna(there, asked.pop(RNA, None))
    own = elements(rna)
    places, within = {}, {}
    for key, place in asked.items():
        kind, of = split_place(key, place, (*PLACES, "mod:NAME"))
        # A model looks for a modality in obsm, unless it is told otherwise.
        found = _called(of, there) if kind == "obsm" and of not in own.obsm else None
        if kind == "mod" or found is not None:
            places[key] = found or of
        else:
            within[key] = place
    notes: list[str] = []
    if modalities is None:
        places, notes = _by_themselves(there, rna, elements)
    elif rna != RNA:
        notes = [f"the RNA is its modality {rna!r}"]
    cells = assemble(name, own, layer, within, path)
    barcodes = cells.barcodes(0, cells.n_cells)
    parts = dict(cells.parts)
    for key, of in places.items():
        if of not in there:
            raise MissingModality(key, f"no modality {of!r}; {choices(of, there)}")
        parts[key], note = _placed(of, elements(of), barcodes)
        notes += note
    return Input(
        name,
        cells.n_cells,
        parts,
        cells.observations if obs is None else _Both(cells.observations, obs, rna, barcodes),
        path=path,
        layers=cells.layers,
        layer=cells.layer,
        notes=[*(f"{name}: {note}" for note in notes), *cells.notes],
        group=f"mod/{rna}",
    )


def _called(name: str, there: Sequence[str]) -> str | None:
    """The modality that goes by a name, or by one that means the same."""
    for same in (name.lower(), *_CALLED.get(name.lower(), ())):
        for other in there:
            if other.lower() == same:
                return other
    return None


def _the_rna(there: Sequence[str], place: str | None) -> str:
    """Which modality is the RNA."""
    if place is not None:
        _, name = split_place(RNA, place, ("mod:NAME",))
        if name not in there:
            raise InputError(f"no modality {name!r}; {choices(name, there)}")
        return name
    found = _called(RNA, there) or (there[0] if len(there) == 1 else None)
    if found is None:
        names = ", ".join(there) or "none"
        raise InputError(
            f"a MuData, none of whose modalities is called {' or '.join(_CALLED[RNA])} (there are: "
            f"{names}); say which is the RNA",
            Argument("modalities", {RNA: "mod:NAME"}),
        )
    return found


def _by_themselves(
    there: Sequence[str], rna: str, elements: Callable[[str], Elements]
) -> tuple[dict[str, str], list[str]]:
    """The modalities to read where none is named, and what to say: the protein, if it can be."""
    told = [f"the RNA is its modality {rna!r}"]
    places: dict[str, str] = {}
    protein = _called("protein", [name for name in there if name != rna])
    if protein is not None:
        own = elements(protein)
        values = own.sample(*where_counts_are(own)[:2])
        if values is not None and not (values < 0).any():
            places["protein"] = protein
            told.append(f"the protein is {protein!r}")
        else:
            told.append(f"{protein!r} has no counts, but negative values, and is left out")
    others = [name for name in there if name not in (rna, protein)]
    if others:
        as_named = f"{others[0]}=mod:{others[0]}"
        told.append(f"{', '.join(others)} left out (name one as a modality, {as_named})")
    return places, ["; ".join(told)]


def _placed(name: str, elements: Elements, barcodes: Sequence[str]) -> tuple[InputPart, list[str]]:
    """A modality with its cells where the RNA has them, and what to say."""
    part, notes = part_of(elements)
    own = elements.obs.barcodes(0, elements.n_cells)
    order = _order_of(own, barcodes, f"modality {name!r}")
    shared = int((order >= 0).sum())
    if not shared:
        raise InputError(
            f"modality {name!r}: none of its {len(own)} cells is among those of the RNA (it has "
            f"{own[0]!r}, the RNA {barcodes[0]!r}); give cells the same names in both"
        )
    if shared < len(own):
        notes = [*notes, f"{len(own) - shared} cells of {name!r} have no RNA and are left out"]
    rows = part.rows if np.array_equal(order, np.arange(len(own))) else PlacedRows(part.rows, order)
    return replace(part, rows=rows, where=f"mod/{name}/{part.where}"), notes


def _order_of(names: Sequence[str], barcodes: Sequence[str], what: str) -> np.ndarray:
    """Where cells are among some names, int64 [cells]; -1 for those that are not."""
    place = {name: i for i, name in enumerate(names)}
    if len(place) < len(names):
        raise InputError(f"{what}: two of its cells have one name; make them differ")
    return np.array([place.get(barcode, -1) for barcode in barcodes], np.int64)


class _Both:
    """obs of the RNA, and the columns that only the obs of the whole has.

    Args:
        own: of the RNA.
        whole: of the MuData, which may have other cells in another order.
        rna: the modality; what the whole holds of it ("rna:batch") is the RNA's own.
        barcodes: of the RNA.
    """

    def __init__(self, own: Observations, whole: Any, rna: str, barcodes: Sequence[str]) -> None:
        self._own, self._whole, self._barcodes = own, whole, barcodes
        self._order: np.ndarray | None = None
        known = {*own.columns, *(f"{rna}:{column}" for column in own.columns)}
        self.columns = [*own.columns, *(key for key in whole.columns if key not in known)]

    def barcodes(self, start: int, stop: int) -> list[str]:
        return self._own.barcodes(start, stop)

    def values(self, key: str) -> Any:
        import pandas as pd

        if key in self._own.columns:
            return self._own.values(key)
        values = pd.Series(self._whole.values(key)).reset_index(drop=True)
        if self._order is None:  # the same for all columns
            self._order = _order_of(self._whole.barcodes(0, len(values)), self._barcodes, "obs")
        lacking = (self._order < 0).any()
        return values.reindex(self._order) if lacking else values.iloc[self._order]
