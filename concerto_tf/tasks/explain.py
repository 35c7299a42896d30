"""Which genes the teacher's attention reads in a cell, and in a group of cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._files import atomic
from concerto_tf._outputs import keeps_inputs
from concerto_tf.errors import Argument, InputError
from concerto_tf.models.encoder import Attentive, modality_input
from concerto_tf.numerics.specificity import GroupSums
from concerto_tf.pl.figures import check_figure
from concerto_tf.pl.heatmap import heatmap
from concerto_tf.records import CellSet, Records
from concerto_tf.records.batch import CELL, ROW, Minibatch, label_key
from concerto_tf.tasks.embed import Progress, encoder_of
from concerto_tf.tasks.io.agreement import (
    cell_batches,
    check_agreement,
    check_measured,
    seen_modalities,
)
from concerto_tf.tasks.io.reading import Reading, open_cells
from concerto_tf.tasks.io.result import check_target

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Genes listed of each cell where nothing is said: all of them would be the size of the data.
TOP_OF_A_CELL = 20
#: Groups at most: sums over each are kept for all genes.
MOST_GROUPS = 1_000
_QUANTITIES = ("weight", "attention", "value")


@keeps_inputs
def explain(
    model: Any,
    cells: Records | str | Path | AnnData,
    out: str | Path | None = None,
    *,
    groupby: str | None = None,
    top: int | None = None,
    figure: str | Path | None = None,
    source_key: str | None = None,
    layer: str | None = None,
    drop_empty: bool = False,
    modalities: Mapping[str, str] | None = None,
    orthologs: str | Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Gene attention of each cell, or of groups of cells, as a table.

    What is measured of a gene in a cell:

    - ``attention``: its attention (equation 4) over that of a gene with value 0 in the same cell.
      So 1 is the attention of a silent gene, in every cell: depth, the number of genes and what
      else the cell expresses cancel.
    - ``weight``: attention times normalized value, which is what the gene brings into the
      teacher's sum (equation 5), in units of a normalized value at a silent gene's attention.
      A silent gene has weight 0.

    Weights compare between cells and groups, and between the genes of one modality.

    What this can claim: a gene's relative attention follows from its own value alone, through a
    curve that the teacher learned for that gene. Its direction is not fixed: models trained with
    the defaults mostly give markers *less* attention where they are expressed. Hence genes rank by
    ``weight``. It is a reading of the model, no test.

    Args:
        model: A trained Concerto (or a classifier built on one), or its path.
        cells: Records, or anything that `convert` takes.
        out: TSV file to write the table to; ``None`` writes nothing.
        groupby: Column of obs that names the group of each cell; ``None`` for a table by cell.
            Cells without a value are left out.
        top: List this many genes of each cell or group and modality, the strongest. By default
            20 of a cell, and all of a group.
        figure: Image file for a heatmap of the groups' strongest genes; its ending says the kind.
        source_key, layer, drop_empty, modalities, orthologs, progress: As in `embed`.

    Returns:
        With ``groupby``, one row for each group, gene and modality: ``group``, ``gene``,
        ``modality``, ``weight`` (mean over the group's cells), ``rank`` (within group and
        modality, by ``specificity``), ``specificity`` (mean weight minus that of all other cells,
        over the sum of the two standard deviations), ``attention`` and ``value`` (means over the
        group's cells). Without it, one row for each listed gene of a cell: ``cell``, ``gene``,
        ``modality``, ``weight``, ``rank`` (by weight), ``attention`` and ``value``.

    Raises:
        InputError: The model has no attention, model and cells do not fit together, or an argument
            is unsuitable.

    Example:

    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from concerto_tf.models import Concerto
    >>> model = Concerto([f"gene{i}" for i in range(20)], units=8, hidden_units=8)
    >>> counts = np.random.default_rng(0).poisson(1.0, (6, 20)).astype("float32")
    >>> cells = AnnData(counts, obs={"type": list("aabbcc")}, var={"name": model.vocabulary})
    >>> cells.var_names = model.vocabulary
    >>> explain(model, cells, groupby="type", top=3).shape
    (9, 8)

    Reference:
        Concerto, equations 4 and 5, "Attention weight extraction".
    """
    for path in (out, figure):
        if path is not None:
            check_target(path)
    if figure is not None:
        check_figure(figure)
    if top is not None and top < 1:
        raise InputError(f"top is {top}; list at least one gene")
    if figure is not None and groupby is None:
        raise InputError("a heatmap shows groups of cells; name a column of obs with groupby")
    encoder = _with_attention(model)
    keys = [] if groupby is None else [groupby]
    reading = Reading(source_key, layer, drop_empty, modalities, orthologs)
    with open_cells(encoder, cells, reading, label_keys=keys) as records:
        check_agreement(encoder, records)
        if groupby is None:
            table = _of_cells(encoder, records, top or TOP_OF_A_CELL, progress)
        else:
            table = _of_groups(encoder, records, groupby, top, progress)
    if out is not None:
        with atomic(out) as temporary:
            table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    if figure is not None:
        heatmap(table, figure)
    return table


@dataclass(frozen=True)
class _Part:
    """A modality that is explained: the features the model looks at, and which were measured."""

    name: str
    features: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True)
class _Weights:
    """What a batch's cells express in one modality, as flat arrays over the nonzeros."""

    cell: np.ndarray
    gene: np.ndarray
    attention: np.ndarray
    value: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        return self.attention * self.value


def _with_attention(model: Any) -> Attentive:
    """The encoder that a model is or holds."""
    encoder = encoder_of(model)
    if not isinstance(encoder, Attentive):
        raise InputError(
            f"a {type(encoder).__name__} has no gene attention to explain; train another",
            Argument("method", "concerto", of="train"),
        )
    return encoder


def _parts(model: Attentive, records: CellSet) -> list[_Part]:
    """The modalities that both the model looks at and the records hold."""
    check_measured(model, records)
    parts = []
    for name in seen_modalities(model, records):
        one = modality_input(model, name)
        measured = one.chosen(records.measured(name))
        if one.n_inputs < len(one.vocabulary):
            _log.info(
                "the model looks at %d of its %d genes; the others have no attention (train with "
                "%s to have it for every gene)",
                one.n_inputs,
                len(one.vocabulary),
                Argument("genes", "all", of="train"),
            )
        parts.append(_Part(name, one.chosen(one.names), measured))
    return parts


def _read(
    model: Attentive, records: CellSet, parts: Sequence[_Part], keys: Sequence[str], progress: Any
) -> Iterator[tuple[dict[str, np.ndarray], list[_Weights]]]:
    """Batches of cells (row, labels, names) and what they express in each modality."""
    import tensorflow as tf

    unmeasured = {
        part.name: measured for part in parts if not (measured := records.measured(part.name)).all()
    }
    data = cell_batches(model, records, labels=list(keys), cells=not keys)

    @tf.function(reduce_retracing=True)
    def look(batch: Any) -> list[Any]:
        # One more place without a value: its attention is that of a silent gene.
        batch = dict(batch)
        for name, held in Minibatch(batch):
            genes, values = (tf.pad(x, [[0, 0], [0, 1]]) for x in (held.genes, held.values))
            measured = unmeasured.get(name)
            batch.update(replace(held, genes=genes, values=values, measured=measured).entries(name))
        found = []
        for part in parts:
            genes, weights = model.attention_weights(batch, part.name)
            cells = modality_input(model, part.name).cells(Minibatch(batch))
            if cells is None:
                raise InputError(f"the cells have no {part.name}, which has attention")
            relative = weights / weights[:, -1:]
            found.append((genes, tf.cast(relative, tf.float32), tf.cast(cells.values, tf.float32)))
        return found

    done = 0
    with records.naming_damage():
        for batch in data:
            wanted = [ROW, *map(label_key, keys), *(() if keys else [CELL])]
            known = {name: batch[name].numpy() for name in wanted}
            found = []
            for genes, relative, values in look(Minibatch(batch).numeric):
                genes, relative, values = genes.numpy(), relative.numpy(), values.numpy()
                cell, place = np.nonzero((values != 0) & (known[ROW] >= 0)[:, np.newaxis])
                at = (cell, place)
                found.append(_Weights(cell, genes[at], relative[at], values[at]))
            yield known, found
            done = min(records.n_cells, done + len(known[ROW]))
            if progress is not None:
                progress(done, records.n_cells)


def _of_cells(model: Attentive, records: CellSet, top: int, progress: Any) -> pd.DataFrame:
    """The strongest genes of each cell."""
    import pandas as pd

    parts = _parts(model, records)
    columns: list[dict[str, np.ndarray]] = []
    for known, found in _read(model, records, parts, (), progress):
        for number, weights in enumerate(found):
            weight = weights.weight
            order = np.lexsort((weights.gene, -weight, weights.cell))
            cell = weights.cell[order]
            first = np.searchsorted(cell, cell)
            rank = np.arange(len(cell)) - first + 1
            kept, rank = order[rank <= top], rank[rank <= top]
            columns.append(
                {
                    "row": known[ROW][weights.cell[kept]],
                    "cell": known[CELL][weights.cell[kept]],
                    "part": np.full(len(kept), number),
                    "gene": weights.gene[kept],
                    "weight": weight[kept],
                    "rank": rank,
                    "attention": weights.attention[kept],
                    "value": weights.value[kept],
                }
            )
    whole = {key: np.concatenate([c[key] for c in columns]) for key in columns[0]}
    order = np.lexsort((whole["rank"], whole["part"], whole["row"]))
    whole = {key: values[order] for key, values in whole.items()}
    genes = np.empty(len(order), object)
    for number, part in enumerate(parts):
        own = whole["part"] == number
        genes[own] = part.features[whole["gene"][own]]
    return pd.DataFrame(
        {
            "cell": np.array([name.decode() for name in whole["cell"]], object),
            "gene": genes,
            "modality": np.array([part.name for part in parts], object)[whole["part"]],
            **{key: whole[key] for key in ("weight", "rank", "attention", "value")},
        }
    )


def sums_of_groups(
    model: Attentive, records: CellSet, key: str, progress: Progress | None = None
) -> tuple[list[str], list[tuple[_Part, dict[str, GroupSums]]]]:
    """Sums over the cells of each group of what `explain` measures of a gene.

    Args:
        model: A Concerto.
        records: Cells with the model's genes and the label ``key``.
        key: Label that names the groups.
        progress: Called with the number of cells done and of all cells.

    Returns:
        Names of the groups, and for each modality the sums of ``weight``, ``attention`` (beyond
        the 1 of a silent gene) and ``value``.

    Raises:
        InputError: There is no such label, or no cell has it; or the model's genes are not there.
    """
    if key not in records.labels:
        there = ", ".join(records.labels) or "none"
        raise InputError(
            f"{records.name}: has no column {key!r} to group by (there are: {there}); explain "
            "the cells themselves, or convert again with it",
            Argument("label_keys", [key], of="convert"),
        )
    groups = records.labels[key]
    if len(groups) > MOST_GROUPS:
        raise InputError(
            f"{key!r} has {len(groups)} different values; group by a column of cell types or "
            "clusters"
        )
    parts = _parts(model, records)
    sums = [
        {name: GroupSums(len(groups), len(part.features)) for name in _QUANTITIES} for part in parts
    ]
    for known, found in _read(model, records, parts, [key], progress):
        group = np.where(known[ROW] >= 0, known[label_key(key)], -1)
        for number, (of_part, weights) in enumerate(zip(sums, found, strict=True)):
            # A cell that lacks a further modality has no part in its means.
            lacks = number > 0 and np.bincount(weights.cell, minlength=len(group)) == 0
            having = np.where(lacks, -1, group)
            quantities = (weights.weight, weights.attention - 1.0, weights.value)
            for name, x in zip(_QUANTITIES, quantities, strict=True):
                of_part[name].add(having, weights.cell, weights.gene, x)
    n_cells = int(sums[0]["weight"].cells.sum())
    if not n_cells:
        raise InputError(f"{records.name}: no cell has a value of {key!r}; group by another column")
    if n_cells < records.n_cells:
        _log.info("%s: %d cells without a value are left out", key, records.n_cells - n_cells)
    return groups, list(zip(parts, sums, strict=True))


def _of_groups(
    model: Attentive, records: CellSet, key: str, top: int | None, progress: Any
) -> pd.DataFrame:
    """The genes of each group by how much more they weigh in it than in all other cells."""
    import pandas as pd

    groups, found = sums_of_groups(model, records, key, progress)
    tables = []
    for part, sums in found:
        specificity = sums["weight"].specificity()
        means = {name: of.mean() for name, of in sums.items()}
        for number in np.flatnonzero(sums["weight"].cells):
            order = np.argsort(-specificity[number], kind="stable")
            order = order[part.measured[order]][:top]
            tables.append(
                pd.DataFrame(
                    {
                        "group": groups[number],
                        "gene": part.features[order],
                        "modality": part.name,
                        "weight": means["weight"][number, order],
                        "rank": np.arange(1, len(order) + 1),
                        "specificity": specificity[number, order],
                        "attention": 1 + means["attention"][number, order],
                        "value": means["value"][number, order],
                    }
                )
            )
    table = pd.concat(tables, ignore_index=True)
    places = {name: i for i, name in enumerate(groups)}
    return table.sort_values(
        "group", key=lambda column: column.map(places), kind="stable", ignore_index=True
    )
