"""Which cell types become more or less frequent in a condition."""

from __future__ import annotations

import numpy as np
import pandas as pd

from concerto_tf.tasks.comparison.groups import Groups, adjust, t_test

COLUMNS = (
    "cell_type condition cells_control cells_condition share_control share_condition "
    "log2_ratio test p p_adjusted significant"
).split()


def composition(groups: Groups, alpha: float) -> pd.DataFrame:
    """Shares of every cell type in every condition beside those in the control, with a test.

    With samples: Student's t-test between the logits of the samples' shares (with half a cell
    added on either side), none where a condition has fewer than two. Without: Fisher's exact test,
    which takes every cell for an independent draw. A share is one of all cells: where one type
    grows, others shrink.

    Args:
        groups: The cells.
        alpha: Share of false findings, by Benjamini and Hochberg over all rows.

    Returns:
        One row per type and condition, with `COLUMNS`.
    """
    from scipy.stats import fisher_exact

    n_types, n_conditions = len(groups.type_names), len(groups.condition_names)
    counts = np.zeros((n_conditions, n_types), int)
    np.add.at(counts, (groups.conditions, groups.types), 1)
    totals = counts.sum(1)
    logits, of = _logits(groups) if groups.samples is not None else (None, None)
    rows = []
    for case in groups.cases:
        sides = () if logits is None else (logits[of == case], logits[of == 0])
        p_samples = t_test(*sides) if sides else None
        for cell_type, name in enumerate(groups.type_names):
            there, before = counts[case, cell_type], counts[0, cell_type]
            # half a cell more, so that a type that is not there has a ratio too
            ratio = (there + 0.5) / (totals[case] + 1) / ((before + 0.5) / (totals[0] + 1))
            if p_samples is None:
                table = [[there, totals[case] - there], [before, totals[0] - before]]
                test, p = "Fisher's exact, on cells", fisher_exact(table)[1]
            elif min(map(len, sides)) < 2:
                test, p = "none, too few samples", np.nan
            else:
                test, p = "t of logit shares, on samples", p_samples[cell_type]
            rows.append(
                [
                    name,
                    groups.condition_names[case],
                    before,
                    there,
                    before / totals[0],
                    there / totals[case],
                    np.log2(ratio),
                    test,
                    p,
                ]
            )
    table = adjust(pd.DataFrame(rows, columns=COLUMNS[:-2]), "p")
    table["significant"] = table["p_adjusted"] <= alpha
    return table[COLUMNS].sort_values(["condition", "p"], kind="stable", ignore_index=True)


def _logits(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the types' shares in each sample [samples, types], and its condition [samples]."""
    assert groups.samples is not None
    _, first, own = np.unique(groups.samples, return_index=True, return_inverse=True)
    counts = np.zeros((len(first), len(groups.type_names)), int)
    np.add.at(counts, (own, groups.types), 1)
    rest = counts.sum(1, keepdims=True) - counts
    return np.log((counts + 0.5) / (rest + 0.5)), groups.conditions[first]
