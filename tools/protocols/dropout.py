"""How embeddings bear artificial dropout: a share of the nonzero entries masked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from protocols.baselines import cells_of
from protocols.charts import curves
from protocols.data_sets import of_clusters, prepare, prepare_all
from protocols.embeddings import COMPARED, check_numbers, checked_variants
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

RATES = (0.0, 0.1, 0.3, 0.6, 0.8)
SHOWN = {"ari_kmeans": "K-means, ARI", "ari_leiden": "Leiden, ARI", "nmi_leiden": "Leiden, NMI"}


def dropout(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    rates: Sequence[float] = RATES,
    methods: Sequence[str] = COMPARED,
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Masks a share of the nonzero entries, embeds anew, and scores the clusters.

    Each seed masks other entries, and higher rates of a seed mask those of its lower rates too.
    Cells that have lost all their counts are left out, and counted.

    Args:
        inputs: Files that `convert` takes, each a data set of its own.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png`` and ``records``. Called
            again, finished scores are kept; masked cells and their models are not.
        label_key: Column of obs with cell types, to score with.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.
        rates: Shares of the nonzero entries to mask, from 0 to below 1.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy) and ``pca``.
        presets: Presets to run beside the defaults, such as ``paper``.
        seeds: Of the mask and of the methods.
        **training: Further arguments of `train`, for every method.

    Returns:
        What ``result.json`` holds: by data set, rate and method the mean and the standard
        deviation over the seeds of each score of `clustering`; and in ``zeros`` by data set and
        rate the share of entries that are zero, and in ``emptied`` the number of cells left out,
        the mean over the seeds.

    Raises:
        InputError: A data set or an argument is unsuitable.

    Reference:
        CLEAR, "CLEAR corrects dropout events", figure 2.
    """
    chosen = checked_variants(training, seeds, methods, presets)
    check_numbers(rates=rates, least=0)
    for rate in rates:
        if rate >= 1:
            raise InputError(f"rate {rate!r} is not a share from 0 to below 1; 0.3 masks 30%")
    if not rates:
        raise InputError("no rate is given; 0.1 0.3 0.6 0.8 are the paper's")
    out = check_folder(out)
    scores = Scores(out, "dropout")
    counts: dict[str, dict[str, dict[float, list]]] = {"zeros": {}, "emptied": {}}
    whole = prepare_all(
        inputs, out / "records", label_key=label_key, source_key=source_key, layer=layer
    )
    for name, records in whole.items():
        cells = cells_of(records)
        of = {key: counts[key].setdefault(name, {rate: [] for rate in rates}) for key in counts}
        for seed, rate in product(seeds, rates):
            left = cells.copy()
            left.X = mask_entries(cells.X, rate, seed)
            with TemporaryDirectory(prefix="concerto-") as folder:
                part = prepare(
                    left, Path(folder), label_key=label_key, source_key="source", drop_empty=True
                )
                of["zeros"][rate].append(1 - left.X.nnz / np.prod(left.shape))
                of["emptied"][rate].append(records.n_cells - part.n_cells)
                scores.add(
                    chosen,
                    part,
                    seed,
                    of_clusters(part, label_key, seed),
                    training=training,
                    keep_models=False,
                    data=name,
                    rate=rate,
                )
    table = scores.table()
    result = {
        "seeds": list(seeds),
        "rates": list(rates),
        **{
            key: {name: {f"{r:g}": np.mean(v) for r, v in by.items()} for name, by in of.items()}
            for key, of in counts.items()
        },
        "data": summary(
            table.assign(rate=[f"{r:g}" for r in table["rate"]]), ["data", "rate", "method"]
        ),
    }
    figure = curves(
        table.sort_values("rate", kind="stable"),
        "rate",
        SHOWN,
        panel="data",
        label="share of nonzero entries masked",
    )
    return leave(out, table, result, figure)


def mask_entries(values: csr_matrix, rate: float, seed: int = 0) -> csr_matrix:
    """Sets a share of the nonzero entries to zero.

    Exactly ``round(rate * nnz)`` entries are drawn without replacement, so that the number of them
    in any one cell is hypergeometric.

    Args:
        values: Counts [n, G]; left as they are.
        rate: The share, 0 to 1.
        seed: Seed of the draw. Of one seed, the entries of a lower rate are among those of a
            higher one.

    Returns:
        A copy [n, G] without explicit zeros.

    Example:

    >>> import scipy.sparse as sp
    >>> mask_entries(sp.csr_matrix(np.ones((4, 5))), 0.3).nnz
    14
    """
    masked = values.copy()
    masked.eliminate_zeros()
    order = np.random.default_rng(seed).permutation(masked.nnz)
    masked.data[order[: round(rate * masked.nnz)]] = 0
    masked.eliminate_zeros()
    return masked
