"""Embeddings of cells by a trained model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel, load_model
from concerto_tf.records import Records, Vocabulary, convert
from concerto_tf.records.manifest import FILE_NAME
from concerto_tf.tasks.result import check_target, write_cells, write_result
from concerto_tf.tasks.train import check_units

if TYPE_CHECKING:
    from anndata import AnnData

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
    progress: Progress | None = None,
) -> np.ndarray:
    """Embeds cells and writes them with ``obsm["X_concerto"]`` where asked to.

    Cells of a source the model knows are normalised by its statistics of that source, others by
    those pooled over all sources.

    Args:
        model: A trained model, or its path.
        cells: Records, or anything that `convert` takes; genes are matched by name, and what the
            model does not know is left out.
        out: The `.h5ad` to write; ``None`` writes nothing.
        source_key: Column of obs that names the source of each cell.
        layer: Layer that holds the counts.
        drop_empty: Leave out cells without any count instead of refusing them.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The embeddings [n, d], float32, in the order of the cells.

    Raises:
        InputError: Model and cells do not fit together, or one of them is unsuitable.
    """
    if out is not None:
        check_target(out)
    if not isinstance(model, ContrastiveModel):
        model = load_model(model)
    with as_records(model, cells, source_key, layer, drop_empty) as records:
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


def embed_records(
    model: ContrastiveModel, records: Records, progress: Progress | None = None
) -> np.ndarray:
    """Embeddings of all cells of records.

    Args:
        model: A trained model.
        records: Records with the model's genes.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The embeddings [n, d], float32, in the order of the cells.
    """
    check_vocabulary(model, records)
    check_units(model, records)
    data = records.dataset(
        min(_BATCH_CELLS, records.n_cells), genes=model.genes, sources=model.sources, packed=True
    )
    with records.naming_damage():
        return model.embed(_counted(data, records.n_cells, progress))


def check_vocabulary(model: ContrastiveModel, records: Records) -> None:
    """Raises InputError if records do not hold the model's genes in the model's order."""
    if tuple(records.vocabulary.ids) != model.vocabulary:
        raise InputError(
            f"{records.path}: its {records.n_genes} genes are not the {len(model.vocabulary)} of "
            "the model; convert the cells again with --like MODEL"
        )


def vocabulary_of(model: ContrastiveModel) -> Vocabulary:
    """The genes of a model as `convert` takes them."""
    return Vocabulary(model.vocabulary, model.symbols)


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
) -> Iterator[Records]:
    """Records of cells with the genes of a model; temporary ones where cells are given."""
    if is_records(cells):
        yield cells if isinstance(cells, Records) else Records(cells)
        return
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        yield convert(
            cells, folder, like=vocabulary_of(model), source_key=source_key, layer=layer,
            drop_empty=drop_empty,
        )  # fmt: skip


def _counted(data: Any, n_cells: int, progress: Progress | None) -> Iterator[Any]:
    done = 0
    for batch in data:
        yield batch
        done = min(n_cells, done + int(batch["row"].shape[0]))
        if progress is not None:
            progress(done, n_cells)
