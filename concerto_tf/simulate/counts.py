"""Counts of one block of cells, drawn without visiting the zeros.

The Splat model draws, for a cell and a gene of expected count mu, a gamma-distributed rate with
mean mu and coefficient of variation `(phi + 1 / sqrt(mu)) * c` and then a Poisson count: a
negative binomial. With `s = c**2 * (1 + phi * sqrt(mu))**2` its shape is `r = mu / s`.

- A negative binomial is a Poisson number of clusters, of mean `r * log(1 + s)`, each of a
  logarithmically distributed size with parameter `s / (1 + s)` (Quenouille 1949). So the clusters
  of all cells of a group form one Poisson process. `log(1 + s) / s` falls with s, so the process
  with rate `mu * k`, `k = log(1 + c**2) / c**2`, lies above it for every depth of cell; its points
  are drawn per gene, given to cells with odds by depth, and thinned. Thinning and size take one
  uniform number together: a point is kept with size n with probability
  `s**(n - 1) / (1 + s)**n / (n * k)`.
- Genes for which that would mean several points per cell are drawn as gamma and Poisson outright.
- Given a count y, the rate is gamma distributed with shape `r + y` and scale `s / (1 + s)`, so
  dropout, which looks at the rate, is drawn for the nonzero counts alone.

All of this is exact up to the resolution of the 32-bit floats used on the way: no step approximates
the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from concerto_tf.simulate.genes import GeneModel
from concerto_tf.simulate.params import SplatParams

# Points per cell and gene above which drawing the gene for every cell is cheaper.
DENSE_ABOVE = 2.0
# Elements worked on at once: keeps the temporaries within the processor's cache.
_PIECE = 50_000
# Places in the table from which cells are drawn: all values of 16 bits.
TABLE = 1 << 16


@dataclass(frozen=True)
class CellBlock:
    """The cells of one block.

    Attributes:
        group: [n] int64.
        step: [n] int64 position along the path, 0 where there are none.
        batch: [n] int64.
        library: [n] float64 expected number of counts before dropout.
    """

    group: np.ndarray
    step: np.ndarray
    batch: np.ndarray
    library: np.ndarray


def draw_cells(rng: np.random.Generator, n: int, params: SplatParams) -> CellBlock:
    """Draws group, step, batch and library size of `n` cells, each independently."""
    group = _choose(rng, n, params.group_sizes)
    step = np.zeros(n, np.int64)
    if params.paths:
        skew = params.path_skew
        step = _choose(rng, n, np.linspace(skew, 1.0 - skew, params.path_steps))
    batch = _choose(rng, n, params.batch_sizes)
    library = rng.lognormal(params.lib_loc, params.lib_scale, n)
    return CellBlock(group, step, batch, library)


def draw_counts(
    rng: np.random.Generator, cells: CellBlock, genes: GeneModel, params: SplatParams
) -> sparse.csr_matrix:
    """Draws the counts of a block of cells.

    Args:
        rng: source of randomness.
        cells: the n cells.
        genes: the G genes.
        params: BCV and dropout.

    Returns:
        [n, G] CSR float32 of whole numbers, sorted indices, no stored zeros.
    """
    n, n_genes = len(cells.library), genes.means.size
    state = cells.group * genes.steps + cells.step
    depth = cells.library / genes.totals[state, cells.batch]
    points = np.log1p(genes.noise) / genes.noise
    few, many = [], []
    profile = cells.group * len(genes.batch_means) + cells.batch
    for p in np.unique(profile):
        group, batch = divmod(int(p), len(genes.batch_means))
        rows = np.flatnonzero(profile == p)
        peak = genes.batch_means[batch] * genes.peaks[group]
        abundant = peak * points * np.median(depth[rows]) > DENSE_ABOVE
        local = _Profile(
            rows=rows.astype(np.int32),
            depth=depth[rows],
            states=state[rows],
            means=genes.batch_means[batch],
            peak=peak,
            points=points,
        )
        few += _draw_rare(rng, np.flatnonzero(~abundant), local, genes, params.bcv_common)
        many += _draw_abundant(rng, np.flatnonzero(abundant), local, genes, params.bcv_common)
    counts = _to_csr(few, n, n_genes)
    if many:
        counts = counts + _to_csr(many, n, n_genes)
    if params.dropout_mid is not None:
        counts = _drop(rng, counts, cells.batch, state, depth, genes, params)
    return counts


@dataclass(frozen=True)
class _Profile:
    """The cells of one group and batch: their rows in the block, and what bounds their genes."""

    rows: np.ndarray
    depth: np.ndarray
    states: np.ndarray
    means: np.ndarray
    peak: np.ndarray
    points: np.ndarray


def _draw_rare(
    rng: np.random.Generator, chosen: np.ndarray, cells: _Profile, genes: GeneModel, phi: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Clusters of counts of the genes `chosen` as (row, gene, size), in order of genes."""
    table, total, excess = _odds(cells.depth)
    n_points = rng.poisson(total * cells.peak[chosen] * cells.points[chosen])
    depth, excess, noise, peak, points, means = (
        x.astype(np.float32)
        for x in (cells.depth, excess, genes.noise, cells.peak, cells.points, cells.means)
    )
    found = []
    for start, stop in _pieces(n_points):
        part = chosen[start:stop]
        gene = np.repeat(part, n_points[start:stop])
        cell = table[rng.integers(0, len(table), gene.size, dtype=np.uint16)]
        if genes.steps == 1:
            mean, cost = peak[gene], points[gene]
        else:
            mean = means[gene] * genes.factors[cells.states[cell], gene]
            cost = points[gene] * peak[gene] / mean
        s = depth[cell]
        s *= mean
        np.sqrt(s, out=s)
        s *= np.float32(phi)
        s += 1
        s *= s
        s *= noise[gene]
        # in units of the probability of a kept point of size 1: v < 1 is that size
        v = rng.random(gene.size, dtype=np.float32)
        v *= cost
        v *= excess[cell]
        v *= 1 + s
        size = np.ones(gene.size, np.float32)
        above = np.flatnonzero(v >= 1)
        size[above] = _sizes_above_one(v[above], s[above])
        kept = np.flatnonzero(size > 0)
        found.append((cells.rows[cell[kept]], gene[kept].astype(np.int32), size[kept]))
    return found


def _sizes_above_one(v: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Inverts the distribution of sizes where v >= 1; 0 for the points that are thinned out."""
    size = np.zeros(len(v), np.float32)
    p = s / (1 + s)
    index = np.flatnonzero(v < np.log(1 + s) / p)  # the sum of all the terms below
    p, v, power, n = p[index], v[index] - 1, p[index], 2
    while index.size:
        v -= power / np.float32(n)
        # the sum above and this one may differ by the last bit of a float: stop there
        done = (v < 0) | (power < 1e-9)
        size[index[done]] = n
        left = np.flatnonzero(~done)
        index, p, v, power, n = index[left], p[left], v[left], (power * p)[left], n + 1
    return size


def _draw_abundant(
    rng: np.random.Generator, chosen: np.ndarray, cells: _Profile, genes: GeneModel, phi: float
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Nonzero counts of the genes `chosen` as (row, gene, count), in order of genes."""
    found = []
    at_once = max(1, _PIECE // len(cells.depth))
    for start in range(0, len(chosen), at_once):
        part = chosen[start : start + at_once]
        mean = cells.means[part][:, None] * genes.factors[cells.states[None, :], part[:, None]]
        mean *= cells.depth
        s = genes.noise[part][:, None] * (1.0 + phi * np.sqrt(mean)) ** 2
        y = rng.poisson(rng.standard_gamma(mean / s) * s)
        gene, cell = np.nonzero(y)
        found.append(
            (cells.rows[cell], part[gene].astype(np.int32), y[gene, cell].astype(np.float32))
        )
    return found


def _drop(
    rng: np.random.Generator,
    counts: sparse.csr_matrix,
    batch: np.ndarray,
    state: np.ndarray,
    depth: np.ndarray,
    genes: GeneModel,
    params: SplatParams,
) -> sparse.csr_matrix:
    """Counts left after each is lost with the logistic probability of its rate."""
    f = np.float32
    row = np.repeat(np.arange(len(depth)), np.diff(counts.indptr))
    means, noise, depth = (x.astype(f) for x in (genes.batch_means, genes.noise, depth))
    kept = np.empty(counts.nnz, bool)
    for start in range(0, counts.nnz, _PIECE):
        part = slice(start, start + _PIECE)
        cell, gene = row[part], counts.indices[part]
        mu = means[batch[cell], gene] * genes.factors[state[cell], gene] * depth[cell]
        s = noise[gene] * (1 + f(params.bcv_common) * np.sqrt(mu)) ** 2
        rate = rng.standard_gamma(mu / s + counts.data[part], dtype=f) * (s / (1 + s))
        # kept where U < 1 / (1 + exp(shape * (log rate - mid))), rearranged to logits
        u = np.maximum(rng.random(mu.size, dtype=f), np.finfo(f).tiny)
        rate = np.maximum(rate, np.finfo(f).tiny)
        kept[part] = f(params.dropout_shape) * (np.log(rate) - f(params.dropout_mid)) < (
            np.log((1 - u) / u)
        )
    indptr = np.concatenate([[0], np.cumsum(kept)])[counts.indptr]
    return sparse.csr_matrix(
        (counts.data[kept], counts.indices[kept], indptr.astype(np.int32)), counts.shape
    )


def _to_csr(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], n: int, n_genes: int
) -> sparse.csr_matrix:
    """Rows from triples that are in order of genes within each row; repeats are added up."""
    if not found:
        return sparse.csr_matrix((n, n_genes), dtype=np.float32)
    row, gene, value = (np.concatenate(x) for x in zip(*found, strict=True))
    return sparse.coo_matrix((value, (row, gene)), (n, n_genes)).tocsr()


def _pieces(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Cuts a row of items of the given sizes into runs [start, stop) of about `_PIECE` each."""
    ends = np.cumsum(sizes)
    if not len(ends) or not ends[-1]:
        return []
    cuts = np.searchsorted(ends, np.arange(_PIECE, ends[-1], _PIECE)) + 1
    edges = np.unique(np.concatenate([[0], cuts, [len(sizes)]])).tolist()
    return list(zip(edges[:-1], edges[1:], strict=True))


def _choose(rng: np.random.Generator, n: int, odds: np.ndarray | tuple) -> np.ndarray:
    """`n` draws of an index with the given odds."""
    ends = np.cumsum(np.asarray(odds, float))
    return np.searchsorted(ends, rng.random(n) * ends[-1], side="right").astype(np.int64)


def _odds(depth: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Cells with odds close to, but never below, their depth.

    Returns:
        A table in which a uniformly drawn place holds a cell, the sum of the depths these odds
        stand for, and by how much they exceed each cell's own depth (a factor >= 1 to thin by).
    """
    slots = np.ceil(depth * ((TABLE - len(depth)) / depth.sum())).astype(np.int64)
    slots[0] += TABLE - slots.sum()
    total = TABLE * (depth / slots).max()
    return np.repeat(np.arange(len(depth)), slots), total, slots / TABLE * total / depth
