"""Embeddings of cells by a trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._paths import as_path, is_remote
from concerto_tf.errors import InputError
from concerto_tf.models import Classifier, load_model
from concerto_tf.models.encoder import Encoder, embed_batches, embed_in_order
from concerto_tf.records import CellSet, Records
from concerto_tf.records.batch import ROW
from concerto_tf.tasks.io.agreement import cell_batches, check_agreement, check_measured
from concerto_tf.tasks.io.on_disk import RowsOnDisk
from concerto_tf.tasks.io.provenance import recorded, uses_model
from concerto_tf.tasks.io.reading import Reading, open_cells
from concerto_tf.tasks.io.result import check_target, write_found

if TYPE_CHECKING:
    from anndata import AnnData

KEY = "X_concerto"
Progress = Callable[[int, int], None]


@recorded("embed")
@checked
def embed(
    model: Encoder | str | Path,
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

    Cells of a source the model knows are normalized by its statistics of that source, others by
    those pooled over all sources. Genes that were not measured, and modalities that a cell lacks,
    stand at their mean; the log names them.

    Args:
        model: A trained model, or its path.
        cells: Records, or anything that `convert` takes; genes are matched by name, and what the
            model does not know is left out.
        out: The `.h5ad` to write; ``None`` writes nothing.
        source_key: Column of obs that names the source of each cell.
        layer: Layer that holds the counts; by default as in `convert`.
        drop_empty: Leave out cells without any count instead of raising an error.
        modalities: Where the model's further modalities lie, as `convert` takes it; by default
            each is looked for in obsm under its own name.
        orthologs: Table of orthologs for cells of another species.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The embeddings [n, d], float32, in the order of the cells.

    Raises:
        InputError: Model and cells do not fit together, or one of them is unsuitable.
    """
    reading = Reading(source_key, layer, drop_empty, modalities, orthologs)
    if out is not None:
        return write_embeddings(model, cells, out, reading, progress).array
    model = encoder_of(model)
    with open_cells(model, cells, reading) as found:
        return embed_records(model, found, progress)


@recorded("embed")
@checked
def write_embeddings(
    model: Encoder | str | Path,
    cells: Records | str | Path | AnnData,
    out: str | Path,
    reading: Reading,
    progress: Progress | None = None,
) -> RowsOnDisk:
    """Embeds cells into a file; of the cells, memory holds names and labels alone.

    Args:
        model, cells: As in `embed`.
        out: The `.h5ad` to write.
        reading: How to read them.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The embeddings, on disk.
    """
    check_target(out)
    model = encoder_of(model)
    with open_cells(model, cells, reading) as read:
        place = as_path(out)
        z = RowsOnDisk(model.embedding_dim, None if is_remote(place) else place.parent)
        data, measured = whole_cells(model, read, progress)
        with read.naming_damage():
            for rows, found in embed_batches(model, data, measured):
                z.put(rows, found)
        write_found(cells, out, read, obsm={KEY: z}, layer=reading.layer)
    return z


def encoder_of(model: Any) -> Encoder:
    """The model that makes the embeddings: of a path, a model with labels, or itself.

    Raises:
        InputError: It is none that embeds cells.
    """
    if isinstance(model, str | Path):
        model = load_model(model)
    given = model
    if isinstance(model, Classifier):
        model = model.encoder
    if not isinstance(model, Encoder):
        raise InputError(
            f"a {type(model).__name__} does not embed cells; it needs the members of "
            "concerto_tf.models.encoder.Encoder"
        )
    uses_model(given)
    return model


def embed_records(
    model: Encoder,
    records: CellSet,
    progress: Progress | None = None,
    *,
    fill_unmeasured: bool = True,
) -> np.ndarray:
    """Embeddings of all cells of a set.

    Args:
        model: A trained model.
        records: Cells with the model's genes.
        progress: Called with the number of cells done and of all cells.
        fill_unmeasured: Whether genes that were not measured are taken at their mean. Not so
            where the model has learned these cells' own statistics.

    Returns:
        The embeddings [n, d], float32, in the order of the cells.
    """
    data, measured = whole_cells(model, records, progress)
    with records.naming_damage():
        return embed_in_order(model, data, measured if fill_unmeasured else None)


def whole_cells(
    model: Encoder, records: CellSet, progress: Progress | None = None
) -> tuple[Iterator[Any], dict[str, np.ndarray] | None]:
    """All cells of a set as a model takes them.

    Args:
        model: A trained model.
        records: Cells with the model's genes.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The batches, and which genes were measured, bool [G] by modality; None where all were.
    """
    check_agreement(model, records)
    data = cell_batches(model, records, packed=True)
    return _counted(data, records.n_cells, progress), check_measured(model, records)


def _counted(data: Any, n_cells: int, progress: Progress | None) -> Iterator[Any]:
    done = 0
    for batch in data:
        yield batch
        done = min(n_cells, done + int(batch[ROW].shape[0]))
        if progress is not None:
            progress(done, n_cells)
