"""Genes of a type between samples: PyDESeq2 on summed counts where it can be, else a t-test."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from concerto_tf._progress import stage
from concerto_tf.tasks.comparison.groups import Groups, t_test

_log = logging.getLogger("concerto_tf")
#: What decides where samples are known.
PSEUDOBULK, T_TEST = "PyDESeq2 on the samples' summed counts", "t-test of the samples' means"


def test_between_samples(groups: Groups) -> str:
    """Which test `p_between_samples` makes."""
    counts = groups.counts is not None and find_spec("pydeseq2") is not None
    return PSEUDOBULK if counts else T_TEST


def p_between_samples(
    groups: Groups, compared: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """P values of genes of each type, condition against control, samples being replicates.

    Args:
        groups: The cells, whose samples are known.
        compared: Of each type, positions of the genes tested, and of its cells in the condition and
            in the control.

    Returns:
        Of each type [genes] float64; NaN where a side has fewer than two samples, or a gene cannot
        be tested.
    """
    done, of = 0, sum(len(genes) for genes, *_ in compared)
    test = "PyDESeq2" if test_between_samples(groups) == PSEUDOBULK else "t-tests"
    found = []
    with stage(lambda: f"{test} between samples: {done:,} of {of:,} genes done"):
        for genes, cells, control in compared:
            found.append(_of_type(groups, genes, cells, control))
            done += len(genes)
    return found


def _of_type(
    groups: Groups, genes: np.ndarray, cells: np.ndarray, control: np.ndarray
) -> np.ndarray:
    if min(groups.n_samples(cells), groups.n_samples(control)) < 2:
        return np.full(len(genes), np.nan)
    if test_between_samples(groups) == PSEUDOBULK:
        assert groups.counts is not None
        own = groups.counts[:, genes]
        sums = [
            groups.by_sample(own, side) * _cells_by_sample(groups, side)[:, None]
            for side in (cells, control)
        ]
        try:
            return _deseq2(*sums)
        except Exception as error:  # noqa: BLE001 - whatever a fit of others fails with
            _log.warning("PyDESeq2 fails (%s); t-tests of means instead", str(error)[:200])
    part = groups.values[:, genes]
    return t_test(groups.by_sample(part, cells), groups.by_sample(part, control))


def _cells_by_sample(groups: Groups, cells: np.ndarray) -> np.ndarray:
    assert groups.samples is not None
    return np.unique(groups.samples[cells], return_counts=True)[1]


def _deseq2(case: np.ndarray, control: np.ndarray) -> np.ndarray:
    """PyDESeq2's p values [genes] of summed counts [samples, genes]."""
    import pandas as pd
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats
    from threadpoolctl import threadpool_limits

    sums = np.rint(np.concatenate([case, control])).astype(int)
    names = [f"s{i}" for i in range(len(sums))]
    side = ["case"] * len(case) + ["control"] * len(control)
    counts = pd.DataFrame(sums, names, [str(i) for i in range(sums.shape[1])])
    # Each gene is a fit of a few numbers: threads of BLAS wait for each other five times as long as
    # the fits take, and processes of their own take longer to start.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = DeseqDataSet(
            counts=counts,
            metadata=pd.DataFrame({"side": side}, names),
            design="~side",
            quiet=True,
            n_cpus=1,
        )
        data.deseq2()
        told = DeseqStats(
            data,
            contrast=["side", "case", "control"],
            independent_filter=False,
            quiet=True,
            n_cpus=1,
        )
        told.summary()
    return told.results_df["pvalue"].reindex(counts.columns).to_numpy(float)
