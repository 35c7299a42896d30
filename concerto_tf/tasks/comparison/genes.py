"""Which genes and gene sets change within a cell type in a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from concerto_tf._progress import stage
from concerto_tf.tasks.comparison.groups import Groups, adjust, rank_skewness, skewed_p, t_test
from concerto_tf.tasks.comparison.pseudobulk import p_between_samples

# A gene is tested where this share of a type's cells, and this many of them, express it: of both
# conditions together, so that the choice says nothing about the difference.
_EXPRESSING_SHARE, _EXPRESSING_CELLS = 0.03, 10
MARKERS = (
    "cell_type condition gene log_fold_change share_control share_condition score p "
    "p_adjusted p_samples p_samples_adjusted significant"
).split()
MODULES = (
    "cell_type condition set genes mean_control mean_condition difference p p_adjusted "
    "p_samples p_samples_adjusted significant"
).split()
ENRICHMENT = (
    "cell_type condition direction set overlap set_size odds_ratio p p_adjusted significant genes"
).split()
_GSEAPY = {"odds_ratio": "Odds Ratio", "p": "P-value", "genes": "Genes"}


def markers(groups: Groups, alpha: float, log_fold_change: float, min_cells: int) -> pd.DataFrame:
    """Wilcoxon rank-sum test of every gene within every type, condition against control.

    Scanpy's scores, with correction for ties; p values from them by a Pearson type III
    distribution with the rank sum's own skewness, since the normal one calls too many genes where
    one of the groups is small. They take cells for independent. With samples, `p_samples` is that
    of a test between samples (`p_between_samples`), which is what counts then. A gene that a
    condition has nowhere has no fold change; its p value alone decides.

    Args:
        groups: The cells.
        alpha: Share of false findings, by Benjamini and Hochberg within each type.
        log_fold_change: What the base 2 logarithm of the fold change must reach, up or down.
        min_cells: Cells of a type that a condition must have.

    Returns:
        One row per type, condition and gene tested, with `MARKERS`; the strongest first.
    """
    tables: list[pd.DataFrame] = []
    compared: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    pairs = list(groups.pairs(min_cells))
    with stage(lambda: f"rank sum tests: {len(compared)} of {len(pairs)} cell types done"):
        for cell_type, case, cells, control in pairs:
            tested = _expressed(groups, cells, control)
            if not len(tested):
                continue
            table = _rank_sums(groups, tested, cells, control)
            table.insert(0, "cell_type", groups.type_names[cell_type])
            table.insert(1, "condition", groups.condition_names[case])
            tables.append(table)
            compared.append((tested, cells, control))
    if groups.samples is not None:
        for table, p_samples in zip(tables, p_between_samples(groups, compared), strict=True):
            table["p_samples"] = p_samples
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=MARKERS)
    found = _judged(groups, whole, alpha)
    change = found["log_fold_change"].astype(float)
    found["significant"] &= change.isna() | (change.abs() >= log_fold_change)
    return found[MARKERS].sort_values(
        ["cell_type", "condition", "significant", "p"],
        ascending=[True, True, False, True],
        kind="stable",
        ignore_index=True,
    )


def fold_changes(table: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Log fold changes of `markers` by type and condition (rows) and gene; NaN where there is none.

    A gene that has none anywhere, as a condition lacks it, keeps its column.
    """
    rows = ["cell_type", "condition"]
    part = table[table["gene"].isin(genes)].drop_duplicates([*rows, "gene"])
    return part.pivot(index=rows, columns="gene", values="log_fold_change")[list(genes)]


def modules(
    groups: Groups, scores: pd.DataFrame, sizes: Mapping[str, int], alpha: float, min_cells: int
) -> pd.DataFrame:
    """Scores of gene sets within every type, condition against control: Mann and Whitney's test.

    Args:
        groups: The cells.
        scores: [n, sets].
        sizes: Genes found of each set.
        alpha, min_cells: As for `markers`.

    Returns:
        One row per type, condition and set, with `MODULES`.
    """
    from scipy.stats import mannwhitneyu

    values, rows = scores.to_numpy(float), []
    for cell_type, case, cells, control in groups.pairs(min_cells):
        p_samples = np.full(values.shape[1], np.nan)
        if groups.samples is not None:
            p_samples = t_test(groups.by_sample(values, cells), groups.by_sample(values, control))
        for i, name in enumerate(scores.columns):
            there, before = values[cells, i], values[control, i]
            constant = np.ptp(values[np.concatenate([cells, control]), i]) == 0
            p = 1.0 if constant else mannwhitneyu(there, before, method="asymptotic").pvalue
            rows.append(
                [
                    groups.type_names[cell_type],
                    groups.condition_names[case],
                    name,
                    sizes[name],
                    before.mean(),
                    there.mean(),
                    there.mean() - before.mean(),
                    p,
                    p_samples[i],
                ]
            )
    columns = [c for c in MODULES if not c.endswith("_adjusted") and c != "significant"]
    table = pd.DataFrame(rows, columns=columns)
    return _judged(groups, table, alpha)[MODULES]


def enrichment(
    found: pd.DataFrame, sets: Mapping[str, Sequence[str]], alpha: float
) -> pd.DataFrame:
    """Gene sets over-represented among the significant genes of each type, up and down apart.

    gseapy's hypergeometric test, against the genes that were tested in that type.

    Args:
        found: What `markers` gives.
        sets: Genes by name of the set.
        alpha: As for `markers`.

    Returns:
        One row per type, condition, direction and set, with `ENRICHMENT`; none of a type and
        direction without significant genes.
    """
    import gseapy

    tables = []
    for (cell_type, condition), part in found.groupby(["cell_type", "condition"], sort=False):
        background = set(part["gene"])
        known = {name: sorted(background & set(genes)) for name, genes in sets.items()}
        known = {name: genes for name, genes in known.items() if genes}
        for direction, sign in (("up", 1), ("down", -1)):
            chosen = part[part["significant"] & (np.sign(part["score"]) == sign)]
            hits = set(chosen["gene"])
            # sets without any hit are tests that were made, too
            table = pd.DataFrame(
                {
                    "cell_type": cell_type,
                    "condition": condition,
                    "direction": direction,
                    "set": list(known),
                    "overlap": [len(hits & set(known[n])) for n in known],
                    "set_size": [len(known[n]) for n in known],
                    "odds_ratio": 0.0,
                    "p": 1.0,
                    "genes": "",
                }
            ).set_index("set", drop=False)
            if table["overlap"].any():
                results = gseapy.enrich(
                    sorted(hits), known, background=sorted(background), outdir=None, no_plot=True
                ).results.set_index("Term")
                for column, name in _GSEAPY.items():
                    table.loc[results.index, column] = results[name]
            if hits and known:
                tables.append(table)
    if not tables:
        return pd.DataFrame(columns=ENRICHMENT)
    whole = adjust(pd.concat(tables, ignore_index=True), "p", by="cell_type")
    whole["significant"] = whole["p_adjusted"] <= alpha
    return whole[ENRICHMENT].sort_values(
        ["cell_type", "condition", "direction", "p"], kind="stable", ignore_index=True
    )


def has_gseapy() -> bool:
    """Whether `enrichment` can do its work."""
    try:
        import gseapy  # noqa: F401
    except ImportError:
        return False
    return True


def scores_of(values: sp.csc_matrix, sets: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Mean over a set's genes of their values, each scaled to 0..1 over the cells [n, sets]."""
    from concerto_tf.tasks.score import scaled_by_gene

    return pd.DataFrame(
        {name: scaled_by_gene(values[:, list(genes)]).mean(1).A1 for name, genes in sets.items()}
    )


def _expressed(groups: Groups, cells: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Positions of the genes that enough of these cells express to be tested."""
    expressing = np.bincount(
        groups.values[np.concatenate([cells, control])].indices, minlength=len(groups.genes)
    )
    least = max(_EXPRESSING_CELLS, _EXPRESSING_SHARE * (len(cells) + len(control)))
    return np.flatnonzero(expressing >= least)


def _rank_sums(
    groups: Groups, tested: np.ndarray, cells: np.ndarray, control: np.ndarray
) -> pd.DataFrame:
    """Columns of `MARKERS` between the cells of one type, a row per gene of `tested`."""
    import scanpy as sc
    from anndata import AnnData

    values = groups.values[np.concatenate([cells, control])].tocsc()[:, tested]
    side = pd.Categorical.from_codes(np.repeat([0, 1], [len(cells), len(control)]), ["1", "0"])
    adata = AnnData(
        values.tocsr(),
        pd.DataFrame({"side": side}, [str(i) for i in range(len(side))]),
        pd.DataFrame(index=[str(i) for i in range(len(tested))]),
    )
    adata.uns["log1p"] = {"base": None}
    sc.tl.rank_genes_groups(
        adata,
        "side",
        groups=["1"],
        reference="0",
        method="wilcoxon",
        tie_correct=True,
        use_raw=False,
    )
    found = sc.get.rank_genes_groups_df(adata, group="1")
    found.index = found["names"].astype(int)
    found = found.sort_index()
    score = found["scores"].to_numpy(float)
    table = pd.DataFrame(
        {
            "gene": [groups.genes[i] for i in tested],
            "log_fold_change": found["logfoldchanges"].to_numpy(float),
            "share_control": (values[len(cells) :] > 0).mean(0).A1,
            "share_condition": (values[: len(cells)] > 0).mean(0).A1,
            "score": score,
            "p": skewed_p(score, rank_skewness(values, len(cells))),
            "p_samples": np.nan,
        }
    )
    # What is a gene times as high as where there is none of it?
    absent = (table["share_control"] == 0) | (table["share_condition"] == 0)
    table.loc[absent, "log_fold_change"] = np.nan
    return table


def _judged(groups: Groups, table: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The table with adjusted p values, and what is significant by the test that counts."""
    table = adjust(table, "p", "p_samples", by="cell_type")
    counts = "p_adjusted" if groups.samples is None else "p_samples_adjusted"
    table["significant"] = table[counts].astype(float) <= alpha
    return table
