"""Cells as a task is given them, read as records with the genes of a model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError
from concerto_tf.models.encoder import looks_at
from concerto_tf.records import Records, convert, open_input
from concerto_tf.records.batch import RNA
from concerto_tf.records.manifest import FILE_NAME
from concerto_tf.tasks.agreement import vocabularies_of

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.models.encoder import Encoder

_log = logging.getLogger("concerto_tf")


def is_records(cells: Any) -> bool:
    """Whether something is records or their folder."""
    if isinstance(cells, Records):
        return True
    return isinstance(cells, str | Path) and (as_path(cells) / FILE_NAME).is_file()


@contextmanager
def as_records(
    model: Encoder,
    cells: Records | str | Path | AnnData,
    *,
    source_key: str | None = None,
    source_name: str | None = None,
    layer: str | None = None,
    drop_empty: bool = False,
    label_keys: Sequence[str] = (),
    modalities: Mapping[str, str] | None = None,
    orthologs: str | Path | None = None,
    further: bool = False,
    lenient: bool = False,
) -> Iterator[Records]:
    """Records of cells with the genes of a model; temporary ones where cells are given.

    Args:
        model: The model.
        cells: Records, or anything that `convert` takes. What follows is of no concern to records
            but for labels and modalities, which they must hold.
        source_key: Column of obs that names the source of each cell.
        source_name: Name of the source where there is no such column.
        layer: Layer that holds the counts.
        drop_empty: Leave out cells without any count instead of refusing them.
        label_keys: Columns of obs to keep as labels.
        modalities: Where modalities lie; those that the model looks at are by default looked for
            in obsm under their own names.
        orthologs: Table of orthologs for cells of another species.
        further: Whether modalities may be asked for that the model does not look at, to hold their
            values.
        lenient: Whether to go on without modalities that are not there.

    Yields:
        The records.

    Raises:
        InputError: The cells are unsuitable, or lack what is asked for.
    """
    if is_records(cells):
        records = cells if isinstance(cells, Records) else Records(cells)
        _check_held(records, label_keys, {} if lenient else modalities or {})
        settled = {"a source key": source_key, "a layer": layer, "orthologs": orthologs}
        given = [name for name, value in settled.items() if value is not None]
        if given:
            _log.warning(
                "%s: are records, made before; %s is left aside", records.path, " and ".join(given)
            )
        yield records
        return
    asked = dict(modalities or {})
    if not further:
        for name in asked:
            if name not in looks_at(model):
                known = ", ".join(looks_at(model))
                raise InputError(
                    f"modality {name}: the model does not know it; it looks at {known}"
                )
    if asked and lenient:
        with open_input(cells, modalities=asked, lenient=True) as found:
            for name in set(asked) - set(found.modalities):
                _log.info("%s: has no %s, which is taken as missing", found.name, asked.pop(name))
    places = {**asked, **_own_places(model, cells, asked)}
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        records = convert(
            cells,
            folder,
            like=vocabularies_of(model),
            label_keys=label_keys,
            modalities=places,
            source_key=source_key,
            source_name=source_name,
            layer=layer,
            drop_empty=drop_empty,
            orthologs=orthologs,
        )
        records.name = ", ".join(str(item["name"]) for item in records.manifest.inputs)
        yield records


def key_where_there(cells: Any, key: str | None) -> str | None:
    """A column of obs where these cells have it, else None."""
    if key is None or is_records(cells):
        return None
    if not (isinstance(cells, str | Path) or hasattr(cells, "obs")):
        return None
    with open_input(cells) as found:
        return key if key in found.columns else None


def _own_places(model: Encoder, cells: Any, given: Mapping[str, str]) -> dict[str, str]:
    """Where the modalities lie that a model looks at and no place was given for."""
    guesses = {
        name: f"obsm:{name}" for name in looks_at(model) if name != RNA and name not in given
    }
    if not guesses:
        return {}
    with open_input(cells, modalities=guesses, lenient=RNA in looks_at(model)) as found:
        for name in set(guesses) - set(found.modalities):
            _log.info(
                "%s: has no obsm[%r]; %s is taken as missing unless %s names another place",
                found.name,
                name,
                name,
                Argument("modalities"),
            )
        return {name: place for name, place in guesses.items() if name in found.modalities}


def _check_held(records: Records, label_keys: Sequence[str], modalities: Mapping[str, str]) -> None:
    """Raises InputError if records lack labels or modalities that are asked for."""
    for kind, held, asked, argument in (
        ("labels", records.labels, label_keys, "label_keys"),
        (
            "modality",
            [m for m in records.manifest.modalities if m != RNA],
            modalities,
            "modalities",
        ),
    ):
        for name in asked:
            if name not in held:
                known = ", ".join(held) or "none"
                raise InputError(
                    f"{records.path}: has no {kind} {name!r} (there are: {known}); convert again "
                    "with it",
                    Argument(argument, [name] if argument == "label_keys" else None, of="convert"),
                )
