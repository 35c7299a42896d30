"""Opens the cells of a task, with the genes of a model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf.errors import Argument, InputError, choices
from concerto_tf.models.encoder import looks_at
from concerto_tf.records import Records, convert, open_input
from concerto_tf.records.batch import RNA
from concerto_tf.records.cell_set import CellSet, is_records
from concerto_tf.records.conversion.convert import check_modality_names
from concerto_tf.records.conversion.joining import join
from concerto_tf.records.genes.orthologs import read_orthologs
from concerto_tf.records.input_cells import HELD_BYTES, InputCells
from concerto_tf.records.inputs.features import MissingModality
from concerto_tf.records.inputs.input import Input
from concerto_tf.records.manifest import check_label
from concerto_tf.tasks.io.agreement import vocabularies_of
from concerto_tf.tasks.io.provenance import reads_matrix

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.models.encoder import Encoder

_log = logging.getLogger("concerto_tf")


@dataclass(frozen=True)
class Reading:
    """How to read cells that are no records yet; the arguments are those of `convert`.

    Attributes:
        source_key: Column of obs that names the source of each cell.
        layer: Layer that holds the counts.
        drop_empty: Leave out cells without any count instead of raising an error.
        modalities: Where modalities lie; those that a model looks at are by default looked for in
            obsm under their own names.
        orthologs: Table of orthologs for cells of another species.
    """

    source_key: str | None = None
    layer: str | None = None
    drop_empty: bool = False
    modalities: Mapping[str, str] | None = None
    orthologs: str | Path | None = None


@contextmanager
def open_cells(
    model: Encoder,
    cells: Records | str | Path | AnnData,
    reading: Reading | None = None,
    *,
    label_keys: Sequence[str] = (),
    source_name: str | None = None,
    further: bool = False,
    lenient: bool = False,
    sampled: bool = False,
    trained: bool = False,
) -> Iterator[CellSet]:
    """Cells with the genes of a model, read straight from where they lie.

    Nothing is written, unless they are to be trained on, or sampled and too many for memory: then
    they become temporary records.

    Args:
        model: The model.
        cells: Records, or anything that `convert` takes.
        reading: How to read the latter. Of no concern to records but for modalities.
        label_keys: Columns of obs to keep as labels, which records must hold.
        source_name: Name of the source where no column says it.
        further: Whether modalities may be asked for that the model does not look at, to hold their
            values.
        lenient: Whether to leave out modalities that are not there instead of raising an error.
        sampled: Whether the first minibatches are to be a random sample of the cells.
        trained: Whether a model is trained on them: `Records`, which are read in any order.

    Yields:
        The cells.

    Raises:
        InputError: The cells are unsuitable, or lack what is asked for.
    """
    reading = reading or Reading()
    if is_records(cells):
        yield _held_records(cells, reading, label_keys, lenient)
        return
    asked = dict(reading.modalities or {})
    for name in () if further else asked:
        if name not in looks_at(model):
            known = ", ".join(looks_at(model))
            raise InputError(f"modality {name}: the model does not know it; it looks at {known}")
    check_modality_names(asked)
    several = isinstance(cells, Sequence) and not isinstance(cells, str) and len(cells) > 1
    with ExitStack() as stack:
        opened, places = cells, asked
        if not several:
            opened, places = _open(model, cells, reading, lenient)
            stack.enter_context(opened)
            reads_matrix(opened)
        if isinstance(opened, Input) and not trained:
            joined = join(
                [opened],
                source_key=reading.source_key,
                source_name=source_name,
                label_keys=list(dict.fromkeys(label_keys)),
                like=vocabularies_of(model),
                orthologs=None if reading.orthologs is None else read_orthologs(reading.orthologs),
            )
            found = InputCells(joined, drop_empty=reading.drop_empty, held_bytes=HELD_BYTES)
            if found.in_memory or not sampled:
                for line in found.report["lines"]:
                    _log.info(line)
                yield found
                return
        records = convert(
            opened,
            stack.enter_context(tempfile.TemporaryDirectory(prefix="concerto-")),
            like=vocabularies_of(model),
            label_keys=label_keys,
            source_name=source_name,
            **{**vars(reading), "modalities": places},
        )
        records.name = ", ".join(str(item["name"]) for item in records.manifest.inputs)
        yield records


def _held_records(
    cells: Records | str | Path, reading: Reading, label_keys: Sequence[str], lenient: bool
) -> Records:
    """Records that were made before, if they hold what is asked for."""
    records = cells if isinstance(cells, Records) else Records(cells)
    _check_held(records, label_keys, {} if lenient else reading.modalities or {})
    settled = {
        "a source key": reading.source_key,
        "a layer": reading.layer,
        "orthologs": reading.orthologs,
    }
    given = [name for name, value in settled.items() if value is not None]
    if given:
        _log.warning(
            "%s: are records, made before; %s is left aside", records.path, " and ".join(given)
        )
    return records


def _open(
    model: Encoder, cells: Any, reading: Reading, lenient: bool
) -> tuple[Input, dict[str, str]]:
    """The open cells, and where the modalities lie that they have."""
    [cells] = cells if isinstance(cells, list | tuple) else [cells]
    asked = dict(reading.modalities or {})
    guessed = {
        name: f"obsm:{name}" for name in looks_at(model) if name != RNA and name not in asked
    }
    places = {**asked, **guessed}
    # A model of log-normalized values is not to be given the counts beside them.
    normalized = any(one.name == RNA and one.target_sum is None for one in model.modality_inputs)
    layer = reading.layer or ("X" if normalized else None)
    while True:
        try:
            opened = open_input(cells, layer=layer, modalities=places)
            break
        except MissingModality as error:
            if not (lenient if error.modality in asked else RNA in looks_at(model)):
                raise
            del places[error.modality]
    for name in set(asked) - set(places):
        _log.info("%s: has no %s, which is taken as missing", opened.name, asked[name])
    for name in set(guessed) - set(places):
        _log.info(
            "%s: has no obsm[%r]; %s is taken as missing unless %s names another place",
            opened.name,
            name,
            name,
            Argument("modalities"),
        )
    return opened, places


def key_where_there(cells: Any, key: str | None) -> str | None:
    """A column of obs where these cells have it, else None."""
    if key is None or is_records(cells):
        return None
    if not (isinstance(cells, str | Path) or hasattr(cells, "obs")):
        return None
    with open_input(cells) as found:
        return key if key in found.columns else None


def _check_held(records: Records, label_keys: Sequence[str], modalities: Mapping[str, str]) -> None:
    """Raises InputError if records lack labels or modalities that are asked for."""
    for key in label_keys:
        check_label(records.path, records.labels, key)
    further = [name for name in records.modalities if name != RNA]
    for name in modalities:
        if name not in further:
            raise InputError(
                f"{records.path}: has no modality {name!r}; {choices(name, further)}; or convert "
                "again with it",
                Argument("modalities", of="convert"),
            )
