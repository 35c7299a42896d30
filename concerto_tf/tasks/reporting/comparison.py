"""The page about a comparison of conditions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.pl.naming import in_order
from concerto_tf.report import Bars, Heat, Part, Section, Table, Text, write_page
from concerto_tf.tasks.comparison.genes import fold_changes
from concerto_tf.tasks.comparison.groups import Groups
from concerto_tf.tasks.io.provenance import Step
from concerto_tf.tasks.reporting import common

if TYPE_CHECKING:
    import pandas as pd

#: What can be taken in: genes of the heatmap, rows of tables, types of the bars.
_GENES, _ROWS, _TYPES = 40, 40, 40


def write_report(
    folder: Path,
    groups: Groups,
    tables: Mapping[str, pd.DataFrame],
    told: Mapping[str, Any],
    step: Step | None,
) -> None:
    """Writes the page about a comparison into its folder.

    Args:
        folder: The folder.
        groups: The cells that were compared.
        tables: What `compare` returns.
        told: What ``compare.json`` holds.
        step: The call, for how it came about.
    """
    steps = [] if step is None else [step.entry()]
    control, significant = told["control"], told["significant"]
    between = f"tests between {told['tested_on']}"
    sections = [
        common.warned(told["notes"]),
        Section("Composition", _composition(groups, tables["composition"], between)),
        Section("Genes", _genes(tables["markers"], between, told)),
        Section("Gene sets", _sets(tables["modules"], "difference", between)),
        Section("Enrichment", _sets(tables["enrichment"], "odds_ratio", "Fisher's exact test")),
        Section("Ranked gene sets", _sets(tables["gsea"], "score", "GSEA over ranked genes")),
        _next(told),
        common.done(steps),
    ]
    figures = {
        "cells": len(groups.types),
        "cell types": len(groups.type_names),
        "conditions": len(groups.condition_names),
        "types that change in share": significant["composition"],
        "significant genes": significant["markers"],
    }
    others = ", ".join(groups.condition_names[1:])
    lead = (
        f"{others} compared with {control} ({told['condition']}), cell type by cell type "
        f"({told['label_key']}); {between}."
    )
    write_page(
        common.page(f"{told['input']}: {told['condition']}", lead, figures, sections),
        folder / common.REPORT,
        about=folder.absolute().name,
    )


def _composition(groups: Groups, table: pd.DataFrame, between: str) -> list[Part]:
    counts = np.zeros((len(groups.condition_names), len(groups.type_names)))
    np.add.at(counts, (groups.conditions, groups.types), 1)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    largest = np.argsort(-shares.max(axis=0), kind="stable")[:_TYPES]
    names = in_order(groups.type_names[i] for i in largest)
    place = [groups.type_names.index(name) for name in names]
    bars = {name: share[place] for name, share in zip(groups.condition_names, shares, strict=True)}
    note = "" if len(place) == len(groups.type_names) else f"The {_TYPES} most frequent types."
    return [
        Bars(names, bars, "% of the condition's cells", note=note),
        _table(
            table.sort_values("p", kind="stable"),
            "cell_type condition cells_control cells_condition log2_ratio p_adjusted significant",
            "Shares are of all cells of a condition: where one type grows, others shrink; "
            f"{between}. p values are adjusted by Benjamini and Hochberg.",
        ),
    ]


def _genes(table: pd.DataFrame, between: str, told: Mapping[str, Any]) -> list[Part]:
    if not len(table):
        return [
            Text(
                [
                    "No gene was tested: no type has enough cells in both conditions "
                    f"({told['min_cells']} are asked for)."
                ]
            )
        ]
    called = table[table["significant"]]
    shown = called if len(called) else table
    best = shown.sort_values("p", kind="stable")
    genes = list(dict.fromkeys(best["gene"].astype(str)))[:_GENES]
    grid = fold_changes(table, genes)
    several = table["condition"].nunique() > 1
    of = {
        f"{kind} | {case}" if several else str(kind): row
        for (kind, case), row in zip(grid.index, grid.to_numpy(float), strict=True)
    }
    rows = in_order(of)
    title = "strongest significant genes" if len(called) else "strongest genes; none is significant"
    columns = "cell_type condition gene log_fold_change share_control share_condition p_adjusted"
    columns += " p_samples_adjusted" if "p_samples_adjusted" in table else ""
    return [
        Heat(
            rows,
            genes,
            np.array([of[name] for name in rows]),
            "log2 fold change",
            f"The {len(genes)} {title}. Gray was not tested. Fold changes of genes that few cells "
            "express are large by chance; look at the shares below.",
        ),
        _table(best, f"{columns} significant", f"{title[0].upper()}{title[1:]}; {between}."),
    ]


def _sets(table: pd.DataFrame, size: str, how: str) -> list[Part]:
    if not len(table):
        return []
    columns = f"cell_type condition set {size} p_adjusted significant"
    return [_table(table.sort_values("p", kind="stable"), columns, f"Smallest p first; {how}.")]


def _table(table: pd.DataFrame, columns: str, note: str) -> Table:
    names = [name for name in columns.split() if name in table]
    rows = []
    for values in table[names].head(_ROWS).itertuples(index=False):
        rows.append([("yes" if of else "no") if isinstance(of, bool) else of for of in values])
    if len(table) > _ROWS:
        note = f"{_ROWS} of {len(table):,} rows; all are in the .tsv beside this page. {note}"
    return Table([name.replace("_", " ") for name in names], rows, note)


def _next(told: Mapping[str, Any]) -> Section:
    rows = []
    if told["tested_on"] == "cells":
        rows.append(
            [
                "Tests that take samples for replicates, as they should",
                "concerto compare ... --sample-key COLUMN (two samples of a condition or more)",
            ]
        )
    rows += [
        ["Gene sets and pathways", "concerto compare ... --sets FILE.gmt"],
        ["Only strong changes", "concerto compare ... --log-fold-change 1"],
        ["Score cells by one set", "concerto score INPUT --set FILE -o scored.h5ad"],
    ]
    return common.to_try(rows)
