"""What `compare` compares: cells by type and condition, and the tests all its tables share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp


@dataclass(frozen=True)
class Groups:
    """Cells with their type, condition and, where known, sample.

    Attributes:
        values: [n, G] CSR float32, log-normalized.
        genes: G names.
        types: [n] codes of `type_names`.
        conditions: [n] codes of `condition_names`, of which the first is the control.
        counts: [n, G] CSR raw counts where there are any and samples are compared, or None.
        samples: [n] codes of samples, each of them of one condition, or None where the control and
            another condition have not two samples each.
        type_names: names of the types.
        condition_names: names of the conditions.
    """

    values: sp.csr_matrix
    genes: tuple[str, ...]
    types: np.ndarray
    conditions: np.ndarray
    samples: np.ndarray | None
    type_names: list[str]
    condition_names: list[str]
    counts: sp.csr_matrix | None = None

    @property
    def cases(self) -> range:
        """Codes of the conditions that are compared with the control."""
        return range(1, len(self.condition_names))

    def pairs(self, min_cells: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Type, condition, and the positions of that type's cells there and in the control.

        Pairs with fewer than `min_cells` cells on either side are left out.
        """
        for cell_type in range(len(self.type_names)):
            own = self.types == cell_type
            control = np.flatnonzero(own & (self.conditions == 0))
            for case in self.cases:
                cells = np.flatnonzero(own & (self.conditions == case))
                if min(len(cells), len(control)) >= min_cells:
                    yield cell_type, case, cells, control

    def n_samples(self, cells: np.ndarray) -> int:
        """Number of samples that `cells`, positions or a mask, come from."""
        assert self.samples is not None
        return len(np.unique(self.samples[cells]))

    def by_sample(self, values: np.ndarray | sp.spmatrix, cells: np.ndarray) -> np.ndarray:
        """Means [samples, ...] of `values` [n, ...] over those of `cells` in each sample."""
        assert self.samples is not None
        _, own = np.unique(self.samples[cells], return_inverse=True)
        member = sp.csr_matrix((np.ones(len(cells)), (own, np.arange(len(cells)))))
        sums = member @ values[cells]
        sums = sums.toarray() if sp.issparse(sums) else np.asarray(sums)
        return sums / np.bincount(own).reshape(-1, *[1] * (sums.ndim - 1))


def adjust(table: pd.DataFrame, *columns: str, by: str | None = None) -> pd.DataFrame:
    """Adds `<column>_adjusted`: Benjamini and Hochberg's over all rows; NaN stays NaN.

    Args:
        table: Rows of tests.
        *columns: Their p values.
        by: A column; each of its values is then a family of tests of its own.
    """
    from scipy.stats import false_discovery_control

    families = np.zeros(len(table), int) if by is None else pd.factorize(table[by])[0]
    for column in columns:
        p = table[column].to_numpy(float)
        adjusted = np.full(len(p), np.nan)
        for family in np.unique(families):
            known = np.isfinite(p) & (families == family)
            if known.any():
                adjusted[known] = false_discovery_control(p[known])
        table[f"{column}_adjusted"] = adjusted
    return table


def t_test(case: np.ndarray, control: np.ndarray) -> np.ndarray:
    """P values of Student's t-test between samples, [...] of [samples, ...].

    Variances are pooled: with two or three samples on a side there is no estimating two of them.
    NaN where a side has fewer than two samples or nothing varies.
    """
    from scipy.stats import t

    n, m = len(case), len(control)
    if min(n, m) < 2:
        return np.full(case.shape[1:], np.nan)
    squares = ((case - case.mean(0)) ** 2).sum(0) + ((control - control.mean(0)) ** 2).sum(0)
    error = np.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(error > 0, (case.mean(0) - control.mean(0)) / error, np.nan)
    return 2 * t.sf(np.abs(statistic), n + m - 2)


def rank_skewness(columns: sp.csc_matrix, n_case: int) -> np.ndarray:
    """Skewness of the rank sum of `n_case` of the rows, over all ways to choose these.

    The rank sum is far from normal where one group is small and most values are tied at 0.

    Args:
        columns: [n, G], non-negative.
        n_case: size of the group whose ranks are added up.

    Returns:
        [G] float64; 0 where all values are the same.

    Reference:
        Mielke and Berry, "Permutation Methods" (2007): moments of sums drawn from a finite
        population, which here are the mid-ranks.
    """
    from scipy.stats import rankdata

    n, n_genes = columns.shape
    second, third = np.zeros(n_genes), np.zeros(n_genes)
    middle = (n + 1) / 2
    for gene in range(n_genes):
        own = columns.data[columns.indptr[gene] : columns.indptr[gene + 1]]
        zeros = n - len(own)
        ranks = zeros + rankdata(own) - middle
        low = (zeros + 1) / 2 - middle
        second[gene] = (ranks**2).sum() + zeros * low**2
        third[gene] = (ranks**3).sum() + zeros * low**3
    spread = np.sqrt(second / n)
    population = np.divide(third / n, spread**3, out=np.zeros(n_genes), where=spread > 0)
    rest = n - n_case
    return population * (rest - n_case) / (n - 2) * np.sqrt((n - 1) / (n_case * rest))


def skewed_p(score: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Two-sided p values of standardized scores by a Pearson type III distribution [...]."""
    from scipy.stats import pearson3

    return np.minimum(
        1.0, 2 * np.minimum(pearson3.sf(score, skewness), pearson3.cdf(score, skewness))
    )
