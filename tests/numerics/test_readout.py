"""Linear read-outs of types: optimum, weights of voices, and cells that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from concerto_tf.numerics.readout import (
    ALIKE,
    OTHERWISE,
    Prior,
    chosen_to_learn,
    fit_genes,
    fit_units,
    left_out,
    source_parts,
    weigh,
)

#: The priors, written out: the test is to see them change.
PRIORS = {ALIKE: (0.3, 1.0), OTHERWISE: (0.01, 0.5)}


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("types", [2, 3])
@pytest.mark.parametrize("prior", list(PRIORS))
def test_fit_is_where_the_gradient_of_the_penalized_likelihood_vanishes(
    types: int, prior: Prior
) -> None:
    """In float64: the sum of w log p, less a Gaussian prior as wide as the gene varies."""
    rng = np.random.default_rng(types)
    label = np.arange(60) % types
    y = rng.normal(size=(60, 5)) + 1.5 * (label[:, None] == np.arange(5) % types)
    y[:, 4] = 0.25  # a gene that nobody shows
    weight = rng.uniform(0.5, 1.5, 60)
    width = np.array([1.0, 0.2, 2.0, 0.5, 3.0])
    kernel, bias = (np.float64(x) for x in fit_genes(y, label, weight, width, types, prior))
    assert not kernel[4].any()
    error = weight[:, None] * (np.exp(log_softmax(y @ kernel + bias)) - np.eye(types)[label])
    strength, power = PRIORS[prior]
    width = width**power
    variance = (y * width).var(0)[:4].mean()
    of_prior = kernel[:4] * variance / (strength * width[:4, None] ** 2)
    if types == 2:  # one column of odds: half of it each way
        of_prior *= 2
    np.testing.assert_allclose(y[:, :4].T @ error + of_prior, 0, atol=0.02)
    np.testing.assert_allclose(error.sum(0), 0, atol=0.02)


def test_fit_of_units_is_where_the_gradient_of_the_penalized_likelihood_vanishes() -> None:
    """In float64: a Gaussian prior of variance .1 in units of the width of all units together."""
    rng = np.random.default_rng(0)
    label = np.arange(90) % 3
    z = np.array([3.0, 1.0, 0.2, 5.0]) * (rng.normal(size=(90, 4)) + np.eye(3, 4)[label])
    weight = rng.uniform(0.5, 1.5, 90)
    kernel, bias = (np.float64(x) for x in fit_units(z, label, weight, 3))
    error = weight[:, None] * (np.exp(log_softmax(z @ kernel + bias)) - np.eye(3)[label])
    np.testing.assert_allclose(z.T @ error + kernel * z.std() ** 2 / 0.1, 0, atol=0.02)


def test_gene_that_varies_little_counts_little() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    y = rng.normal(size=(80, 2)) + label[:, None]
    kernel, _ = fit_genes(y, label, np.ones(80), np.array([1.0, 0.05]), 2)
    assert abs(kernel[1]).max() < 0.1 * abs(kernel[0]).max()


def test_type_without_cells_is_never_told() -> None:
    y = np.random.default_rng(0).normal(size=(40, 4))
    kernel, bias = fit_genes(y, np.arange(40) % 2 * 2, np.ones(40), np.ones(4), 3)
    assert (log_softmax(y @ np.float64(kernel) + bias)[:, 1] < -1e6).all()


def test_voices_are_those_under_which_held_out_types_are_likeliest() -> None:
    """Against a search over a grid, and for few cells near a half."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 300)
    truth = np.eye(3)[label]
    networks = log_softmax(2.0 * truth + rng.normal(size=(300, 3)))
    genes = log_softmax(1.0 * truth + rng.normal(size=(300, 3)))
    found = weigh([networks, genes], label)

    def cost(voices: np.ndarray) -> float:
        log_p = log_softmax(voices[0] * networks + voices[1] * genes)
        return 2.0 * np.square(voices - 0.5).sum() - log_p[np.arange(300), label].sum()

    grid = [np.array([a, b]) for a in np.arange(0, 3, 0.05) for b in np.arange(0, 3, 0.05)]
    best = min(grid, key=cost)
    np.testing.assert_allclose(found, best, atol=0.03)
    few = weigh([networks[:2], genes[:2]], label[:2])
    assert (abs(few - 0.5) < abs(found - 0.5) + 0.2).all() and (abs(few - 0.5) < 0.3).all()
    # Around what is expected, where the cells say nothing; never nothing at all.
    blind = np.zeros((300, 3))
    np.testing.assert_allclose(weigh([blind, blind], label, [7, 3]), [0.7, 0.3], atol=1e-3)
    assert (weigh([-networks, -genes], label) > 0).all()


def test_cells_to_learn_from_are_as_many_of_each_type() -> None:
    codes = np.repeat([0, 1, 2], [20_000, 6_000, 40])
    learned = np.ones(len(codes), bool)
    learned[:10_000] = False
    chosen = chosen_to_learn(codes, learned, 5_000, 0)
    assert not chosen[~learned].any()
    assert np.bincount(codes[chosen]).tolist() == [4_980, 4_980, 40]
    assert chosen_to_learn(codes, learned, 100_000, 0).sum() == 1_000  # 400 MB of values


@pytest.mark.parametrize("source", [np.zeros(60), np.arange(60) % 7])
def test_each_cell_is_left_out_once_with_its_source_or_half_of_its_type(source: np.ndarray) -> None:
    codes = np.repeat([0, 1, 2, 3], [30, 20, 9, 1])
    parts = list(left_out(codes, source))
    assert (np.sum([own for own, _ in parts], axis=0) == 1).all()
    for own, judged in parts:
        assert (judged == (own & np.isin(codes, codes[~own]))).all()
        if source.any():
            assert not set(source[own]) & set(source[~own]) - {source[-1]}
        else:
            assert abs(np.bincount(codes[own], minlength=4)[:3] - [15, 10, 4.5]).max() < 1
    assert not np.sum([judged for _, judged in parts], axis=0)[-1]  # nobody else has its type
    assert list(left_out(np.zeros(8, int), np.zeros(8))) == []


def test_types_of_one_source_are_told_by_others_of_them_and_judge_nobody() -> None:
    source = np.arange(200) % 2
    codes = np.where(np.arange(200) % 10 < 2, 2 + source, np.arange(200) // 2 % 2)
    parts = list(left_out(codes, source))
    assert len(parts) == 2
    for own, judged in parts:
        dealt = codes > 1
        assert (judged == (own & ~dealt)).all()
        assert len(set(source[own & ~dealt])) == 1
        assert set(codes[own]) == set(codes[~own]) == {0, 1, 2, 3}
        assert np.bincount(codes[own])[2:].tolist() == [10, 10]
    # Each type in a source of its own: still told, and nobody judges.
    parts = list(left_out(source, source))
    assert len(parts) == 2 and not any(judged.any() for _, judged in parts)


def test_fewer_cells_have_as_wide_a_prior_for_their_share() -> None:
    """The half of cells that are there twice says what all of them say."""
    rng = np.random.default_rng(0)
    y, label = rng.normal(size=(40, 3)), np.arange(40) % 2
    y += label[:, None]
    twice, width = np.tile(y, (2, 1)), np.ones(3)
    for fit, more in ((fit_genes, [width, 2, ALIKE]), (fit_units, [2])):
        whole = fit(twice, np.tile(label, 2), np.ones(80), *more)
        half = fit(y, label, np.ones(40), *more, 0.5)
        np.testing.assert_allclose(half[0], whole[0], rtol=1e-3)
        assert not np.allclose(fit(y, label, np.ones(40), *more)[0], whole[0], rtol=0.05)


def test_parts_of_sources() -> None:
    assert source_parts(np.array([3, 3, 3])) == []
    parts = source_parts(np.repeat(np.arange(7), 2))
    assert len(parts) == 5 and sorted(np.concatenate(parts).tolist()) == list(range(7))
