"""What differs between conditions: composition, genes, gene-set scores and enrichment by type."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import check_folder, checked
from concerto_tf._files import remove, remove_temporaries, write_json, write_table
from concerto_tf._lock import FolderLock
from concerto_tf._paths import as_path
from concerto_tf._progress import stage
from concerto_tf._version import __version__
from concerto_tf.errors import InputError, choices
from concerto_tf.pl.figures import FORMATS, check_format
from concerto_tf.records import open_input
from concerto_tf.records.batch import RNA
from concerto_tf.records.inputs.input import Input
from concerto_tf.records.units import COUNTS, units_of
from concerto_tf.tasks.comparison.composition import composition
from concerto_tf.tasks.comparison.genes import (
    ENRICHMENT,
    MODULES,
    enrichment,
    has_gseapy,
    markers,
    modules,
    scores_of,
)
from concerto_tf.tasks.comparison.groups import Groups
from concerto_tf.tasks.comparison.pseudobulk import T_TEST, test_between_samples
from concerto_tf.tasks.comparison.ranked import GSEA, gsea
from concerto_tf.tasks.io.provenance import current, reads_matrix, recorded, taken
from concerto_tf.tasks.reporting.comparison import write_report
from concerto_tf.tasks.score import find_genes, gene_sets, no_gene, values_of

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
SUMMARY = "compare.json"
_TABLES = ("composition", "markers", "modules", "enrichment", "gsea")
_FIGURES = ("composition", "violin_modules", "violin_genes", "dots", "heatmap")
_LABELS = ("concerto_label", "concerto_cluster")
_ON_CELLS = (
    "tests are on cells, which are no replicates: cells of one sample are alike, so what is found "
    "between two samples may be a difference of samples and not of conditions; name the column "
    "of samples, two of each condition or more"
)
_ON_SAMPLES = (
    "significance is by tests between samples; p values of the Wilcoxon tests (p, p_adjusted) "
    "take cells for replicates, which they are not"
)


@recorded("compare")
@checked
def compare(
    cells: str | Path | AnnData,
    out: str | Path | None = None,
    *,
    condition: str,
    control: str,
    label_key: str | None = None,
    sample_key: str | None = None,
    sets: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    layer: str | None = None,
    alpha: float = 0.05,
    log_fold_change: float = 0.25,
    min_cells: int = 10,
    figure_format: str = "png",
) -> dict[str, pd.DataFrame]:
    """Compares every condition with the control, cell type by cell type.

    Counts are log-normalized to 10,000 per cell; log-normalized input is used unchanged. With
    samples, two or more of a condition, tests are between samples; without, between cells, which
    overstates significance where cells come from few samples. Genes are tested between samples by
    PyDESeq2 on summed counts, where it is installed and there are counts, else by t-tests of means.
    Of what a table calls significant in a type, a share `alpha` is expected to be false (Benjamini
    and Hochberg).

    Args:
        cells: Anything that `convert` takes, with columns of obs.
        out: Folder for `composition.tsv`, `markers.tsv`, `modules.tsv`, `enrichment.tsv`,
            `gsea.tsv`, `figures/`, `report.html` to be sent on and, last, `compare.json`. What
            of these is there is replaced, a table without rows left out; ``None`` writes nothing.
        condition: Column of obs with the conditions.
        control: The condition that the others are compared with.
        label_key: Column of obs with cell types; by default ``concerto_label``, or else
            ``concerto_cluster``.
        sample_key: Column of obs with samples (donors). A sample that was taken in several
            conditions counts as one of each.
        sets: Gene sets as `score` takes them, such as a GMT file. Modules are the mean over a
            set's genes of their values, each scaled to 0..1 over the cells. Enrichment among
            significant genes, and along the ranking of all (`gsea`), need gseapy.
        layer: Layer that holds the counts; by default as in `convert`.
        alpha: See above.
        log_fold_change: What the base 2 logarithm of a gene's fold change must reach.
        min_cells: Cells of a type that both conditions must have for its genes to be compared.
        figure_format: Of the figures: ``png``, ``pdf`` or ``svg``.

    Returns:
        The tables by name.

    Raises:
        InputError: The file, a column or an option is unsuitable.

    Example:
        >>> from concerto_tf.simulate import SplatParams, simulate_cells
        >>> params = SplatParams.droplet(n_cells=400, n_genes=200, group_sizes=(1, 1))
        >>> cells = simulate_cells(params)
        >>> cells.obs["given"] = ["drug", "none"] * 200
        >>> tables = compare(cells, condition="given", control="none", label_key="group")
        >>> tables["composition"][["cell_type", "condition"]].values.tolist()
        [['Group1', 'drug'], ['Group2', 'drug']]

    Reference:
        CLEAR, "CLEAR illustrates peripheral immune cells atlas and inflammatory-related mechanisms
        in COVID-19".
    """
    _check_options(alpha, log_fold_change, min_cells)
    check_format(figure_format)
    named = None if sets is None else gene_sets(sets)
    notes: list[str] = []
    with open_input(cells, layer=layer) as opened:
        reads_matrix(opened, say=True)
        name, label_key = opened.name, label_key or _label_key(opened)
        keep, of_cells = _groups(opened, condition, control, label_key, sample_key, notes)
        found = {} if named is None else _sets_there(opened, named, notes)
        folder = None if out is None else _folder(out)
        values = values_of(opened, np.arange(len(opened.genes)))
        counts = None if of_cells["samples"] is None else _counts(opened)
    values = values.tocsr()[keep].astype(np.float32)
    counts = None if counts is None else counts[keep]
    groups = Groups(values, opened.genes.names, **of_cells, counts=counts)
    _say_what_is_left_out(groups, min_cells, notes)

    tables = {"composition": composition(groups, alpha)}
    tables["markers"] = markers(groups, alpha, log_fold_change, min_cells)
    scores = None
    tables["modules"], tables["enrichment"] = _empty(MODULES), _empty(ENRICHMENT)
    tables["gsea"] = _empty(GSEA)
    if found:
        scores = scores_of(values.tocsc(), found)
        sizes = {key: len(genes) for key, genes in found.items()}
        tables["modules"] = modules(groups, scores, sizes, alpha, min_cells)
        if has_gseapy():
            known = {key: [groups.genes[i] for i in genes] for key, genes in found.items()}
            tables["enrichment"] = enrichment(tables["markers"], known, alpha)
            tables["gsea"] = gsea(tables["markers"], known, alpha)
        else:
            notes.append(
                "enrichment is left out: gseapy is not installed; run "
                "pip install 'concerto_tf[enrichment]'"
            )
    else:
        notes.append("no gene sets given: no module scores and no enrichment")
    notes.append(_ON_CELLS if groups.samples is None else _ON_SAMPLES)
    between = None if groups.samples is None else test_between_samples(groups)
    if between == T_TEST:
        lacking = "no counts in the input" if groups.counts is None else "PyDESeq2 not installed"
        notes.append(
            f"genes are tested between samples by t-tests of their means ({lacking}); counts, and "
            "pip install 'concerto_tf[enrichment]', give PyDESeq2's test of summed counts"
        )
    for note in notes:
        _log.warning("%s: %s", name, note)
    if folder is not None:
        told = {
            "package_version": __version__,
            "input": name,
            "cells": len(groups.types),
            "genes": len(groups.genes),
            "condition": condition,
            "control": control,
            "conditions": groups.condition_names,
            "label_key": label_key,
            "sample_key": sample_key,
            "alpha": alpha,
            "log_fold_change": log_fold_change,
            "min_cells": min_cells,
            "error_rate": "Benjamini-Hochberg within each cell type, of a table",
            "genes_between_samples": between,
            "tested_on": "cells" if groups.samples is None else "samples",
            "tested": {key: _tested(groups, table) for key, table in tables.items()},
            "significant": {key: int(t["significant"].sum()) for key, t in tables.items()},
            "notes": notes,
        }
        taken(label_key=label_key)
        with FolderLock(folder):
            with stage("writing tables and figures"):
                _write(folder, groups, tables, scores, figure_format)
            write_report(folder, groups, tables, told, current())
            write_json(folder / SUMMARY, told)
    return tables


def _check_options(alpha: float, log_fold_change: float, min_cells: int) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; it must lie between 0 and 1, as 0.05")
    if not (np.isfinite(log_fold_change) and log_fold_change >= 0):
        raise InputError(f"the log fold change is {log_fold_change}; it must be 0 or more")
    if min_cells < 2:
        raise InputError(f"min_cells is {min_cells}; it must be at least 2")


def _folder(out: str | Path) -> Path:
    """The folder to write to, without the mark of a comparison that was finished before."""
    folder = as_path(out)
    check_folder(folder, "comparison")
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        with FolderLock(folder):
            for place in (folder, folder / "figures"):
                remove_temporaries(place)
            remove(folder / SUMMARY)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another folder"
        ) from error
    return folder


def _label_key(cells: Input) -> str:
    for key in _LABELS:
        if key in cells.columns:
            return key
    known = ", ".join(cells.columns) or "none"
    raise InputError(
        f"{cells.name}: neither {' nor '.join(_LABELS)} in obs (there: {known}); name the column "
        "of cell types",
        "label_key",
    )


def _groups(
    cells: Input,
    condition: str,
    control: str,
    label_key: str,
    sample_key: str | None,
    notes: list[str],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The cells that have all that is asked for, and what `Groups` says about them."""
    conditions, names = cells.column(condition)
    one = f"{cells.name}: obs[{condition!r}] has cells of one condition only"
    if len(names) == 1:
        raise InputError(f"{one} ({names[0]}); give a file that holds them all, as `run` leaves")
    if control not in names:
        raise InputError(
            f"{cells.name}: no {control!r} in obs[{condition!r}] to compare with; "
            f"{choices(control, names)}"
        )
    types, type_names = cells.column(label_key)
    keep = (conditions >= 0) & (types >= 0)
    samples = None
    if sample_key is not None:
        samples, _ = cells.column(sample_key)
        keep &= samples >= 0
    if not keep.all():
        notes.append(f"{(~keep).sum()} cells without a condition, type or sample are left out")
    order = [control, *(name for name in names if name != control)]
    conditions = np.array([order.index(name) for name in names])[conditions[keep]]
    types = types[keep]
    there = np.bincount(conditions, minlength=len(order)) > 0
    if not there[0] or not there[1:].any():
        raise InputError(f"{one}; there is nothing to compare with the control")
    if not there.all():
        gone = [name for name, kept in zip(order, there, strict=True) if not kept]
        notes.append(f"conditions of which no cell is left are left out: {', '.join(gone)}")
        conditions = (np.cumsum(there) - 1)[conditions]
        order = [name for name in order if name not in gone]
    if samples is not None:
        # one sample in two conditions is two
        _, samples = np.unique(samples[keep] * len(order) + conditions, return_inverse=True)
        each = [len(np.unique(samples[conditions == i])) for i in range(len(order))]
        few = ", ".join(f"{name} {n}" for name, n in zip(order, each, strict=True) if n < 2)
        if each[0] < 2 or max(each[1:]) < 2:
            notes.append(f"too few samples for tests between samples ({few}; two of each needed)")
            samples = None
        elif few:
            notes.append(
                f"nothing is called significant in conditions with fewer than two samples: {few}"
            )
    return np.flatnonzero(keep), {
        "types": types,
        "conditions": conditions,
        "samples": samples,
        "type_names": type_names,
        "condition_names": order,
    }


def _say_what_is_left_out(groups: Groups, min_cells: int, notes: list[str]) -> None:
    compared = {cell_type for cell_type, *_ in groups.pairs(min_cells)}
    few = [name for cell_type, name in enumerate(groups.type_names) if cell_type not in compared]
    if few:
        notes.append(
            f"genes are not compared in types with fewer than {min_cells} cells in a condition: "
            + ", ".join(few)
        )
    if groups.samples is None:
        return
    untested = [
        f"{groups.type_names[cell_type]} ({groups.condition_names[case]})"
        for cell_type, case, cells, control in groups.pairs(min_cells)
        if groups.n_samples(groups.conditions == case) > 1
        and min(groups.n_samples(cells), groups.n_samples(control)) < 2
    ]
    if untested:
        notes.append(
            "genes and modules are not tested in types with cells of fewer than two samples of a "
            f"condition: {', '.join(untested)}"
        )


def _sets_there(
    cells: Input, sets: Mapping[str, Sequence[str]], notes: list[str]
) -> dict[str, list[int]]:
    """Places of the genes of those sets that have any among the cells'."""
    found, missing = find_genes(cells, sets)
    there = {key: places for key, places in found.items() if places}
    if not there:
        raise no_gene(cells, sets)
    if len(there) < len(sets):
        notes.append(
            f"{len(sets) - len(there)} of {len(sets)} gene sets have no gene in the data and are "
            "left out"
        )
    lost = {gene for key in there for gene in missing[key]}
    if lost:
        shown = ", ".join(sorted(lost)[:5]) + (", ..." if len(lost) > 5 else "")
        notes.append(f"{len(lost)} genes of the gene sets are missing and left out: {shown}")
    return there


def _counts(cells: Input) -> sp.csr_matrix | None:
    """Raw counts [n, G] of all cells; None where the values are something else."""
    import scipy.sparse as sp

    if units_of(cells, [RNA])[RNA] != COUNTS:
        return None
    step = 4096
    starts = range(0, cells.n_cells, step)
    chunks = [cells.chunk(start, min(start + step, cells.n_cells))[RNA] for start in starts]
    return sp.vstack(chunks).tocsr()


def _tested(groups: Groups, table: pd.DataFrame) -> int:
    """Rows with a p value of the test that decides."""
    between = groups.samples is not None and "p_samples" in table
    return int(table["p_samples" if between else "p"].notna().sum())


def _empty(columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns=columns).astype({"significant": bool})


def _write(
    folder: Path,
    groups: Groups,
    tables: Mapping[str, pd.DataFrame],
    scores: pd.DataFrame | None,
    figure_format: str,
) -> None:
    from concerto_tf.tasks.comparison import figures

    for name in _TABLES:
        if not len(tables[name]):  # nothing was asked for, or could be tested; the notes say so
            remove(folder / f"{name}.tsv")
            continue
        write_table(folder / f"{name}.tsv", tables[name])
    place, found = folder / "figures", tables["markers"]
    for figure in _FIGURES:  # the folder may hold others' figures
        for suffix in FORMATS:
            remove(place / f"{figure}.{suffix}")
    drawn = {figure: place / f"{figure}.{figure_format}" for figure in _FIGURES}
    figures.composition_figure(groups, tables["composition"], drawn["composition"])
    if scores is not None:
        figures.violin_figure(groups, scores, "Module scores", drawn["violin_modules"])
    if not len(found):
        return
    called = found[found["significant"]]
    title = "Strongest significant genes" if len(called) else "Strongest genes; none is significant"
    ordered = (called if len(called) else found).sort_values("p", kind="stable")
    genes = list(dict.fromkeys(ordered["gene"]))[:30]
    values = figures.values_of(groups, genes[:6])
    figures.violin_figure(groups, values, title, drawn["violin_genes"])
    figures.dot_figure(groups, genes, title, drawn["dots"])
    figures.heat_figure(found, genes, title, drawn["heatmap"])
