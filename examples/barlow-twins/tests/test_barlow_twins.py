"""The method against its equation, in training, and as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from barlow_twins import BarlowTwins, barlow_twins

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells


def test_loss_is_equation_1() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50, 4))
    standardized = [(z - z.mean(0)) / z.std(0) for z in (a, b)]
    c = standardized[0].T @ standardized[1] / 50
    want = ((1 - np.diag(c)) ** 2).sum() + 0.1 * (c**2 * (1 - np.eye(4))).sum()
    np.testing.assert_allclose(barlow_twins(tf.constant(a), tf.constant(b), 0.1), want, rtol=1e-4)


def test_trains_and_is_saved(tmp_path: Path) -> None:
    cells = simulate_cells(SplatParams.droplet(n_cells=120, n_genes=60, group_sizes=(1, 1)))
    records = concerto_tf.convert(cells, tmp_path / "records", drop_empty=True)
    model = concerto_tf.train(
        records,
        tmp_path / "model",
        method="barlow-twins",
        genes="all",
        epochs=4,
        options={"redundancy": 0.02, "backbone": (16, 8), "components": 0},
    )
    losses = np.genfromtxt(tmp_path / "model" / "training.csv", delimiter=",", names=True)["loss"]
    assert losses[-1] < losses[0]
    again = concerto_tf.load_model(tmp_path / "model")
    assert isinstance(again, BarlowTwins) and again.redundancy == 0.02
    np.testing.assert_array_equal(
        concerto_tf.embed(again, records), concerto_tf.embed(model, records)
    )
