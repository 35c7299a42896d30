"""References: neighbours, transfer of labels and novelty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.novelty import scale_by_type
from concerto_tf.reference.cells import Labels, Reference, Values
from concerto_tf.reference.conformity import calibrated, nearness
from concerto_tf.reference.files import load_reference, save_reference
from concerto_tf.reference.transfer import LabelTransfer, transfer

NAMES = ("B", "NK", "T")


def make_cells(n: int, seed: int, kinds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings around one direction per kind, and the kinds."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, kinds, n).astype(np.int32)
    return 3 * np.eye(8)[kind] + rng.normal(0, 0.5, (n, 8)), kind


def make_reference(n: int = 300, **arguments: str) -> Reference:
    z, kind = make_cells(n, seed=0)
    values = {
        "protein": Values(np.arange(2 * n, dtype="f4").reshape(n, 2), ("CD3", "CD4"), "as given"),
        "atac": Values(sp.random(n, 9, 0.2, "csr", "f4", 0), tuple("abcdefghi"), "as given"),
    }
    return Reference(z, {"type": Labels(kind, NAMES)}, values, **arguments)


def test_labels_are_transferred_and_the_new_kind_is_novel() -> None:
    reference = make_reference()
    z, kind = make_cells(200, seed=1, kinds=4)  # the fourth is not in the reference
    found = transfer(reference, z, "type", k=5)
    known = kind < 3
    assert (found["code"] == kind)[known].mean() > 0.98
    assert found["probability"][known].mean() > 0.95
    assert (found["novelty"][~known] < 0.05).mean() > 0.95
    # Of cells like the reference's own, a share alpha lies below alpha.
    fresh, _ = make_cells(3000, seed=2)
    low = [(transfer(reference, fresh, "type", 5)["novelty"] < a).mean() for a in (0.1, 0.3)]
    np.testing.assert_allclose(low, [0.1, 0.3], atol=0.07)


def test_cosines_are_taken_from_the_origin(tmp_path: Path) -> None:
    z, kind = make_cells(300, seed=0)
    query, _ = make_cells(50, seed=1)
    origin = np.linspace(-2, 3, 8).astype(np.float32)
    labels = {"type": Labels(kind, NAMES)}
    here, there = Reference(z, labels), Reference(z + origin, labels, origin=origin)
    save_reference(there, tmp_path / "reference")
    rows = np.arange(0, 300, 2)
    for a, b in (
        (here, there),
        (here, load_reference(tmp_path / "reference")),
        (here.part(rows), there.part(rows)),
    ):
        np.testing.assert_allclose(a.embedded.unit, b.embedded.unit, atol=1e-6)
        for x, y in zip(a.neighbours(query, 5), b.neighbours(query + origin, 5), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
        want, found = transfer(a, query, "type", 5), transfer(b, query + origin, "type", 5)
        served = LabelTransfer(b, "type", 5)(tf.constant(query + origin, tf.float32))
        for name, values in want.items():
            np.testing.assert_allclose(found[name], values, atol=0.01)
            np.testing.assert_allclose(served[name], values, atol=0.01)
    with pytest.raises(InputError, match="origin"):
        Reference(z, origin=origin[:3])


def make_fitted(n: int, unseen: int, seed: int) -> tuple[np.ndarray, ...]:
    """Principal components of few cells of three kinds: of these and of others, and their spread.

    Component by component the others spread less than those that the components come from.
    """
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 0.15, (3, 1600))
    kind = np.arange(n + unseen) % 3
    x = mean[kind] + rng.normal(0, 1, (n + unseen, 1600))
    x -= x[:n].mean(0)
    axes = np.linalg.svd(x[:n], full_matrices=False)[2][:30]
    z = (x @ axes.T).astype(np.float32)
    spread = np.stack([z[:n].std(0), z[n:].std(0)])
    return z[:n], kind[:n].astype(np.int32), z[n:], kind[n:].astype(np.int32), spread


def test_cells_that_were_trained_on_are_compared_as_if_they_were_not(tmp_path: Path) -> None:
    z, kind, query, query_kind, spread = make_fitted(60, 3000, seed=0)
    origin = np.full(30, 1.5, np.float32)
    labels = {"type": Labels(kind, NAMES)}
    reference = Reference(z + origin, labels, origin=origin, spread=spread)
    share = spread[1] / spread[0]
    assert share.min() < 0.3
    np.testing.assert_allclose(
        reference.embedded.unit * reference.embedded.lengths[:, np.newaxis],
        z * share + origin,
        atol=1e-5,
    )
    found = transfer(reference, query + origin, "type", 5)
    plain = transfer(Reference(z, labels), query, "type", 5)
    right, plain_right = ((x["code"] == query_kind).mean() for x in (found, plain))
    assert right > plain_right + 0.01, (right, plain_right)  # of 3,000: 2.5 standard errors
    # Kept, in part and served it is the same.
    save_reference(reference, tmp_path / "reference")
    kept = load_reference(tmp_path / "reference")
    served = LabelTransfer(kept.part(np.arange(60)), "type", 5)(tf.constant(query + origin))
    again = transfer(kept, query + origin, "type", 5)
    for name, values in found.items():
        np.testing.assert_allclose(again[name], values, atol=1e-6)
        np.testing.assert_allclose(served[name], values, atol=0.01)


def test_cells_that_were_not_trained_on_stay_as_they_are() -> None:
    _, _, query, kind, spread = make_fitted(60, 300, seed=1)
    reference = Reference(query, {"type": Labels(kind, NAMES)}, spread=spread)
    np.testing.assert_allclose(
        reference.embedded.unit * reference.embedded.lengths[:, np.newaxis], query, atol=1e-5
    )
    # A training that has stretched all units is told from that.
    for z, shrunk in ((make_fitted(60, 9, seed=1)[0], True), (query, False)):
        made = Reference(1.5 * z, spread=spread)
        assert (made.embedded.factor < 0.9).any() == shrunk
    # So are single kinds, which spread less where kinds lie apart, and units without components.
    z, z_kind = make_fitted(60, 9, seed=1)[:2]
    wide = np.pad(spread, ((0, 0), (0, 12))) / np.sqrt(2)
    for cells, of, trained in ((z, z_kind, True), (query, kind, False)):
        for code in (0, 1, 2):
            made = Reference(np.pad(cells[of == code], ((0, 0), (0, 12))) / np.sqrt(2), spread=wide)
            assert (made.embedded.factor < 0.9).any() == trained
            np.testing.assert_array_equal(made.embedded.factor[30:], 1)
    # Where all units have one share there is no slope, and the shares themselves tell.
    same = spread[:1] * np.array([[1], [0.5]])
    for factor in (1.0, 0.5):
        made = Reference(make_fitted(60, 9, seed=1)[0] * factor, spread=same)
        np.testing.assert_array_equal(made.embedded.factor, 0.5 if factor == 1 else 1)


def test_nearness_is_seen_from_the_middle() -> None:
    z, kind, query, _, spread = make_fitted(60, 40, seed=2)
    origin = np.linspace(-1, 2, 30).astype(np.float32)
    reference = Reference(z, {"type": Labels(kind, NAMES)}, origin=origin, spread=spread)
    index, cosine = reference.neighbours(query, 15)
    own = reference.embedded.unit * reference.embedded.lengths[:, np.newaxis]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, query)]
    np.testing.assert_allclose(cosine, np.einsum("nkd,nd->nk", unit[0][index], unit[1]), atol=1e-5)
    own, query = own - origin, query - origin
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, query)]
    want = np.einsum("nkd,nd->nk", unit[0][index], unit[1]).mean(1)
    seen = reference.embedded.seen
    found = nearness(tf.constant(query + origin), index, cosine, seen, origin)
    np.testing.assert_allclose(found, want, atol=1e-5)
    middle = transfer(reference, origin[np.newaxis], "type", 5)
    near = nearness(tf.constant(origin[np.newaxis]), index[:1], cosine[:1], seen, origin)
    assert near.numpy().tolist() == [0.0] and middle["novelty"] < 0.1


def test_reference_cells_are_judged_as_cells_of_a_query_would_be() -> None:
    z, kind, _, _, spread = make_fitted(60, 300, seed=3)
    origin = np.linspace(-1, 2, 30).astype(np.float32)
    reference = Reference(z + origin, {"type": Labels(kind, NAMES)}, origin=origin, spread=spread)
    share = (spread[1] / spread[0]).astype(np.float64)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    held, query = z * share, z * share**0.75
    compared = unit(query + origin) @ unit(held + origin).T
    np.fill_diagonal(compared, -2)
    near = np.argsort(-compared, axis=1)[:, :15]
    # The labels that the five nearest vote for, which is not always their own.
    votes = [np.bincount(kind[of[:5]], compared[i, of[:5]], 3) for i, of in enumerate(near)]
    label = np.argmax(votes, axis=1)
    assert 0.5 < np.mean(label == kind) < 1
    near = np.einsum("nkd,nd->nk", unit(held)[near], unit(query)).mean(1)
    centre, length = np.empty(60), np.empty(60)
    for i in range(60):
        others = (kind == label[i]) & (np.arange(60) != i)
        centre[i] = unit(unit(held)[others].sum(0)) @ unit(query)[i]
        of_label = np.linalg.norm(held[kind == label[i]].mean(0))
        length[i] = -abs(np.log(np.linalg.norm(query[i]) / of_label))
    scores = np.stack([-np.log(1 - near), -np.log(1 - centre), length], axis=1)
    found = calibrated(reference, "type")
    want = scale_by_type(scores, label, 3)
    np.testing.assert_allclose(found.scale.mean, want.mean, rtol=1e-3)
    np.testing.assert_allclose(found.scale.width, want.width, rtol=1e-3)
    least = ((scores - want.mean[label]) / want.width[label]).min(1)
    want = np.quantile(least, np.linspace(0, 1, 201))
    np.testing.assert_allclose(found.least.scores, want, atol=5e-3)


def test_novelty_by_hand() -> None:
    """One label, so that everything can be computed with loops in float64."""
    z, _ = make_cells(60, seed=0, kinds=1)
    reference = Reference(z, {"type": Labels(np.zeros(60, np.int32), ("B",))})
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float64)
    query = make_cells(9, seed=5, kinds=2)[0]

    length = np.linalg.norm(z.mean(0))

    def parts(cell: np.ndarray, others: np.ndarray) -> list[float]:
        centre, own = others.sum(0) / np.linalg.norm(others.sum(0)), np.linalg.norm(cell)
        near = np.sort(others @ cell / own)[-15:].mean()
        cosines = [-np.log(1 - cosine) for cosine in (near, centre @ cell / own)]
        return [*cosines, -abs(np.log(own / length))]

    own = np.array([parts(z[i], np.delete(unit, i, 0)) for i in range(60)])

    def least(scores: np.ndarray) -> np.ndarray:
        return ((scores - own.mean(0)) / own.std(0)).min(-1)

    calibrated = np.quantile(least(own), np.linspace(0, 1, 201))
    scores = least(np.array([parts(cell, unit) for cell in query]))
    want = [(1 + 60 * np.mean(calibrated <= score)) / 61 for score in scores]
    found = transfer(reference, query, "type", k=5)["novelty"]
    np.testing.assert_allclose(found, want, atol=0.02)  # a quantile or two of rounding
    assert np.ptp(want) > 0.3


@pytest.mark.parametrize(("n", "most"), [(3, 0.0), (5, 0.0), (10, 0.13), (100, 0.13)])
def test_cells_like_those_of_a_small_reference_are_seldom_rejected(n: int, most: float) -> None:
    rng, rejected = np.random.default_rng(0), []
    for _ in range(20):
        z = rng.normal(3, 1, (n + 50, 16))
        reference = Reference(z[:n], {"type": Labels(np.zeros(n, np.int32), ("B",))})
        rejected.append((transfer(reference, z[n:], "type", 1)["novelty"] < 0.1).mean())
    assert np.mean(rejected) <= most
    # With cells enough the strange ones are told all the same.
    if n == 100:
        assert transfer(reference, -z[:1] + 6 * np.eye(16)[:1], "type", 1)["novelty"][0] < 0.1


def test_function_for_a_saved_model_says_the_same(tmp_path: Path) -> None:
    reference = make_reference()
    z = make_cells(40, seed=3, kinds=4)[0].astype("f4")

    class Served(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label = LabelTransfer(reference, "type", k=3)

        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
        def __call__(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.label(z)

    tf.saved_model.save(Served(), str(tmp_path / "served"))
    answer = tf.saved_model.load(str(tmp_path / "served"))(z)
    for name, values in transfer(reference, z, "type", k=3).items():
        np.testing.assert_allclose(answer[name], values, atol=1e-6)


def test_nobody_votes_where_all_point_away() -> None:
    reference = Reference(np.ones((4, 2)), {"type": Labels(np.zeros(4, np.int32), ("B",))})
    found = transfer(reference, np.array([[-1.0, -1.0]]), "type", k=2)
    assert {name: x.tolist() for name, x in found.items()} == {
        "code": [-1],
        "probability": [0.0],
        "novelty": [0.0],
        "shares": [[0.0]],
    }


def test_tiny_references_and_rare_labels_work() -> None:
    one = Reference(np.ones((1, 2)), {"type": Labels(np.zeros(1, np.int32), ("B",))})
    assert transfer(one, np.array([[1.0, 0.9]]), "type", k=1)["code"].tolist() == [0]
    z, kind = make_cells(100, seed=0, kinds=2)
    z = np.concatenate([z, [3 * np.eye(8)[2]]])  # a label of a single cell
    rare = Reference(z, {"type": Labels(np.append(kind, 2).astype(np.int32), NAMES)})
    found = transfer(rare, z[-1:] * 2, "type", k=1)
    assert found["code"].tolist() == [2] and found["novelty"][0] > 0.1


@pytest.mark.parametrize("k", [0, 301])
def test_k_beyond_the_reference_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}.* 300 reference cells"):
        make_reference().neighbours(np.ones((1, 8)), k)


def test_what_the_reference_lacks_is_named() -> None:
    reference = make_reference()
    with pytest.raises(InputError, match="no labels 'tissue'.*there are: type"):
        reference.labels_of("tissue")
    with pytest.raises(InputError, match="no modality 'adt'.*there are: protein, atac"):
        reference.values_of("adt")
    with pytest.raises(InputError, match="3 dimensions for a reference of 8"):
        reference.neighbours(np.ones((1, 3)), 1)
    with pytest.raises(InputError, match="at least one cell"):
        Reference(np.zeros((0, 4)))
    with pytest.raises(InputError, match="'type' has 2 rows for 3"):
        Reference(np.eye(3), {"type": Labels(np.zeros(2, np.int32), ("B",))})
