"""How far cells spread that a model was not trained on."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.numerics.spread import as_unseen, held_out_share, unit_spread


@pytest.mark.parametrize(("n", "genes"), [(150, 900), (600, 1200)])
def test_unseen_cells_spread_as_random_matrices_have_it(n: int, genes: int) -> None:
    """Along a component new cells spread 1 / (1 + g / s) times as far as those it was found from.

    Of a signal s in variances of the noise, with g genes per cell; below the edge, s = g^.5, all
    components are noise. Benaych-Georges and Nadakuditi (2011), worked out.
    """
    rng = np.random.default_rng(n)
    g = genes / (0.8 * n)  # four fifths of the cells are seen
    signals = np.array([20.0, 6.0, 2.5]) * np.sqrt(g)
    axes = np.linalg.qr(rng.normal(size=(genes, 3)))[0]
    x = rng.normal(size=(n, genes)) + rng.normal(size=(n, 3)) * np.sqrt(signals) @ axes.T
    share = held_out_share(x.astype(np.float32), 40, seed=0)
    want = 1 / (1 + g / np.maximum(signals, np.sqrt(g)))
    np.testing.assert_allclose(share[:3], want, rtol=0.12)
    np.testing.assert_allclose(share[3:8].mean(), 1 / (1 + np.sqrt(g)), rtol=0.12)
    assert share.dtype == np.float32 and share.shape == (40,)


def test_spread_of_unseen_cells_needs_cells() -> None:
    x = np.random.default_rng(0).normal(size=(12, 30))
    np.testing.assert_array_equal(held_out_share(x[:9], 5, seed=0), np.ones(5))
    assert held_out_share(x, 11, seed=0).shape == (11,)  # of 9 cells, there are 8 components
    assert held_out_share(x, 0, seed=0).shape == (0,)


def test_units_spread_as_the_embedding_is_scaled() -> None:
    z = np.random.default_rng(0).normal(0, [3.0, 2.0, 1.0], (5000, 3))
    spread = unit_spread(z.var(0), np.array([1.0, 0.5, 0.25]))
    scaled = z / np.sqrt(z.var(0).mean())
    np.testing.assert_allclose(spread, scaled.std(0) * [[1, 1, 1], [1, 0.5, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("stretch", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("trained", [True, False])
def test_which_cells_were_trained_on_is_told_by_most_units(stretch: float, trained: bool) -> None:
    """Whatever a training has stretched units by, and where a few lack the cell types."""
    share = np.linspace(0.2, 0.98, 40)
    spread = np.stack([np.full(40, 2.0), 2 * share])
    here = stretch * spread[0 if trained else 1]
    here[-6:] *= 0.1  # types lie apart in units that are hardly noise
    z = np.random.default_rng(0).normal(size=(3000, 40))
    z *= here / z.std(0)
    np.testing.assert_allclose(as_unseen(z, spread), share if trained else np.ones(40))
