from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.layers.random_layer import Draw

pytestmark = pytest.mark.stack


def draw(seed: int, counter: int) -> Draw:
    return Draw(tf.constant(seed, tf.int64), tf.constant(counter, tf.int64))


def test_bits_of_one_draw_of_the_next_and_of_other_seeds_are_all_different() -> None:
    words = [
        word
        for seed in (0, 1)
        for counter in (0, 1, 2)
        for part in [draw(seed, counter)]
        for _ in range(3)
        for word in part.bits([1000]).numpy()
    ]
    # 18,000 words of 32 bits: 0.04 pairs of equal ones expected; 4 or more once in 10 million.
    assert len(words) - len(set(words)) < 4


def test_first_bits_are_those_of_seed_and_counter() -> None:
    want = tf.random.stateless_uniform([7], [5, 3], None, None, tf.uint32, alg="philox")
    np.testing.assert_array_equal(draw(5, 3).bits([7]), want)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_chance_has_its_probability(probability: float) -> None:
    got = draw(1, 0).chance(probability, [40_000]).numpy().mean()
    # Five standard deviations (once in 1.7 million), and never at 0 and 1.
    assert abs(got - probability) <= 5 * np.sqrt(probability * (1 - probability) / 40_000)


def test_integers_are_equally_likely() -> None:
    count = np.bincount(draw(1, 0).integers(7, [70_000]).numpy(), minlength=7)
    assert len(count) == 7
    assert np.abs(count - 10_000).max() < 5 * np.sqrt(10_000 * 6 / 7)  # once in 250,000


def test_every_order_and_every_choice_within_a_cell_is_equally_likely() -> None:
    @tf.function
    def one(counter: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        now = Draw(tf.constant(3, tf.int64), counter)
        return now.order(3), now.places(tf.constant(1), 4, 1.0)[0]

    n = 2400
    orders, choices = [], []
    for i in range(n):
        order, place = one(tf.constant(i, tf.int64))
        orders.append(tuple(order.numpy()))
        assert sorted(place.numpy()) == [0, 1, 2, 3]
        choices.append(tuple(np.flatnonzero(place.numpy() < 2)))
    assert len(set(orders)) == 6
    for seen in (
        [orders.count(order) for order in set(orders)],
        [choices.count(two) for two in combinations(range(4), 2)],
    ):
        # Chi squared of 5 degrees of freedom: above 35.9 once in a million.
        assert ((np.array(seen) - n / 6) ** 2 / (n / 6)).sum() < 35.9


def test_a_gene_is_chosen_independently_in_each_cell() -> None:
    place = draw(0, 0).places(tf.constant(4000), 50, 1.0).numpy()
    assert ((place < 10).sum(1) == 10).all()
    share = (place < 10).mean(0)
    # 50 genes, five standard deviations: once in 35,000.
    assert np.abs(share - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 4000)


def test_cells_that_take_no_part_have_no_gene_chosen() -> None:
    place = draw(0, 0).places(tf.constant(1000), 8, 0.3).numpy()
    out = (place == 8).all(1)
    assert ((np.sort(place[~out]) == np.arange(8)).all(1)).all()
    assert abs(out.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / 1000)
