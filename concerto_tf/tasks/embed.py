"""Embeddings of cells by a trained model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel, load_model
from concerto_tf.records import Records, convert, open_input
from concerto_tf.records.manifest import FILE_NAME
from concerto_tf.tasks.agreement import (
    check_measured,
    check_units,
    check_vocabulary,
    seen_modalities,
    vocabularies_of,
)
from concerto_tf.tasks.result import check_target, write_cells, write_result

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
KEY = "X_concerto"
_BATCH_CELLS = 256
Progress = Callable[[int, int], None]


def embed(
    model: ContrastiveModel | str | Path,
    cells: Records | str | Path | AnnData,
    out: str | Path | None = None,
    *,
    source_key: str | None = None,
    layer: str | None = None,
    drop_empty: bool = False,
    modalities: Mapping[str, str] | None = None,
    orthologs: str | Path | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Embeds cells and writes them with ``obsm["X_concerto"]`` where asked to.

    Cells of a source the model knows are normalised by its statistics of that source, others by
    those pooled over all sources. Genes that the cells were not measured for, and modalities that
    they lack, are taken at the mean, and said.

    Args:
        model: A trained model, or its path.
        cells: Records, or anything that `convert` takes; genes are matched by name, and what the
            model does not know is left out.
        out: The `.h5ad` to write; ``None`` writes nothing.
        source_key: Column of obs that names the source of each cell.
        layer: Layer that holds the counts.
        drop_empty: Leave out cells without any count instead of refusing them.
        modalities: Where the model's further modalities lie, as `convert` takes it; by default
            each is looked for in obsm under its own name.
        orthologs: Table of orthologs for cells of another species.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The embeddings [n, d], float32, in the order of the cells.

    Raises:
        InputError: Model and cells do not fit together, or one of them is unsuitable.
    """
    if out is not None:
        check_target(out)
    model = encoder_of(model)
    with as_records(
        model, cells, source_key, layer, drop_empty, modalities=modalities, orthologs=orthologs
    ) as records:
        z = embed_records(model, records, progress)
        known = {} if out is None else records.obs()
    if out is None:
        return z
    if is_records(cells):
        labels = {
            key.removeprefix("label/"): values
            for key, values in known.items()
            if key.startswith("label/")
        }
        write_cells(out, known["cell"], {"source": known["source"], **labels}, {KEY: z})
    else:
        write_result(
            [cells], out, obsm={KEY: z}, obs={}, names=known["cell"], rows=known["row"], layer=layer
        )
    return z


def encoder_of(model: Any) -> ContrastiveModel:
    """The model that makes the embeddings: of a path, a model with labels, or itself."""
    if isinstance(model, str | Path):
        model = load_model(model)
    return getattr(model, "encoder", model)


def embed_records(
    model: ContrastiveModel,
    records: Records,
    progress: Progress | None = None,
    *,
    observed: bool = True,
) -> np.ndarray:
    """Embeddings of all cells of records.

    Args:
        model: A trained model.
        records: Records with the model's genes.
        progress: Called with the number of cells done and of all cells.
        observed: Whether genes that were not measured are taken at their mean. Not so where the
            model has learned these cells' own statistics.

    Returns:
        The embeddings [n, d], float32, in the order of the cells.
    """
    check_vocabulary(model, records)
    check_units(model, records)
    data = records.dataset(
        min(_BATCH_CELLS, records.n_cells), genes=model.genes, sources=model.sources, packed=True,
        modalities=seen_modalities(model, records),
    )  # fmt: skip
    measured = check_measured(model, records)
    with records.naming_damage():
        return model.embed(
            _counted(data, records.n_cells, progress), measured if observed else None
        )


def is_records(cells: Any) -> bool:
    """Whether something is records or their folder."""
    if isinstance(cells, Records):
        return True
    return isinstance(cells, str | Path) and (Path(cells) / FILE_NAME).is_file()


@contextmanager
def as_records(
    model: ContrastiveModel,
    cells: Records | str | Path | AnnData,
    source_key: str | None = None,
    layer: str | None = None,
    drop_empty: bool = False,
    *,
    label_keys: Sequence[str] = (),
    modalities: Mapping[str, str] | None = None,
    orthologs: str | Path | None = None,
) -> Iterator[Records]:
    """Records of cells with the genes of a model; temporary ones where cells are given.

    Args:
        model: The model.
        cells: Records, or anything that `convert` takes.
        source_key: Column of obs that names the source of each cell.
        layer: Layer that holds the counts.
        drop_empty: Leave out cells without any count instead of refusing them.
        label_keys: Columns of obs to keep as labels.
        modalities: Where the model's further modalities lie; see `embed`. Others are refused.
        orthologs: Table of orthologs for cells of another species.

    Yields:
        The records.
    """
    if is_records(cells):
        yield cells if isinstance(cells, Records) else Records(cells)
        return
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        records = convert(
            cells, folder, like=vocabularies_of(model), source_key=source_key, layer=layer,
            drop_empty=drop_empty, label_keys=label_keys, orthologs=orthologs,
            modalities=places_of(model, cells, modalities),
        )  # fmt: skip
        records.name = ", ".join(str(item["name"]) for item in records.manifest.inputs)
        yield records


def places_of(
    model: ContrastiveModel, cells: Any, given: Mapping[str, str] | None
) -> dict[str, str]:
    """Where the modalities that a model looks at lie in the cells."""
    places = dict(given or {})
    for name in places:
        if name not in model.looks_at:
            known = ", ".join(model.looks_at)
            raise InputError(f"modality {name}: the model does not know it; it looks at {known}")
    guesses = {
        name: f"obsm:{name}" for name in model.looks_at if name != "rna" and name not in places
    }
    if guesses:
        with open_input(cells, modalities=guesses, lenient=model.modality == "rna") as found:
            for name, place in guesses.items():
                if name in found.modalities:
                    places[name] = place
                else:
                    _log.info(
                        "%s: has no obsm[%r]; %s is taken as missing (--modality %s=PLACE names "
                        "another place)", found.name, name, name, name,
                    )  # fmt: skip
    return places


def _counted(data: Any, n_cells: int, progress: Progress | None) -> Iterator[Any]:
    done = 0
    for batch in data:
        yield batch
        done = min(n_cells, done + int(batch["row"].shape[0]))
        if progress is not None:
            progress(done, n_cells)
