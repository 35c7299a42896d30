"""Simulated single-cell counts of any number of cells, in fixed memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from concerto_tf.errors import InputError
from concerto_tf.simulate.counts import Cells, draw_cells, draw_counts
from concerto_tf.simulate.genes import GeneModel, draw_genes
from concerto_tf.simulate.params import SplatParams

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# Cells drawn from one seed. Part of what a seed means: changing it changes every simulation.
BLOCK = 2048


def stream(
    params: SplatParams, chunk_cells: int = 8192, workers: int | None = None
) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
    """Simulate cells chunk after chunk, in memory that does not grow with their number.

    Every block of 2,048 cells has its own random stream, derived from the seed and the block's
    number, so the counts depend neither on `chunk_cells` nor on `workers`. The full blocks also
    stay the same when more cells are asked for.

    Args:
        params: the experiment.
        chunk_cells: cells per chunk; the last one may be smaller.
        workers: threads; by default the machine's processors, at most 4.

    Yields:
        `(counts, obs)`: counts [chunk, G] CSR float32 of whole numbers with sorted indices, and a
        data frame with `library_size` (expected counts before dropout), the categories `group`
        ("Group1", ...; or `path` "Path1", ... with `step` and `pseudotime`) and `batch`
        ("Batch1", ...). Pseudotime counts whole paths from the origin: 1.25 is a quarter along
        a path that begins at the end of a first one.

    Raises:
        InputError: chunk_cells or workers is below 1.

    Example:
        >>> from concerto_tf.simulate import SplatParams, stream
        >>> params = SplatParams.droplet(n_cells=250, n_genes=500, group_sizes=(2, 1))
        >>> [counts.shape for counts, obs in stream(params, chunk_cells=100)]
        [(100, 500), (100, 500), (50, 500)]

    Reference:
        Zappia, Phipson and Oshlack, Genome Biology 18:174 (2017). The draws are exact, see
        `concerto_tf.simulate.counts`. Other than in the R package, cells are assigned to batches
        at random, as they are to groups, and random walks along paths are scaled by the
        gene's mean on the path.
    """
    if chunk_cells < 1:
        raise InputError(f"chunk_cells is {chunk_cells}: it must be at least 1.")
    if workers is None:
        workers = min(4, os.cpu_count() or 1)
    if workers < 1:
        raise InputError(f"workers is {workers}: it must be at least 1.")
    return _chunks(params, draw_genes(params), chunk_cells, workers)


def simulate(params: SplatParams, workers: int | None = None) -> AnnData:
    """Simulate all cells of an experiment into memory.

    Args:
        params: the experiment.
        workers: threads; by default the machine's processors, at most 4.

    Returns:
        AnnData with counts in X (CSR float32); in `obs` what `stream` yields; in `var` the gene
        means (`mean`), whether they are outliers (`outlier`), and the factors of every group or
        path (`de_Group1`, ...) and batch (`batch_Batch1`, ...); the parameters in
        `uns["simulation"]`.

    Example:
        >>> from concerto_tf.simulate import SplatParams, simulate
        >>> adata = simulate(SplatParams.droplet(n_cells=50, n_genes=200, seed=1))
        >>> adata.shape
        (50, 200)
    """
    import pandas as pd
    from anndata import AnnData

    genes = draw_genes(params)
    counts, obs = zip(*_chunks(params, genes, params.n_cells, workers or 2), strict=True)
    name = "Path" if params.paths else "Group"
    var = {"mean": genes.means, "outlier": genes.outliers}
    if params.n_groups > 1 or params.paths:
        var |= {f"de_{name}{g + 1}": f for g, f in enumerate(genes.group_factors)}
    if params.n_batches > 1:
        var |= {f"batch_Batch{b + 1}": f for b, f in enumerate(genes.batch_factors)}
    index = [f"Gene{i + 1}" for i in range(params.n_genes)]
    adata = AnnData(counts[0], obs[0], pd.DataFrame(var, index=index))
    # h5ad stores neither None nor tuples
    adata.uns["simulation"] = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in asdict(params).items()
        if v is not None
    }
    return adata


def _chunks(
    params: SplatParams, genes: GeneModel, chunk_cells: int, workers: int
) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
    """Cut the stream of blocks into chunks."""
    waiting: list[tuple[sparse.csr_matrix, Cells]] = []
    n_waiting = start = 0
    for counts, cells in _blocks(params, genes, workers):
        offset, n = 0, counts.shape[0]
        while offset < n:
            stop = min(n, offset + chunk_cells - n_waiting)
            part = slice(offset, stop)
            waiting.append(
                (counts[part], Cells(*(getattr(cells, k)[part] for k in Cells.__annotations__)))
            )
            n_waiting, offset = n_waiting + stop - offset, stop
            if n_waiting == chunk_cells:
                yield _chunk(waiting, start, params, genes)
                start, waiting, n_waiting = start + n_waiting, [], 0
    if waiting:
        yield _chunk(waiting, start, params, genes)


def _chunk(
    parts: list[tuple[sparse.csr_matrix, Cells]], start: int, params: SplatParams, genes: GeneModel
) -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """One chunk of counts with its table of cells; `start` is its first cell's number."""
    import pandas as pd

    counts = parts[0][0] if len(parts) == 1 else sparse.vstack([c for c, _ in parts], "csr")
    group, step, batch, library = (
        np.concatenate([getattr(cells, k) for _, cells in parts])
        for k in ("group", "step", "batch", "library")
    )
    name = "Path" if params.paths else "Group"
    obs = pd.DataFrame(index=[f"Cell{i + 1}" for i in range(start, start + len(group))])
    names = [f"{name}{g + 1}" for g in range(params.n_groups)]
    obs[name.lower()] = pd.Categorical.from_codes(group, names)
    if params.paths:
        obs["step"] = step
        obs["pseudotime"] = genes.starts[group] + step / (params.path_steps - 1)
    obs["batch"] = pd.Categorical.from_codes(
        batch, [f"Batch{b + 1}" for b in range(params.n_batches)]
    )
    obs["library_size"] = library
    return counts, obs


def _blocks(
    params: SplatParams, genes: GeneModel, workers: int
) -> Iterator[tuple[sparse.csr_matrix, Cells]]:
    """Blocks in order, `workers` of them in work at a time."""

    def block(i: int) -> tuple[sparse.csr_matrix, Cells]:
        rng = np.random.default_rng(np.random.SeedSequence(params.seed, spawn_key=(1, i)))
        cells = draw_cells(rng, min(BLOCK, params.n_cells - i * BLOCK), params)
        return draw_counts(rng, cells, genes, params), cells

    n_blocks = -(-params.n_cells // BLOCK)
    if workers == 1:
        yield from map(block, range(n_blocks))
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        try:
            for i in range(n_blocks):
                ahead.append(pool.submit(block, i))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # a consumer that stops early waits for no more than the blocks in work
            for future in ahead:
                future.cancel()
