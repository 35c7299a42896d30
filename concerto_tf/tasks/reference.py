"""The reference of a model: made from cells once, kept beside the model, used again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from concerto_tf._identity import identity_of_cells, identity_of_records, json_checksum
from concerto_tf._paths import as_path
from concerto_tf._progress import stage
from concerto_tf.errors import InputError
from concerto_tf.models.encoder import Encoder, geometry_of, looks_at
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.models.saving import FILE_NAME as MODEL
from concerto_tf.novelty import UNKNOWN
from concerto_tf.records import CellSet, Records
from concerto_tf.records.batch import label_key
from concerto_tf.records.cell_set import is_records
from concerto_tf.reference.cells import Labels, Reference, Values
from concerto_tf.reference.conformity import calibrated
from concerto_tf.reference.files import FOLDER, is_reference, load_reference, save_reference
from concerto_tf.reference.stated import stated
from concerto_tf.reference.voices import Genes
from concerto_tf.tasks.embed import Progress, whole_cells
from concerto_tf.tasks.hearing import read_reference
from concerto_tf.tasks.io.agreement import cell_batches, mean_depth, seen_modalities
from concerto_tf.tasks.io.reading import Reading, open_cells
from concerto_tf.tasks.io.values import (
    DENSE_FEATURES,
    SCALES,
    centered_log_ratio,
    normalized_parts,
    units_of,
)

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")


def model_folder(model: Any) -> Path | None:
    """The folder of a model that was given as one, or as the ``model.keras`` in it, else None.

    A reference is kept there.
    """
    if not isinstance(model, str | Path):
        return None
    path = as_path(model)
    if path.is_dir():
        return path
    return path.parent if path.name == MODEL and path.is_file() else None


def find_reference(
    model: Encoder,
    folder: Path | None,
    cells: Reference | Records | str | Path | AnnData | None,
    reading: Reading | None = None,
    *,
    label_keys: Sequence[str] = (),
    scale: str | None = None,
    progress: Progress | None = None,
) -> Reference:
    """The reference to compare with: the one kept beside the model where it fits, or a new one.

    One that is made of a model in a folder is kept there, in ``reference/``. It is used again if
    the model and the cells are the same ones (files by name, size and time, records by their
    checksums; cells in memory are embedded every time). Labels and values that it lacks are added
    to those it has.

    Args:
        model: The model that embeds.
        folder: The model's folder, if it has one.
        cells: The reference's cells, or a `Reference`; ``None`` for the one that is kept.
        reading: How to read them; its modalities are those whose values are needed.
        label_keys: Keys of the labels that are needed.
        scale: Scale of the modalities' values, see `read_values`; ``None`` for ``log``, or where
            no cells are given for what is kept.
        progress: Called with the number of cells embedded and of all cells.

    Returns:
        The reference, with these labels and values.

    Raises:
        InputError: There is no such reference, it is damaged, or of another model.
    """
    own, reading = fingerprint(model), reading or Reading()
    modalities = dict(reading.modalities or {})
    if isinstance(cells, Reference):
        if cells.model and cells.model != own:
            raise InputError(
                "the reference was embedded by another model; embed both with one model"
            )
        origin, spread = geometry_of(model)
        if cells.model and not (
            np.array_equal(cells.embedded.origin, origin)
            and np.array_equal(np.array(cells.embedded.spread, object), np.array(spread, object))
        ):
            raise InputError(
                "the reference has another origin or spread than the model; make it with "
                "Reference(..., origin=model.geometry.origin, spread=model.geometry.spread)"
            )
        return _with_all(cells, label_keys, modalities, scale)
    # In records every modality has one place.
    wanted = {name: "" if is_records(cells) else of for name, of in modalities.items()}
    kept = None if folder is None else folder / FOLDER
    if cells is None:
        if kept is None or not is_reference(kept):
            where = "the model" if folder is None else str(folder)
            raise InputError(
                f"{where}: no reference is kept there yet; give the reference's cells", "reference"
            )
        found = load_reference(kept)
        if found.model != own:
            raise InputError(
                f"{kept}: belongs to another model (this one was trained again or replaced); give "
                "the reference's cells again",
                "reference",
            )
        # Those that the model looks at itself are in the embeddings, and may lie elsewhere here.
        others = {name: of for name, of in wanted.items() if name not in looks_at(model)}
        return _with_all(found, label_keys, others, scale)
    # Embeddings rest on where the model's own modalities lie, too.
    own_places = {
        f"modality {name}": of
        for name, of in wanted.items()
        if name in looks_at(model) and of not in ("", f"obsm:{name}")
    }
    identity = _identity(cells, {**vars(reading), "modalities": None, **own_places}, folder)
    if kept is not None and kept.exists() and not is_reference(kept):
        _log.warning("%s: is no reference and left alone; this one is not kept", kept)
        kept = None
    made = None
    if kept is not None and kept.exists() and identity:
        try:
            found = load_reference(kept)
        except InputError as error:
            _log.warning("%s; making it anew", error.message)
        else:
            if found.model == own and found.cells == identity:
                made = found
                label_keys = [key for key in label_keys if not _learned(found, key)]
                held = {
                    name: of.place
                    for name, of in found.values.items()
                    if of.units not in SCALES.values() or of.units == SCALES.get(scale or "log")
                }
                wanted = {name: of for name, of in wanted.items() if held.get(name) != of}
                if not label_keys and not wanted:
                    _log.info("%s: %d reference cells, embedded before", kept, found.n_cells)
                    return found
                _log.info("%s: adds %s", kept, ", ".join([*label_keys, *wanted]))
    with open_cells(
        model, cells, replace(reading, modalities=wanted), label_keys=label_keys, further=True
    ) as records:
        if made is None:
            made = make_reference(model, records, label_keys, list(wanted), scale, progress)
        else:
            made.labels.update(_read_labels(records, label_keys))
            if label_keys:
                _, genes = _read(model, records, made.labels, progress)
                _learn(made, label_keys, genes)
            made.values.update({name: read_values(records, name, scale) for name in wanted})
    for name, place in wanted.items():
        made.values[name] = replace(made.values[name], place=place)
    made.cells = identity
    if kept is not None:
        for key in made.labels:
            if (made.labels[key].codes >= 0).all():
                calibrated(made, key)
            stated(made, key)
        try:
            save_reference(made, kept)
        except OSError as error:
            _log.warning("%s: the reference is not kept (%s)", kept, error.strerror)
    return made


def make_reference(
    model: Encoder,
    records: CellSet,
    label_keys: Sequence[str] = (),
    modalities: Sequence[str] = (),
    scale: str | None = None,
    progress: Progress | None = None,
) -> Reference:
    """Embeds cells as a reference.

    Args:
        model: The model.
        records: Cells with the model's genes.
        label_keys: Keys of the labels to keep. Cells labelled ``unknown`` count as unlabelled.
        modalities: Further modalities whose values to keep.
        scale: Their scale, see `read_values`.
        progress: Called with the number of cells embedded and of all cells.

    Returns:
        The reference.

    Raises:
        InputError: No cell has a label under one of the keys.
    """
    labels = _read_labels(records, label_keys)
    z, genes = _read(model, records, labels, progress)
    made = Reference(
        z,
        labels,
        {name: read_values(records, name, scale) for name in modalities},
        model=fingerprint(model),
        depth=mean_depth(cell_batches(model, records), seen_modalities(model, records)[0]),
        **geometry_of(model)._asdict(),
    )
    _learn(made, labels, genes)
    return made


def _learned(reference: Reference, key: str) -> bool:
    """Whether a reference has labels and, of several, what tells them."""
    if key not in reference.labels:
        return False
    codes = reference.labels[key].codes
    return key in reference.voices or len(np.unique(codes[codes >= 0])) < 2


def _learn(reference: Reference, keys: Iterable[str], genes: Genes) -> None:
    with stage("labels learned from the reference"):
        for key in keys:
            reference.learn(key, genes)


def _read(
    model: Encoder, records: CellSet, labels: Mapping[str, Labels], progress: Progress | None
) -> tuple[np.ndarray, Genes]:
    """All cells of a set as a reference, read once."""
    data, measured = whole_cells(model, records, progress)
    with records.naming_damage():
        return read_reference(model, data, measured, labels, records.obs())


def _read_labels(records: CellSet, keys: Sequence[str]) -> dict[str, Labels]:
    """Labels of all cells in their order, by key."""
    known = records.obs() if keys else {}
    labels = {}
    for key in keys:
        names = tuple(name for name in records.labels[key] if name != UNKNOWN)
        if len(names) < len(records.labels[key]):
            _log.info("%s: reference cells labelled %r count as unlabelled", key, UNKNOWN)
        if not names:
            raise InputError(f"the reference's {key!r} is empty; name a column with labels")
        place = {name: code for code, name in enumerate(names)}
        codes = [place.get(name, -1) for name in known[label_key(key)]]
        labels[key] = Labels(np.array(codes, np.int32), names)
    return labels


def read_values(records: CellSet, modality: str, scale: str | None = None) -> Values:
    """Normalized values of a further modality of all cells.

    Args:
        records: Cells that have it.
        modality: Its name.
        scale: Of counts: ``log`` (the default) for log1p of what is scaled to 10,000 per cell,
            ``clr`` for the centered log ratio, ``counts`` for what was counted. What is no counts
            is taken as stored.

    Returns:
        The values in the order of the cells.

    Raises:
        InputError: There is no such scale, or it does not suit the modality.
    """
    scale = scale or "log"
    units = units_of(records, modality, scale)
    dense = records.modalities[modality].n_genes <= DENSE_FEATURES
    rows, parts = [], []
    for row, part in normalized_parts(records, modality, scaled=scale == "log"):
        held = part.toarray() if dense else part
        parts.append(centered_log_ratio(held) if scale == "clr" else held)
        rows.append(row)
    order = np.argsort(np.concatenate(rows))
    matrix = np.concatenate(parts) if dense else sp.vstack(parts, "csr")
    vocabulary = records.vocabulary_of(modality)
    return Values(matrix[order], tuple(vocabulary.symbols or vocabulary.ids), units)


def _with_all(
    reference: Reference,
    label_keys: Sequence[str],
    modalities: Mapping[str, str],
    scale: str | None,
) -> Reference:
    for key in label_keys:
        reference.labels_of(key)
    for name, place in modalities.items():
        held = reference.values_of(name).place
        if held and place and held != place:
            raise InputError(
                f"the reference holds modality {name!r} of {held}, not of {place}; name that "
                "place, or give the reference's cells again",
                "reference",
            )
    for name, of in reference.values.items():
        asked = scale is not None and (not modalities or name in modalities)
        if asked and of.units != SCALES.get(scale or ""):
            raise InputError(
                f"the reference holds modality {name!r} as {of.units}; leave out the scale, or "
                "give the reference's cells again",
                "reference",
            )
    return reference


def _identity(cells: Any, options: Mapping[str, Any], folder: Path | None) -> str:
    """What tells the cells of a reference apart; empty where they are in memory."""
    if is_records(cells):
        return identity_of_records(cells if isinstance(cells, Records) else Records(cells))
    if not isinstance(cells, str | Path):
        return ""
    asked = {key: str(value) for key, value in options.items() if value}
    return json_checksum([identity_of_cells(cells, without=folder), asked])
