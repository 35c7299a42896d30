"""Where known markers stand in the signatures of groups, beside attention and a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records import Records, convert
from concerto_tf.tasks.explanation.attention import sums_of_groups
from concerto_tf.tasks.explanation.contributions import by_rank, group_contributions, mean_inputs
from concerto_tf.tasks.train import train
from protocols.baselines import cells_of, log_normalized
from protocols.embeddings import check_training
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Rankings of a group's genes, and what is said of each in the figure.
RANKINGS = {
    "contribution": "contribution to the embedding",
    "weight": "attention x value",
    "attention": "attention alone",
    "value": "value alone",
    "wilcoxon": "Wilcoxon",
}
#: Ranks up to which a marker counts as found.
_FOUND = (10, 20)


def signatures(
    cells: str | Path,
    markers: str | Path | pd.DataFrame | Mapping[str, Sequence[str]],
    out: str | Path,
    *,
    groupby: str,
    genes: str = "all",
    source_key: str | None = None,
    layer: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Ranks of known markers among each group's genes, by the embedding, by attention and a test.

    A model is trained for each seed, without labels; name ``epochs`` for its attention to say
    anything. Then all genes that it looks at are ranked in each group against all other cells in
    five ways: by their contribution to the embedding, as `explain` ranks them; by what it calls
    specificity, of attention times value, of the attention alone and of the value alone (the same
    statistic without any model); and by Wilcoxon's rank-sum test as scanpy does it.

    Args:
        cells: Anything that `convert` takes.
        markers: TSV or CSV file, or table, with the columns ``group`` and ``gene``, or genes by
            group. Groups are values of ``groupby``.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png`` and, below ``models``, the
            models. Called again, finished models are not trained again.
        groupby: Column of obs with the groups.
        genes: Genes of the models, as for `train`. By default all: a marker that a model does not
            look at has no rank.
        source_key: Column of obs that names the source of each cell.
        layer: Layer that holds the counts.
        seeds: One model for each.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: by ranking the ``geometric_mean_rank``, the ``median_rank`` and
        the share of markers in the ``top10`` and ``top20``; markers that no model looks at; and
        for each marker its ranks, of attention the median over the seeds.

    Raises:
        InputError: No marker can be ranked, or an argument is unsuitable.

    Reference:
        Concerto, Results, "Concerto can automatically extract specific molecular signatures".
    """
    check_training(training, "genes")
    out = check_folder(out)
    wanted = read_markers(markers)
    if not seeds:
        raise InputError("no seed is given; name at least one")
    records = convert(
        cells,
        out / "records",
        source_key=source_key,
        label_keys=[groupby],
        layer=layer,
        overwrite=True,
    )
    known = records.labels[groupby]
    strange = [group for group in dict.fromkeys(wanted["group"]) if group not in known]
    if strange:
        raise InputError(
            f"{cells}: {groupby!r} has no group {strange[0]!r} that the markers name (there are: "
            f"{', '.join(known)}); call the markers' groups like that"
        )
    if not set(wanted["gene"]) & set(records.vocabulary.names):
        raise InputError(
            f"{cells}: has none of the markers ({', '.join(wanted['gene'][:3])}, ...); its genes "
            f"are called {', '.join(records.vocabulary.names[:3])}, ...: name them like that"
        )
    parts = []
    for seed in seeds:
        model = train(records, out / "models" / f"seed{seed}", genes=genes, seed=seed, **training)
        groups, [(part, sums), *_] = sums_of_groups(model, records, groupby)
        ranks = {name: _ranks(of.specificity()) for name, of in sums.items()}
        means = mean_inputs(model, records, groupby, len(groups))
        weight, gap, _ = group_contributions(model, records, groupby, means)
        order = by_rank(weight[:, part.columns], gap[:, part.columns])
        ranks["contribution"] = np.argsort(order, axis=1) + 1
        if not parts:
            ranks["wilcoxon"] = _wilcoxon(model, records, groupby, groups)
            test = ranks["wilcoxon"]
        ranks["wilcoxon"] = test
        place = {gene: i for i, gene in enumerate(part.features)}
        for group, gene in wanted.itertuples(index=False):
            at = groups.index(group), place.get(gene)
            parts.append(
                {
                    "group": group,
                    "gene": gene,
                    "seed": seed,
                    "genes": len(place),
                    **{f"rank_{k}": None if at[1] is None else int(ranks[k][at]) for k in RANKINGS},
                }
            )
    import pandas as pd

    table = pd.DataFrame(parts)
    columns = [f"rank_{name}" for name in RANKINGS]
    table[columns] = table[columns].astype("Int64")
    if table[columns[0]].isna().all():
        raise InputError(
            f"the models look at none of the markers ({', '.join(wanted['gene'][:3])}, ...); train "
            "with --genes all"
        )
    result = _summary(table, columns)
    return leave(out, table, result, _figure_of(result))


def read_markers(
    markers: str | Path | pd.DataFrame | Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Markers as a table with the columns group and gene, each pair once.

    Args:
        markers: As for `signatures`.

    Raises:
        InputError: The file cannot be read, or lacks a column or any row.

    Example:

    >>> read_markers({"B": ["MS4A1", "CD79A"]})["gene"].tolist()
    ['MS4A1', 'CD79A']
    """
    import pandas as pd

    name = "markers"
    if isinstance(markers, Mapping):
        pairs = [(group, gene) for group, genes in markers.items() for gene in genes]
        markers = pd.DataFrame(pairs, columns=["group", "gene"])
    elif isinstance(markers, str | Path):
        name = str(markers)
        try:
            markers = pd.read_csv(markers, sep=None, engine="python", dtype=str, comment="#")
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: cannot be read as a table ({error})") from error
    lacks = [column for column in ("group", "gene") if column not in markers]
    if lacks:
        raise InputError(f"{name}: has no column {lacks[0]!r}; it needs group and gene")
    table = markers[["group", "gene"]].dropna().astype(str)
    table = table.drop_duplicates().reset_index(drop=True)
    if table.empty:
        raise InputError(f"{name}: there is no marker in it")
    return table


def _ranks(specificity: np.ndarray) -> np.ndarray:
    """Rank of each gene in each group, 1 for the most specific."""
    return np.argsort(np.argsort(-specificity, axis=1, kind="stable"), axis=1) + 1


def _wilcoxon(model: Any, records: Records, key: str, groups: list[str]) -> np.ndarray:
    """Ranks [groups, genes] of the model's genes by scanpy's test on the values it sees."""
    import scanpy as sc

    cells = log_normalized(cells_of(records), records.scales_with_depth)
    genes = model.modality_inputs[0].genes
    if genes is not None:
        cells = cells[:, list(genes)]
    cells = cells[cells.obs[key].notna()].copy()
    cells.obs["group"] = cells.obs[key].astype("category")
    cells.var_names = [str(i) for i in range(cells.n_vars)]
    # A group of one cell cannot be tested.
    sizes = cells.obs["group"].value_counts()
    tested = [group for group in groups if sizes.get(group, 0) > 1]
    sc.tl.rank_genes_groups(cells, "group", groups=tested, method="wilcoxon")
    ranks = np.full((len(groups), cells.n_vars), cells.n_vars)
    for group in tested:
        order = cells.uns["rank_genes_groups"]["names"][group].astype(int)
        ranks[groups.index(group), order] = np.arange(1, cells.n_vars + 1)
    return ranks


def _summary(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """What is to be said of all markers and of each."""
    of_marker = table.groupby(["group", "gene"], sort=False)[list(columns)].median()
    ranked = of_marker.dropna().astype(float)
    result: dict[str, Any] = {
        "markers": len(of_marker),
        "not_among_the_genes": sorted(
            {gene for _, gene in of_marker.index.difference(ranked.index)}
        ),
        "seeds": sorted(set(table["seed"].tolist())),
        "rankings": {},
        "ranks": [],
    }
    for name, column in zip(RANKINGS, columns, strict=True):
        ranks = ranked[column]
        result["rankings"][name] = {
            "geometric_mean_rank": float(np.exp(np.log(ranks).mean())),
            "median_rank": float(ranks.median()),
            **{f"top{n}": int((ranks <= n).sum()) for n in _FOUND},
            "largest_rank": float(ranks.max()),
        }
    for (group, gene), ranks in ranked.iterrows():
        result["ranks"].append(
            {
                "group": group,
                "gene": gene,
                **{name: ranks[column] for name, column in zip(RANKINGS, columns, strict=True)},
            }
        )
    return result


def _figure_of(result: dict[str, Any]) -> Figure:
    """Ranks of each marker on a logarithmic axis, one mark for each ranking."""
    from matplotlib.figure import Figure

    from concerto_tf.pl.figures import PALETTE, short_name

    rows = result["ranks"]
    figure = Figure((6.5, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    marks = ("D", "o", "x", "^", "s")
    for color, mark, (name, title) in zip(PALETTE, marks, RANKINGS.items(), strict=False):
        hollow = {"mfc": "none"} if name in ("value", "wilcoxon") else {}
        axes.plot(
            [row[name] for row in rows],
            range(len(rows)),
            mark,
            color=color,
            ms=6,
            label=title,
            clip_on=False,
            **hollow,
        )
    labels = [f"{short_name(str(row['group']), 20)}  {row['gene']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("rank among the group's genes (1 is the most specific)", fontsize=9)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure
