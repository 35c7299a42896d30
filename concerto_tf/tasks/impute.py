"""Values of a modality that query cells lack, from their nearest reference cells."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from concerto_tf._calls import checked
from concerto_tf._files import atomic
from concerto_tf._paths import is_hdf5, open_hdf5
from concerto_tf.errors import InputError
from concerto_tf.models.encoder import Encoder
from concerto_tf.records import Records, open_input
from concerto_tf.records.batch import RNA
from concerto_tf.records.cell_set import is_records
from concerto_tf.reference.cells import Reference
from concerto_tf.tasks.embed import KEY, Progress, encoder_of
from concerto_tf.tasks.io.provenance import found_out, recorded, taken, uses_reference
from concerto_tf.tasks.io.reading import Reading, key_where_there, open_cells
from concerto_tf.tasks.io.result import check_target, write_found
from concerto_tf.tasks.matching import match, reopened
from concerto_tf.tasks.reference import find_reference, model_folder

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


#: Neighbours that are averaged, where the reference has as many; more smooth more. See `impute`.
K = 30
#: How sharply nearer neighbours count for more: weights are exp(cosine / SHARPNESS).
SHARPNESS = 0.05
#: Key of uns that says what was imputed, and in which units.
_IMPUTED = "concerto_imputed"
_ROWS, _FIT_ROWS = 1024, 65_536
#: Ridge of the linear fit, in the mean variance of a unit of the embedding.
_RIDGE = 1.0


@recorded("impute")
@checked
def impute(
    model: Encoder | str | Path,
    query: Records | str | Path | AnnData,
    out: str | Path | None = None,
    *,
    reference: Reference | Records | str | Path | AnnData | None = None,
    modalities: Mapping[str, str] | None = None,
    k: int | None = None,
    scale: str | None = None,
    source_key: str | None = None,
    layer: str | None = None,
    reference_source_key: str | None = None,
    reference_layer: str | None = None,
    drop_empty: bool = False,
    orthologs: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, pd.DataFrame]:
    """Gives query cells a modality that only the reference was measured for.

    Each value is the mean over the k most similar reference cells that have the modality, nearer
    ones counting for more. Of counts the values are on the scale that is asked for; otherwise they
    are as they were given. Neighbours are found without that
    modality, even where the query was measured for it and the model looks at it.

    Args:
        model: A trained model, or its path. It need not know the modality. In its folder the
            embedded reference is kept.
        query: Cells to impute; what `embed` takes.
        out: The `.h5ad` to write: the query with ``obsm[<modality>]`` (a table with the features'
            names), ``uns["concerto_imputed"]`` (the units by modality) and ``obsm["X_concerto"]``.
        reference: Reference cells that have the modality, or a `Reference`; ``None`` for the one
            kept with the model.
        modalities: What to impute, and where it lies in the reference, as `convert` takes it:
            ``{"protein": "obsm:protein"}``. ``None``: all that the reference holds, or if there is
            only a file the tables in its obsm.
        k: Number of neighbours to average; by default 30, or all where fewer cells have it.
        scale: Of counts: ``log`` for log1p of what is scaled to 10,000 per cell, ``clr`` for the
            centered log ratio (of antibodies: log1p of the counts less its mean in the cell),
            ``counts`` for what was counted. By default ``log``, or what the kept reference holds.
        reference_source_key: As ``source_key``, of the reference; by default the same where the
            reference has it.
        reference_layer: As ``layer``, of the reference.
        source_key, layer, drop_empty, orthologs, progress: As in `embed`, of the query.

    Returns:
        For each modality one row per query cell and one column per feature, float32;
        ``attrs["units"]`` says what the values are.

    Raises:
        InputError: Model, query and reference do not fit together, a modality is not there or
            empty, the query holds measured values where ``out`` is to have imputed ones, or an
            argument is unsuitable.
    """
    import pandas as pd

    if k is not None and k < 1:
        raise InputError(f"k is {k}; it must be at least 1")
    if modalities is not None and not modalities:
        raise InputError("no modality is named; name one as in protein=obsm:protein")
    if out is not None:
        check_target(out)
    folder, model = model_folder(model), encoder_of(model)
    if modalities is None:
        modalities = _modalities_of(reference)
    if out is not None:
        _check_unmeasured(query, modalities or ())
    of_reference = Reading(
        reference_source_key or key_where_there(reference, source_key),
        reference_layer,
        drop_empty,
        modalities,
    )
    held = find_reference(model, folder, reference, of_reference, scale=scale, progress=progress)
    wanted = list(modalities or held.values)
    if not wanted:
        raise InputError(
            "the reference kept with the model holds no further modality; give the reference's "
            "cells, and the modality as in protein=obsm:protein"
        )
    for name in wanted:
        held.values_of(name)
    uses_reference(held)
    taken(k=k or K, modalities=modalities or dict.fromkeys(wanted, "kept with the model"))
    found_out(imputed={name: held.values_of(name).units for name in wanted})
    if out is not None:
        _check_unmeasured(query, wanted)
    # What the model itself looks at beside the RNA is found by its name.
    reading = Reading(source_key, layer, drop_empty, orthologs=orthologs)
    with open_cells(model, query, reading) as records:
        query_cells = records.without(wanted)
        # The values are found already, and may be of a modality that the model does not know.
        cells = reopened(model, reference, replace(of_reference, modalities=None))
        of_values = held.by_neighbours()  # nobody asks for its labels
        seen = match(model, query_cells, of_values, cells=cells, how="none", progress=progress)
        held, z = seen.reference or held, seen.heard.z
        names = list(records.obs()["cell"])
        found = {}
        for name in wanted:
            values = held.values_of(name)
            found[name] = pd.DataFrame(
                smooth(held, z, name, k), pd.Index(names, name="cell"), list(values.features)
            )
            found[name].attrs["units"] = values.units
        if out is not None:
            # Under the cells' own names, which are not unique in every file.
            obsm = {name: table.set_axis(names) for name, table in found.items()}
            # The file takes its name only when all is in it.
            with atomic(out) as temporary:
                write_found(query, temporary, records, obsm={KEY: z, **obsm}, layer=layer)
                _note(temporary, {name: table.attrs["units"] for name, table in found.items()})
    return found


def smooth(reference: Reference, z: np.ndarray, modality: str, k: int | None = None) -> np.ndarray:
    """Means of a modality's values over the nearest reference cells that have it.

    Neighbours lie to one side of a cell, most of all at the rim of a cell type. So what a linear
    fit of the values says of the difference between the cell and their mean is added.

    Args:
        reference: The reference.
        z: Embeddings of the query [n, d].
        modality: Name of the modality.
        k: Number of neighbours; None for 30, or all cells that have the modality where fewer.

    Returns:
        Values [n, F], float32.

    Raises:
        InputError: The modality is not there or empty, or k exceeds the cells that have it.
    """
    values = reference.values_of(modality)
    has = np.flatnonzero(np.asarray((values.matrix != 0).sum(axis=1)).ravel())
    if not len(has):
        raise InputError(
            f"modality {modality!r} is empty in the reference: no cell has a value; name another "
            "place for it"
        )
    part, matrix = reference, values.matrix
    if len(has) < reference.n_cells:
        part, matrix = reference.part(has), matrix[has]
    if k is None:
        k = min(K, len(has))
    index, cosine = part.neighbours(z, k)
    weight = np.exp((cosine - cosine[:, :1]) / SHARPNESS)
    weight /= weight.sum(axis=1, keepdims=True)
    slope = _slope(part, matrix)
    own = part.embedded.compared(z) - part.embedded.middle
    least = min(0.0, float(matrix.min()))
    out = np.empty((len(z), len(values.features)), np.float32)
    for start in range(0, len(z), _ROWS):
        rows = slice(start, start + _ROWS)
        n = len(index[rows])
        mean = sp.csr_matrix(
            (weight[rows].ravel(), index[rows].ravel(), np.arange(0, n * k + 1, k)),
            shape=(n, part.n_cells),
        )
        product = mean @ matrix
        product = product.toarray() if sp.issparse(product) else product
        near = part.embedded.from_middle(index[rows].ravel()).reshape(n, k, -1)
        aside = own[rows] - np.einsum("nk,nkd->nd", weight[rows], near)
        out[rows] = np.maximum(product + aside @ slope, least)
    return out


def _slope(reference: Reference, matrix: Any) -> np.ndarray:
    """How values [N, F] change along the units of the embedding, by ridge regression [d, F]."""
    n, d = reference.n_cells, len(reference.embedded.origin)
    square, cross, mean = np.zeros((d, d)), np.zeros((d, matrix.shape[1])), np.zeros(d)
    for start in range(0, n, _FIT_ROWS):
        z = reference.embedded.from_middle(slice(start, start + _FIT_ROWS))
        square += z.T @ z
        cross += (matrix[start : start + _FIT_ROWS].T @ z).T
        mean += z.sum(axis=0) / n
    square -= n * np.outer(mean, mean)
    cross -= np.outer(mean, np.asarray(matrix.sum(axis=0)).ravel())
    ridge = _RIDGE * max(np.trace(square) / d, 1e-12)
    return np.linalg.solve(square + ridge * np.eye(d), cross).astype(np.float32)


def _modalities_of(
    reference: Reference | Records | str | Path | AnnData | None,
) -> dict[str, str] | None:
    """The modalities that reference cells hold; None where the kept reference is to say."""
    if reference is None:
        return None
    if isinstance(reference, Reference):
        return {name: "" for name in reference.values}
    if is_records(reference):
        records = reference if isinstance(reference, Records) else Records(reference)
        names = [name for name in records.modalities if name != RNA]
        found = {name: "" for name in names}
    else:
        names = _tables(reference) or _of_a_mudata(reference)
        found = {name: f"obsm:{name}" for name in names}
    if not found:
        raise InputError(
            f"{reference if isinstance(reference, str | Path) else 'the reference'}: holds no "
            "further modality; name its place as in protein=obsm:protein"
        )
    return found


def _tables(cells: str | Path | AnnData) -> list[str]:
    """Names of the tables (values with named columns) in obsm of a file or an AnnData."""
    import pandas as pd

    if not isinstance(cells, str | Path):
        return [name for name, held in cells.obsm.items() if isinstance(held, pd.DataFrame)]
    if not is_hdf5(cells):
        return []
    with open_hdf5(cells) as file:
        obsm = file["obsm"] if "obsm" in file else {}
        kinds = {name: held.attrs.get("encoding-type") for name, held in obsm.items()}
    return [name for name, kind in kinds.items() if kind == "dataframe"]


def _of_a_mudata(cells: str | Path | AnnData) -> list[str]:
    """Modalities beside the RNA that cells have by themselves, as those of a MuData."""
    with open_input(cells) as opened:
        return [name for name in opened.modalities if name != RNA]


def _check_unmeasured(query: Any, modalities: Collection[str]) -> None:
    """Raises InputError where imputed values would take the place of measured ones."""
    measured, imputed = _names_in(query)
    for name in modalities:
        if name in measured and name not in imputed:
            raise InputError(
                f"the query has obsm[{name!r}] already, which imputed values would replace; remove "
                "or rename it there, impute another modality, or write no file"
            )


def _names_in(query: Any) -> tuple[set[str], set[str]]:
    """Keys of a query's obsm, and those of them that `impute` wrote earlier."""
    if is_records(query):
        return set(), set()  # the file that is written holds nothing of them
    if hasattr(query, "mod"):
        return set(), set()  # nor of its other modalities
    if not isinstance(query, str | Path):
        return set(query.obsm.keys()), set(query.uns.get(_IMPUTED, ()))
    if not is_hdf5(query):
        return set(), set()
    with open_hdf5(query) as file:
        if "mod" in file:
            return set(), set()
        imputed = f"uns/{_IMPUTED}"
        return set(file.get("obsm", ())), set(file[imputed] if imputed in file else ())


def _note(path: str | Path, units: Mapping[str, str]) -> None:
    """Adds the units of what was imputed to uns of a file."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        uns = file.require_group("uns")
        old = {}
        if _IMPUTED in uns:
            old = {name: held.asstr()[()] for name, held in uns[_IMPUTED].items()}
        write_elem(uns, _IMPUTED, {**old, **units})
