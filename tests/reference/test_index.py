"""Nearest reference cells: exact ones against plain NumPy, approximate against exact ones."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.reference.index import Index, in_blocks, nearest


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("n", "k", "block"), [(1, 1, 8192), (63, 63, 64), (65, 5, 64), (1000, 7, 256), (1000, 300, 128)]
)
def test_nearest_is_what_sorting_all_cosines_gives(n: int, k: int, block: int) -> None:
    rng = np.random.default_rng(n + k)
    reference = unit(rng.normal(size=(n, 6)))
    z = rng.normal(size=(20, 6)) * rng.uniform(0.1, 100, (20, 1))
    cosine = unit(z) @ reference.T
    want = np.argsort(-cosine, axis=1)[:, :k]
    index, found = nearest(
        tf.constant(z, tf.float32), in_blocks(reference.astype("f4"), block), n, k
    )
    # Of equal cosines either is right; in float32 near ones may change places.
    np.testing.assert_allclose(found, np.take_along_axis(cosine, want, 1), atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, index.numpy(), 1), found, atol=1e-5)
    assert all(len(set(row)) == k for row in index.numpy().tolist())


def test_best_ones_in_one_group_and_negative_cosines() -> None:
    reference = -np.ones((500, 2), "f4")  # all point away
    reference[128:140] = np.stack([np.ones(12), np.linspace(1, 2, 12)], axis=1)
    index, cosine = nearest(tf.constant([[1.0, 1.0]]), in_blocks(unit(reference), 256), 500, 20)
    assert index.numpy()[0, :12].tolist() == list(range(128, 140))
    np.testing.assert_allclose(cosine.numpy()[0, 12:], -1.0, atol=1e-6)


def test_best_ones_each_in_a_group_of_its_own() -> None:
    reference = np.tile([0.0, 1.0], (640, 1)).astype("f4")
    best = np.arange(5) * 128 + 7
    reference[best] = np.stack([np.ones(5), np.linspace(0.1, 0.5, 5)], axis=1)
    index, _ = nearest(tf.constant([[1.0, 0.0]]), in_blocks(unit(reference)), 640, 5)
    assert index.numpy()[0].tolist() == best.tolist()


def test_nearest_under_xla_is_the_same() -> None:
    rng = np.random.default_rng(0)
    blocks = in_blocks(unit(rng.normal(size=(300, 4))).astype("f4"), 128)
    z = tf.constant(rng.normal(size=(8, 4)), tf.float32)
    compiled = tf.function(lambda z: nearest(z, blocks, 300, 5), jit_compile=True)
    np.testing.assert_array_equal(compiled(z)[0], nearest(z, blocks, 300, 5)[0])


def test_large_references_are_searched_approximately(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    reference = unit(rng.normal(size=(3000, 8))).astype("f4")
    z = rng.normal(size=(600, 8)).astype("f4")
    want = Index(reference).search(z, 4)
    monkeypatch.setattr("concerto_tf.reference.index.EXACT_CELLS", 1000)
    monkeypatch.setattr("concerto_tf.reference.index.FEW_CELLS", 500)
    index = Index(reference)
    np.testing.assert_array_equal(index.search(z[:500], 4)[0], want[0][:500])
    found = index.search(z, 4)
    assert (found[0] != want[0]).any()  # or it was not approximate
    alike = [len(np.intersect1d(a, b)) for a, b in zip(found[0], want[0], strict=True)]
    assert np.mean(alike) >= 0.98 * 4
    np.testing.assert_allclose(found[1][:, 0], want[1][:, 0], atol=1e-2)
    again = Index(reference, index.built).search(z, 4)
    np.testing.assert_array_equal(again[0], found[0])
