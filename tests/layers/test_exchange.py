from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.layers.exchange import Crossover, CrossoverMany, RandomSwap

pytestmark = pytest.mark.stack


def named(cells: int, genes: int) -> tf.Tensor:
    """Values that say which cell and gene they are of: ``cell * genes + gene``."""
    return tf.reshape(tf.range(cells * genes, dtype=tf.float32), [cells, genes])


def origin(out: tf.Tensor, genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell and gene that each value of `named` comes from."""
    value = np.asarray(out).astype(int)
    return value // genes, value % genes


@pytest.mark.parametrize(("genes", "swapped"), [(200, 20), (201, 20), (7, 6)])
def test_swap_changes_pairs_within_the_cell(genes: int, swapped: int) -> None:
    x = named(500, genes)
    layer = RandomSwap(fraction=0.1 if genes > 7 else 1.0, probability=0.5, seed=3)
    out = layer(x, training=True)
    np.testing.assert_array_equal(np.sort(out, axis=1), x)  # the very same values
    cell, gene = origin(out, genes)
    assert (cell == np.arange(500)[:, None]).all()
    # Back and forth: each gene has the value of the gene that has its own.
    assert (np.take_along_axis(gene, gene, 1) == np.arange(genes)).all()
    moved = (gene != np.arange(genes)).sum(1)
    assert set(moved) == {0, swapped}
    assert abs((moved > 0).mean() - 0.5) < 5 * np.sqrt(0.25 / 500)  # once in 1.7 million


def test_every_pair_is_equally_likely() -> None:
    layer = RandomSwap(fraction=0.5, probability=1.0)
    layer.build((1, 4))
    call = tf.function(lambda x: layer(x, training=True))
    n, x, pairs = 2400, named(1, 4), list(combinations(range(4), 2))
    seen = [tuple(np.flatnonzero(call(x)[0] != x[0])) for _ in range(n)]
    count = np.array([seen.count(pair) for pair in pairs])
    assert count.sum() == n
    # Chi squared of 5 degrees of freedom: above 35.9 once in a million.
    assert ((count - n / 6) ** 2 / (n / 6)).sum() < 35.9


def test_crossover_exchanges_with_one_other_cell() -> None:
    cells, genes, calls = 20, 40, 200
    layer = Crossover(fraction=0.25, probability=0.5, seed=1)
    chosen, touched = np.zeros((cells, cells)), 0
    by_gene = np.zeros(genes)
    for _ in range(calls):
        x = named(cells, genes)
        out = layer(x, training=True)
        np.testing.assert_array_equal(x, named(cells, genes))  # a cell is never changed in place
        cell, gene = origin(out, genes)
        assert (gene == np.arange(genes)).all()  # values stay on their gene
        for own in range(cells):
            others = set(cell[own]) - {own}
            if others:
                (other,) = others
                assert (cell[own] == other).sum() == 10
                chosen[own, other] += 1
                touched += 1
        by_gene += (cell != np.arange(cells)[:, None]).sum(0)
    n = cells * calls
    assert abs(touched / n - 0.5) < 5 * np.sqrt(0.25 / n)  # once in 1.7 million
    assert (np.diag(chosen) == 0).all()
    # Every cell gives as often as it takes, so the distribution of every gene over the batch is
    # kept. Binomial, 20 cells, five standard deviations: once in 86,000.
    given = chosen.sum(0)
    assert np.abs(given - touched / cells).max() < 5 * np.sqrt(touched / cells)
    # And every gene of it alike (40 genes: once in 43,000).
    assert np.abs(by_gene / touched - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / touched)


def test_crossover_keeps_the_distribution_of_each_gene() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(0.5, np.arange(1, 31), (4000, 30)).astype("float32")
    for layer in (Crossover(1.0, 1.0), CrossoverMany(1.0, 1.0)):
        out = np.asarray(layer(x, training=True))
        # All values are another cell's: a sample of 4,000 of the same distribution. 30 genes, 5
        # standard deviations: once in 58,000.
        error = np.abs(out.mean(0) - x.mean(0)) / (x.std(0) / np.sqrt(4000))
        assert error.max() < 5
        assert (out != x).mean() > 0.99


def test_crossover_with_many_takes_an_equal_share_of_each() -> None:
    cells, genes = 300, 80
    layer = CrossoverMany(fraction=0.25, probability=1.0, partners=5)
    cell, gene = origin(layer(named(cells, genes), training=True), genes)
    assert (gene == np.arange(genes)).all()
    several = 0
    for own in range(cells):
        others, count = np.unique(cell[own][cell[own] != own], return_counts=True)
        assert count.sum() == 20
        assert (count % 4 == 0).all()  # the same cell may be drawn twice
        several += len(others) == 5
    assert several > 0.9 * cells


def test_partners_from_a_buffer() -> None:
    x, others = named(400, 10), -1 - named(25, 10)
    out = np.asarray(Crossover(0.5, 1.0)(x, others=others, training=True))
    taken = out < 0
    assert (taken.sum(1) == 5).all()
    np.testing.assert_array_equal(others, -1 - named(25, 10))
    source, gene = origin(-1 - out, 10)
    assert (gene == np.arange(10))[taken].all()
    rows = [set(source[i][taken[i]]) for i in range(400)]
    assert all(len(row) == 1 for row in rows)
    # Each of the 25 is chosen 16 times on average; none at all once in 300,000 for any of them.
    assert set().union(*rows) == set(range(25))


def test_the_same_cell_in_another_state_is_no_partner() -> None:
    x = named(6, 10)
    out = np.asarray(Crossover(1.0, 1.0)(x, others=x + 1000, aligned=True, training=True)) - 1000
    cell, gene = origin(out, 10)
    assert (gene == np.arange(10)).all()
    assert (cell != np.arange(6)[:, None]).all()


@pytest.mark.parametrize("layer", [Crossover(1.0, 1.0), CrossoverMany(1.0, 1.0)])
def test_a_cell_alone_exchanges_nothing_but_with_a_buffer(layer: Crossover) -> None:
    np.testing.assert_array_equal(layer(named(1, 10), training=True), named(1, 10))
    out = layer(named(1, 10), others=-tf.ones([1, 10]), training=True)
    np.testing.assert_array_equal(out, -np.ones((1, 10)))


def test_partners_are_checked() -> None:
    with pytest.raises(ValueError, match="partners must be a whole number of at least 1"):
        CrossoverMany(partners=0)
