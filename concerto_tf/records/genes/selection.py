"""The input genes of a model: all, the highly variable ones, or a list."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError
from concerto_tf.records.genes.overlap import FEWEST_SHARED

if TYPE_CHECKING:
    from concerto_tf.records.genes.gene_table import GeneStats
    from concerto_tf.records.reader import Records

_log = logging.getLogger("concerto_tf")
_BINS = 20
_FEWEST_CELLS = 3


def highly_variable(stats: GeneStats, n_top: int) -> np.ndarray:
    """The genes whose dispersion stands out most among genes of a similar mean.

    The same as scanpy's `filter_genes(min_cells=3)` and `highly_variable_genes` with its default
    flavour "seurat", from the moments that conversion takes, so without reading the cells again.

    Args:
        stats: Statistics of values scaled to 10,000 per cell.
        n_top: Number of genes.

    Returns:
        int64 [at most n_top], ascending; genes seen in fewer than 3 cells, of which nothing can
        be learned, are never among them.

    Reference:
        Satija et al., "Spatial reconstruction of single-cell gene expression data", Nature
        Biotechnology 2015, and scanpy's `_highly_variable_genes.py`.

    Example:
        >>> from concerto_tf.records.genes.gene_table import GeneStats
        >>> stats = GeneStats(np.array([9, 9, 9]), np.ones(3), np.array([1.0, 5.0, 2.0]))
        >>> highly_variable(stats, 2)
        array([1, 2])
    """
    seen = (stats.n_cells >= _FEWEST_CELLS) & (stats.mean > 0) & (stats.variance > 0)
    present = np.flatnonzero(seen)
    if not len(present):
        return present
    dispersion = np.log(stats.variance[present] / stats.mean[present])
    means = np.log1p(stats.mean[present])
    edges = np.linspace(means.min(), means.max(), _BINS + 1)
    bins = np.clip(np.searchsorted(edges, means, side="left") - 1, 0, _BINS - 1)

    count = np.bincount(bins, minlength=_BINS)
    average = np.bincount(bins, dispersion, _BINS) / np.maximum(count, 1)
    squares = np.bincount(bins, (dispersion - average[bins]) ** 2, _BINS)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    # A gene alone in its bin is neither more nor less variable than its like: scanpy gives it 1.
    alone = count[bins] == 1
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(alone, 1.0, (dispersion - average[bins]) / deviation[bins])
    score = np.nan_to_num(score, nan=-np.inf)
    best = np.argsort(-score, kind="stable")[:n_top]
    return np.sort(present[best])


def _of_all_inputs(records: Records, share: np.ndarray, n_top: int) -> GeneStats:
    """Statistics by which no gene is chosen that some inputs were not measured for.

    Such a gene would tell these from the others. Where hardly any is in all inputs, all remain.

    Args:
        records: The records.
        share: `Records.share_measured`, some of it between 0 and 1.
        n_top: Number of genes that are to be chosen.
    """
    stats, shared = records.gene_stats, int((share == 1).sum())
    if shared < FEWEST_SHARED:
        _log.warning(
            "%s: only %d genes are in all inputs; those that some lack are looked at too, and "
            "set inputs apart; leave out inputs of few genes",
            records.path,
            shared,
        )
        return stats
    if shared < min(n_top, records.n_genes) / 2:
        _log.warning(
            "%s: the model looks at the %d genes that all inputs have; leave out inputs of few "
            "genes to have it look at more",
            records.path,
            shared,
        )
    return replace(stats, n_cells=np.where(share == 1, stats.n_cells, 0))


def resolve_genes(wanted: str, records: Records) -> np.ndarray | None:
    """Reads which genes a model is to look at.

    Args:
        wanted: "all"; "hvg:N", the most variable of the genes that all inputs of the records were
            measured for; or the path of a text file with one gene per line.
        records: The records whose genes are meant.

    Returns:
        int64 indices, ascending, or None for all genes.

    Raises:
        InputError: Not one of these, or no gene of the list is in the records.
    """
    if not wanted.strip():
        raise InputError(
            "genes is empty; give all, hvg:2000 or a file with one gene per line", "genes"
        )
    share = records.share_measured()
    partly = (share > 0) & (share < 1)
    if wanted == "all":
        if partly.any():
            _log.warning(
                "%s: %d genes are not in all inputs and read as zero there, which sets inputs "
                "apart; hvg:%d leaves them out",
                records.path,
                partly.sum(),
                len(partly),
            )
        return None
    number = re.fullmatch(r"hvg:(\d+)", wanted)
    if number:
        n_top = int(number[1])
        if n_top < 1:
            raise InputError(f"{wanted}: ask for at least one gene", "genes")
        if n_top >= records.n_genes and not partly.any():
            return None
        stats = _of_all_inputs(records, share, n_top) if partly.any() else records.gene_stats
        chosen = highly_variable(stats, n_top)
        if not len(chosen):
            raise InputError(
                f"{records.path}: no gene is seen in {_FEWEST_CELLS} cells and varies; check the "
                "counts, or look at all genes",
                Argument("genes", "all"),
            )
        return chosen
    if wanted.startswith("hvg"):
        raise InputError(f"{wanted}: write hvg:2000 for the 2,000 most variable genes", "genes")
    try:
        text = as_path(wanted).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{wanted}: cannot be read as a list of genes ({error}); give all, hvg:2000 or a file "
            "with one gene per line",
            "genes",
        ) from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    vocabulary = records.vocabulary
    indices = {vocabulary.positions[name] for name in names if name in vocabulary.positions}
    if vocabulary.symbols is not None:
        listed = set(names)
        indices |= {i for i, symbol in enumerate(vocabulary.symbols) if symbol in listed}
    if not indices:
        shown = ", ".join(vocabulary.names[:3])
        given = ", ".join(names[:3]) or "nothing"
        raise InputError(
            f"{wanted}: none of its genes ({given}, ...) is in the records ({shown}, ...)", "genes"
        )
    return np.array(sorted(indices), np.int64)
