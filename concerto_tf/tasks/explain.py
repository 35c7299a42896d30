"""Which genes place a cell, or a group of cells, where it lies in the embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._files import write_table
from concerto_tf.errors import InputError
from concerto_tf.models.encoder import Attentive, Encoder, modality_input
from concerto_tf.pl.figures import check_figure
from concerto_tf.pl.heatmap import heatmap
from concerto_tf.records import CellSet, Records
from concerto_tf.records.batch import Minibatch
from concerto_tf.tasks.embed import Progress, encoder_of
from concerto_tf.tasks.explanation.attention import attention_reader, sums_of_groups
from concerto_tf.tasks.explanation.contributions import (
    by_rank,
    contributions,
    group_contributions,
    mean_inputs,
)
from concerto_tf.tasks.explanation.expression import expression
from concerto_tf.tasks.explanation.parts import Part, groups_of, parts_of
from concerto_tf.tasks.io.agreement import check_agreement
from concerto_tf.tasks.io.reading import Reading, open_cells
from concerto_tf.tasks.io.result import check_target

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Genes listed of each cell where nothing is said: all of them would be the size of the data.
TOP_OF_A_CELL = 20


@checked
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
    """Contributions of genes to where cells or groups of cells lie in the embedding, as a table.

    A group lies some way from all other cells, from their mean to its own. ``weight`` is a gene's
    part of that way, in units of the embedding: the weights of all genes, and of all modalities,
    add up to its length. Of a cell it is the way from the mean of all cells. Where the embedding is
    a linear function of the genes, as Concerto's is by default, this is exact: the model's weights
    times what the genes differ by. Otherwise it is by integrated gradients from the mean of all
    others to each cell, in the direction of the group.

    A gene that is lower than elsewhere places cells, too. So genes that are higher rank first, by
    their weight, and those that are lower behind them.

    Beside it stands how the genes are expressed, with scanpy's Wilcoxon test. The embedding, and
    groups that were found in it, come from the same values: p-values then order genes and test
    nothing. Where the teacher of a Concerto was trained, its attention stands there, too: a gene's
    attention (equation 4) over that of a silent gene in the same cell. It takes no part in the
    embedding that the student gives.

    Args:
        model: A trained model (or a classifier built on one), or its path.
        cells: Records, or anything that `convert` takes.
        out: TSV file to write the table to; ``None`` writes nothing.
        groupby: Column of obs that names the group of each cell; ``None`` for a table by cell.
            Cells without a value are left out.
        top: List this many genes of each cell or group and modality, the first by rank. By default
            20 of a cell, and all of a group.
        figure: Image file for a heatmap of the groups' first genes; its ending says the kind.
        source_key, layer, drop_empty, modalities, orthologs, progress: As in `embed`.

    Returns:
        With ``groupby``, one row for each group, gene and modality: ``group``, ``gene``,
        ``modality``, ``weight``, ``rank`` (within group and modality), ``share_in`` and
        ``share_out`` (of the cells that express it, in the group and elsewhere),
        ``log_fold_change`` (base 2), ``p_adjusted`` (Benjamini and Hochberg), ``value`` (mean
        log-normalized value) and, of a trained teacher, ``attention`` and ``specificity`` (of
        attention times value: mean less that of all other cells, over the sum of the two standard
        deviations). Without it, one row for each listed gene of a cell: ``cell``, ``gene``,
        ``modality``, ``weight``, ``rank`` and, of a trained teacher, ``attention``.

    Raises:
        InputError: Model and cells do not fit together, or an argument is unsuitable.

    Example:

    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from concerto_tf.models import Concerto
    >>> model = Concerto([f"gene{i}" for i in range(20)], units=8, hidden_units=8)
    >>> counts = np.random.default_rng(0).poisson(1.0, (6, 20)).astype("float32")
    >>> cells = AnnData(counts, obs={"type": list("aabbcc")}, var={"name": model.vocabulary})
    >>> cells.var_names = model.vocabulary
    >>> table = explain(model, cells, groupby="type", top=3)
    >>> list(table.columns[:5]), len(table)
    (['group', 'gene', 'modality', 'weight', 'rank'], 9)

    Reference:
        Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365 (2017), of
        which linear functions are a special case; Concerto, "Attention weight extraction".
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
    encoder = encoder_of(model)
    keys = [] if groupby is None else [groupby]
    reading = Reading(source_key, layer, drop_empty, modalities, orthologs)
    with open_cells(encoder, cells, reading, label_keys=keys) as records:
        check_agreement(encoder, records)
        if groupby is None:
            table = _of_cells(encoder, records, top or TOP_OF_A_CELL, progress)
        else:
            table = _of_groups(encoder, records, groupby, top, progress)
    if out is not None:
        write_table(out, table)
    if figure is not None:
        heatmap(table, figure)
    return table


def _attentive(model: Encoder) -> Attentive | None:
    """The model, where it has attention that says something: not before it was trained."""
    if not isinstance(model, Attentive) or not getattr(model, "attention_trained", True):
        return None
    return model


def _listed(weight: np.ndarray, gap: np.ndarray, part: Part, top: int | None) -> np.ndarray:
    """Features [..., n] of a modality that are listed, by rank: those measured, at most ``top``."""
    measured = int(part.measured.sum())
    return by_rank(weight, gap, part.measured)[..., : min(top or measured, measured)]


def _of_cells(model: Encoder, records: CellSet, top: int, progress: Any) -> pd.DataFrame:
    """The first genes of each cell."""
    import pandas as pd

    parts = parts_of(model, records)
    means = mean_inputs(model, records, None, 1)
    attentive = _attentive(model)
    read = None if attentive is None else attention_reader(attentive, parts)
    rows, tables = [], []
    for cells, weight, gap in contributions(model, records, None, means, progress):
        attended = read(cells) if read is not None else [None] * len(parts)
        for part, of_part in zip(parts, attended, strict=True):
            present = modality_input(model, part.name).present(Minibatch(cells.numeric)).numpy()
            own = np.flatnonzero((cells.row >= 0) & present)
            weights = weight[own, part.columns]
            order = _listed(weights, gap[own, part.columns], part, top)
            n, listed = order.shape
            columns: dict[str, Any] = {
                "cell": np.repeat([cells.names[i].decode() for i in own], listed),
                "gene": part.features[order].ravel(),
                "modality": part.name,
                "weight": np.take_along_axis(weights, order, 1).ravel(),
                "rank": np.tile(np.arange(1, listed + 1), n),
            }
            if of_part is not None:
                attention = np.ones((len(cells.row), len(part.features)), np.float32)
                attention[of_part.cell, of_part.gene] = of_part.attention
                columns["attention"] = np.take_along_axis(attention[own], order, 1).ravel()
            rows.append(np.repeat(cells.row[own], listed))
            tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    return table.iloc[np.argsort(np.concatenate(rows), kind="stable")].reset_index(drop=True)


def _of_groups(
    model: Encoder, records: CellSet, key: str, top: int | None, progress: Any
) -> pd.DataFrame:
    """The genes of each group by how far they move it from all other cells."""
    import pandas as pd

    groups, parts = groups_of(records, key), parts_of(model, records)
    means = mean_inputs(model, records, key, len(groups), progress)
    n_cells = int(means.cells.sum())
    if not n_cells:
        raise InputError(f"{records.name}: no cell has a value of {key!r}; group by another column")
    if n_cells < records.n_cells:
        _log.info("%s: %d cells without a value are left out", key, records.n_cells - n_cells)
    if (means.cells > 0).sum() == 1:
        _log.warning("%s: one group, and no others that it could lie apart from", key)
    weight, gap, group = group_contributions(model, records, key, means)
    attentive = _attentive(model)
    attention = None if attentive is None else sums_of_groups(attentive, records, key)[1]
    tables = []
    for number, part in enumerate(parts):
        found = expression(records, modality_input(model, part.name), group, len(groups))
        if attention is not None:
            sums = attention[number][1]
            found["attention"] = 1 + sums["attention"].mean()
            found["specificity"] = sums["weight"].specificity()
        for code in np.flatnonzero(means.cells):
            own = weight[code, part.columns]
            order = _listed(own, gap[code, part.columns], part, top)
            tables.append(
                pd.DataFrame(
                    {
                        "group": groups[code],
                        "gene": part.features[order],
                        "modality": part.name,
                        "weight": own[order],
                        "rank": np.arange(1, len(order) + 1),
                        **{name: of[code, order] for name, of in found.items()},
                    }
                )
            )
    table = pd.concat(tables, ignore_index=True)
    places = {name: i for i, name in enumerate(groups)}
    return table.sort_values(
        "group", key=lambda column: column.map(places), kind="stable", ignore_index=True
    )
