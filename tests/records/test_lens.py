"""Cells seen through a lens: which genes are left, how many molecules, and which cells."""

from __future__ import annotations

import numpy as np

from concerto_tf.records.lens import Lens


def batch(n: int = 400, genes: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "genes": np.tile(np.arange(genes, dtype=np.int32), (n, 1)),
        "values": rng.poisson(40, (n, genes)).astype(np.float32),
        "total": np.full(n, 999, np.float32),
        "protein/genes": np.zeros((n, 1), np.int32),
        "protein/values": np.full((n, 1), 50, np.float32),
        "row": np.arange(n),
        "source": np.zeros(n, np.int32),
    }


def test_genes_that_were_not_measured_are_gone_from_values_and_totals() -> None:
    cells = batch()
    measured = np.array([True, False, True, True, False])
    [seen] = Lens({"rna": measured}).look([cells])
    np.testing.assert_array_equal(seen["values"], cells["values"] * measured)
    np.testing.assert_array_equal(seen["total"], (cells["values"] * measured).sum(1))
    np.testing.assert_array_equal(seen["protein/values"], cells["protein/values"])


def test_molecules_are_drawn_one_by_one_from_the_modalities_named() -> None:
    cells = batch()
    [seen] = Lens(depth=0.25, modalities=("rna",)).look([cells])
    kept, all_ = seen["values"].sum(), cells["values"].sum()
    # Binomial: 5 standard deviations, wrong once in two million.
    assert abs(kept - all_ / 4) < 5 * np.sqrt(all_ * 0.25 * 0.75)
    assert (seen["values"] <= cells["values"]).all()
    variance = (seen["values"] - cells["values"] / 4).var()
    assert 0.8 < variance / (40 * 0.25 * 0.75) < 1.25
    np.testing.assert_array_equal(seen["total"], seen["values"].sum(1))
    np.testing.assert_array_equal(seen["protein/values"], cells["protein/values"])
    [again] = Lens(depth=0.25, modalities=("rna",)).look([cells])
    np.testing.assert_array_equal(again["values"], seen["values"])


def test_cells_that_are_not_chosen_are_padding() -> None:
    cells = batch(6)
    [seen] = Lens(rows=np.array([1, 4])).look([cells])
    assert seen["row"].tolist() == [-1, 1, -1, -1, 4, -1]
    assert cells["row"].tolist() == list(range(6))  # what was given is left as it was
