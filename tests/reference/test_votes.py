"""The vote of neighbours, against plain NumPy, and of a reference's own cells."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.conformity import calibrated
from concerto_tf.reference.votes import vote


def test_vote_is_equation_15() -> None:
    rng = np.random.default_rng(0)
    codes, cosine = rng.integers(0, 4, (50, 7)), rng.uniform(0.01, 1, (50, 7))
    want = np.zeros((50, 4))
    for cell in range(50):
        for neighbour in range(7):
            want[cell, codes[cell, neighbour]] += cosine[cell, neighbour]
        want[cell] /= cosine[cell].sum()
    found = vote(tf.constant(codes), tf.constant(cosine, tf.float32), 4).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_who_points_away_or_has_no_label_does_not_vote() -> None:
    codes = tf.constant([[0, 1, -1], [0, 1, 1], [-1, -1, -1], [0, 0, 1]])
    cosine = tf.constant([[0.2, 0.2, 0.9], [0.5, -0.5, 0.5], [0.9] * 3, [-0.1, -0.2, 0.0]])
    found = vote(codes, cosine, 2).numpy()
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.5, 0.5], [0, 0], [0, 0]], atol=1e-6)


def test_reference_cells_do_not_vote_for_themselves() -> None:
    """Where every cell has a label of its own, no other cell votes for it."""
    z = np.random.default_rng(1).uniform(1, 2, (20, 5))
    names = tuple(f"type{i}" for i in range(20))
    reference = Reference(z, {"type": Labels(np.arange(20, dtype=np.int32), names)})
    votes = calibrated(reference, "type").votes
    assert votes.n_cells == 20
    np.testing.assert_allclose(votes.scores, 1.0, atol=1e-5)
