"""Gene sets along all genes of a type, ranked by how they change: GSEA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from concerto_tf.tasks.comparison.groups import adjust

GSEA = "cell_type condition set set_size score p p_adjusted significant genes".split()
#: Genes of a set that are ranked, at least, and permutations of the ranking.
_FEWEST, _PERMUTATIONS = 3, 1000


def gsea(found: pd.DataFrame, sets: Mapping[str, Sequence[str]], alpha: float) -> pd.DataFrame:
    """Gene sets whose genes lie together at an end of the ranking of each type's genes.

    No gene has to be significant by itself. gseapy's `prerank`, by the p value of the test that
    counts with the sign of the change; p values are by 1,000 permutations, and so at least .001.

    Args:
        found: What `markers` gives.
        sets: Genes by name of the set.
        alpha: Share of false findings, by Benjamini and Hochberg within each type.

    Returns:
        One row per type, condition and set of 3 ranked genes or more, with `GSEA`: ``score`` is
        normalized, positive where the set is up, ``genes`` those that make it.

    Reference:
        Subramanian et al., PNAS 102:15545 (2005).
    """
    import gseapy

    tables = []
    for (cell_type, condition), part in found.groupby(["cell_type", "condition"], sort=False):
        by_samples = part["p_samples"].notna().any()
        p = part["p_samples" if by_samples else "p"].fillna(1.0).clip(lower=1e-300)
        # Scores tell genes of equal p apart.
        rank = np.sign(part["score"]) * -np.log10(p) + 1e-6 * part["score"]
        ranking = pd.Series(rank.to_numpy(float), part["gene"]).groupby(level=0).first()
        known = {name: sorted(set(ranking.index) & set(genes)) for name, genes in sets.items()}
        known = {name: genes for name, genes in known.items() if len(genes) >= _FEWEST}
        if not known or not ranking.std() > 0:
            continue
        result = gseapy.prerank(
            rnk=ranking.sort_values(ascending=False),
            gene_sets=known,
            min_size=_FEWEST,
            max_size=len(ranking),
            permutation_num=_PERMUTATIONS,
            seed=0,
            threads=1,
            outdir=None,
            no_plot=True,
        ).res2d
        least = 1 / (_PERMUTATIONS + 1)
        tables.append(
            pd.DataFrame(
                {
                    "cell_type": cell_type,
                    "condition": condition,
                    "set": result["Term"],
                    "set_size": [len(known[name]) for name in result["Term"]],
                    "score": result["NES"].astype(float),
                    "p": result["NOM p-val"].astype(float).clip(lower=least),
                    "genes": result["Lead_genes"],
                }
            )
        )
    if not tables:
        return pd.DataFrame(columns=GSEA).astype({"significant": bool})
    whole = adjust(pd.concat(tables, ignore_index=True), "p", by="cell_type")
    whole["significant"] = whole["p_adjusted"] <= alpha
    return whole[GSEA].sort_values(
        ["cell_type", "condition", "p"], kind="stable", ignore_index=True
    )
