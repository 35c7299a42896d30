"""The cells of a protocol: data sets by name, their records, and what scores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert
from concerto_tf.records.batch import label_key as key_of_label
from concerto_tf.tasks.io.reading import key_where_there
from protocols.clustering_scores import clustering_scores

if TYPE_CHECKING:
    from anndata import AnnData

#: Scores by name of an embedding [n, d].
Score = Callable[[np.ndarray], Mapping[str, float]]


def data_sets(
    inputs: str | Path | AnnData | Sequence[str | Path | AnnData],
) -> dict[str, str | Path | AnnData]:
    """Inputs by name: that of the file, ``data1``, ``data2``, ... for what has none.

    Raises:
        InputError: There is none, or two have one name.
    """
    if isinstance(inputs, str | Path) or not isinstance(inputs, Sequence):
        inputs = [inputs]
    if not inputs:
        raise InputError("no data set is given; name at least one")
    named: dict[str, Any] = {}
    for number, item in enumerate(inputs, 1):
        name = Path(item).stem if isinstance(item, str | Path) else f"data{number}"
        if name in named:
            raise InputError(f"{item}: another data set is called {name!r} too; rename one of them")
        named[name] = item
    return named


def prepare(
    cells: str | Path | AnnData | Sequence[str | Path | AnnData],
    out: Path,
    *,
    label_key: str,
    further_keys: Sequence[str] = (),
    source_key: str | None = None,
    layer: str | None = None,
    drop_empty: bool = False,
) -> Records:
    """Records of cells, with the labels that embeddings are scored by.

    Args:
        cells: One or several of what `convert` takes.
        out: Folder of the records.
        label_key: Column of obs with at least two types.
        further_keys: Further columns to keep.
        source_key: Column of obs with the sources.
        layer: Layer that holds the counts.
        drop_empty: Leave out cells without any count instead of raising an error.

    Raises:
        InputError: The cells are unsuitable, a column is not there, or there is one type only.
    """
    records = convert(
        cells,
        out,
        label_keys=[label_key, *further_keys],
        source_key=source_key,
        layer=layer,
        drop_empty=drop_empty,
        overwrite=True,
    )
    types = set(labels_of(records, label_key)) - {None}
    if len(types) < 2:
        found = f"has one type only, {types.pop()!r}" if types else "is empty in all cells"
        raise InputError(
            f"{_names(cells)}: {label_key!r} {found}; name a column that tells two types or more "
            "apart"
        )
    return records


def prepare_all(
    inputs: str | Path | AnnData | Sequence[str | Path | AnnData],
    out: Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
) -> dict[str, Records]:
    """Records of several data sets by name, all of them before any work is begun.

    Args:
        inputs: What `convert` takes, each a data set of its own.
        out: Folder of the records.
        label_key: Column of obs with at least two types.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.

    Raises:
        InputError: As for `prepare`; or no data set has the source key.
    """
    named = data_sets(inputs)
    sources = {name: key_where_there(cells, source_key) for name, cells in named.items()}
    if source_key is not None and not any(sources.values()):
        raise InputError(
            f"{', '.join(named)}: no column {source_key!r} in obs; name one that is there, or "
            "leave the source key out"
        )
    return {
        name: prepare(cells, out / name, label_key=label_key, source_key=sources[name], layer=layer)
        for name, cells in named.items()
    }


def labels_of(records: Records, label_key: str) -> np.ndarray:
    """Names of the types [n] in the order of the input; None where there is none."""
    return records.obs()[key_of_label(label_key)]


def only_known(
    score: Callable[..., Mapping[str, float]], *columns: np.ndarray, **options: Any
) -> Score:
    """A score of the cells that have a value in all columns.

    Args:
        score: Function of an embedding [n, d] and one array [n] for each column.
        *columns: Names [n] each, None where missing.
        **options: Further arguments of `score`.
    """
    known = np.all([[value is not None for value in column] for column in columns], axis=0)
    return lambda z: score(z[known], *(column[known] for column in columns), **options)


def of_clusters(records: Records, label_key: str, seed: int) -> Score:
    """The scores of `clustering_scores` over the cells of records that have a label."""
    return only_known(clustering_scores, labels_of(records, label_key), seed=seed)


def _names(cells: Any) -> str:
    several = cells if isinstance(cells, Sequence) and not isinstance(cells, str) else [cells]
    return ", ".join(str(c) if isinstance(c, str | Path) else "AnnData" for c in several)
