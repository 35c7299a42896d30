"""Simulated single-cell counts of any number of cells, in fixed memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from concerto_tf._threads import processors
from concerto_tf.errors import checked_whole
from concerto_tf.simulate.counts import CellBlock, draw_cells, draw_counts
from concerto_tf.simulate.genes import draw_genes
from concerto_tf.simulate.params import SplatParams

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

# Cells drawn from one seed. Part of what a seed means: changing it changes every simulation.
_BLOCK = 2048


class Experiment:
    """The cells of an experiment by their number, drawn whenever they are asked for.

    Nothing is kept but what all cells share, so any stretch of any number of cells can be read,
    again and in any order, in the memory of that stretch.

    Args:
        params: the experiment.
        workers: threads; by default the machine's processors, at most 4.

    Raises:
        InputError: workers is below 1.

    Example:
        >>> from concerto_tf.simulate import Experiment, SplatParams
        >>> cells = Experiment(SplatParams.droplet(n_cells=10**9, n_genes=500))
        >>> cells.counts(10**8, 10**8 + 3).shape, cells.obs(10**8, 10**8 + 1).index[0]
        ((3, 500), 'Cell100000001')
    """

    def __init__(self, params: SplatParams, workers: int | None = None) -> None:
        self.params = params
        self.workers = checked_whole(
            "workers", min(4, processors()) if workers is None else workers
        )
        self.genes = draw_genes(params)

    def counts(self, start: int, stop: int) -> sparse.csr_matrix:
        """Counts [stop - start, G] of the cells start to stop: CSR float32, sorted indices."""
        parts = [counts for counts, _ in self._stretch(start, stop)]
        if not parts:
            return sparse.csr_matrix((0, self.params.n_genes), dtype=np.float32)
        return parts[0] if len(parts) == 1 else sparse.vstack(parts, "csr")

    def obs(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """The table of the cells start to stop that `stream` describes, without their counts."""
        stop = self.params.n_cells if stop is None else stop
        cells = [_part(self._cells(i)[1], *edges) for i, *edges in _edges(start, stop)]
        return self._table(start, cells)

    def var(self) -> pd.DataFrame:
        """The table of genes: what is true of them."""
        import pandas as pd

        params, genes = self.params, self.genes
        name = "Path" if params.paths else "Group"
        var = {"mean": genes.means, "outlier": genes.outliers}
        if params.n_groups > 1 or params.paths:
            var |= {f"de_{name}{g + 1}": f for g, f in enumerate(genes.group_factors)}
        if params.n_batches > 1:
            var |= {f"batch_Batch{b + 1}": f for b, f in enumerate(genes.batch_factors)}
        return pd.DataFrame(var, index=[f"Gene{i + 1}" for i in range(params.n_genes)])

    def uns(self) -> dict:
        """The parameters, as `.h5ad` can store them: neither None nor tuples."""
        given = {k: v for k, v in asdict(self.params).items() if v is not None}
        return {"simulation": {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}}

    def chunks(self, chunk_cells: int) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
        """All cells in order, as `stream` yields them."""
        waiting: list[tuple[sparse.csr_matrix, CellBlock]] = []
        n_waiting = start = 0
        for counts, cells in self._blocks(range(-(-self.params.n_cells // _BLOCK))):
            offset, n = 0, counts.shape[0]
            while offset < n:
                stop = min(n, offset + chunk_cells - n_waiting)
                waiting.append(_cut(counts, cells, offset, stop))
                n_waiting, offset = n_waiting + stop - offset, stop
                if n_waiting == chunk_cells:
                    yield self._chunk(waiting, start)
                    start, waiting, n_waiting = start + n_waiting, [], 0
        if waiting:
            yield self._chunk(waiting, start)

    def _chunk(
        self, parts: list[tuple[sparse.csr_matrix, CellBlock]], start: int
    ) -> tuple[sparse.csr_matrix, pd.DataFrame]:
        """One chunk of counts with its table of cells; `start` is its first cell's number."""
        counts = parts[0][0] if len(parts) == 1 else sparse.vstack([c for c, _ in parts], "csr")
        return counts, self._table(start, [cells for _, cells in parts])

    def _stretch(self, start: int, stop: int) -> Iterator[tuple[sparse.csr_matrix, CellBlock]]:
        """Counts and cells of the blocks of the cells start to stop, cut to these."""
        edges = list(_edges(start, stop))
        blocks = self._blocks([i for i, *_ in edges])
        for (_, first, last), (counts, cells) in zip(edges, blocks, strict=True):
            yield _cut(counts, cells, first, last)

    def _table(self, start: int, parts: list[CellBlock]) -> pd.DataFrame:
        """The table of consecutive cells, the first of which is number `start`."""
        import pandas as pd

        params = self.params
        group, step, batch, library = (
            np.concatenate([np.empty(0, dtype), *(getattr(cells, k) for cells in parts)])
            for k, dtype in (("group", int), ("step", int), ("batch", int), ("library", float))
        )
        name = "Path" if params.paths else "Group"
        obs = pd.DataFrame(index=[f"Cell{i + 1}" for i in range(start, start + len(group))])
        names = [f"{name}{g + 1}" for g in range(params.n_groups)]
        obs[name.lower()] = pd.Categorical.from_codes(group, names)
        if params.paths:
            obs["step"] = step
            obs["pseudotime"] = self.genes.starts[group] + step / (params.path_steps - 1)
        obs["batch"] = pd.Categorical.from_codes(
            batch, [f"Batch{b + 1}" for b in range(params.n_batches)]
        )
        obs["library_size"] = library
        return obs

    def _cells(self, block: int) -> tuple[np.random.Generator, CellBlock]:
        """The cells of a block, and its source of randomness after they were drawn."""
        params = self.params
        rng = np.random.default_rng(np.random.SeedSequence(params.seed, spawn_key=(1, block)))
        return rng, draw_cells(rng, min(_BLOCK, params.n_cells - block * _BLOCK), params)

    def _block(self, block: int) -> tuple[sparse.csr_matrix, CellBlock]:
        rng, cells = self._cells(block)
        return draw_counts(rng, cells, self.genes, self.params), cells

    def _blocks(self, blocks: Sequence[int]) -> Iterator[tuple[sparse.csr_matrix, CellBlock]]:
        """These blocks in order, `workers` of them in work at a time."""
        if self.workers == 1 or len(blocks) == 1:
            yield from map(self._block, blocks)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            ahead: deque = deque()
            try:
                for i in blocks:
                    ahead.append(pool.submit(self._block, i))
                    if len(ahead) > self.workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:  # a consumer that stops early waits for no more than the blocks in work
                for future in ahead:
                    future.cancel()


def stream(
    params: SplatParams, chunk_cells: int = _BLOCK, workers: int | None = None
) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
    """Simulates cells chunk after chunk, in memory that does not grow with their number.

    Every block of 2,048 cells has its own random stream, derived from the seed and the block's
    number, so the counts depend neither on `chunk_cells` nor on `workers`. The full blocks also
    stay the same when more cells are asked for.

    Args:
        params: the experiment.
        chunk_cells: cells per chunk; the last one may be smaller. As they are drawn (2,048) is
            quickest: nothing is copied.
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
    return Experiment(params, workers).chunks(checked_whole("chunk_cells", chunk_cells))


def simulate_cells(params: SplatParams, workers: int | None = None) -> AnnData:
    """Simulates all cells of an experiment into memory.

    Args:
        params: the experiment.
        workers: threads; by default the machine's processors, at most 4.

    Returns:
        AnnData with counts in X (CSR float32); in `obs` what `stream` yields; in `var` the gene
        means (`mean`), whether they are outliers (`outlier`), and the factors of every group or
        path (`de_Group1`, ...) and batch (`batch_Batch1`, ...); the parameters in
        `uns["simulation"]`.

    Example:
        >>> from concerto_tf.simulate import SplatParams, simulate_cells
        >>> adata = simulate_cells(SplatParams.droplet(n_cells=50, n_genes=200, seed=1))
        >>> adata.shape
        (50, 200)
    """
    from anndata import AnnData

    cells = Experiment(params, workers)
    ((counts, obs),) = cells.chunks(params.n_cells)
    return AnnData(counts, obs, cells.var(), cells.uns())


def _edges(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The blocks of the cells start to stop: number, first and one past the last within each."""
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        first = block * _BLOCK
        yield block, max(start - first, 0), min(stop - first, _BLOCK)


def _cut(
    counts: sparse.csr_matrix, cells: CellBlock, start: int, stop: int
) -> tuple[sparse.csr_matrix, CellBlock]:
    """Some cells of a block; the block itself, uncopied, if it is all of them."""
    if stop - start == counts.shape[0]:
        return counts, cells
    return counts[start:stop], _part(cells, start, stop)


def _part(cells: CellBlock, start: int, stop: int) -> CellBlock:
    return CellBlock(*(getattr(cells, name)[start:stop] for name in CellBlock.__annotations__))
