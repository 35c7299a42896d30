"""References: neighbours, transfer of labels, familiarity, and the folder they are kept in."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models.reference import Labels, Reference, Values
from concerto_tf.models.reference_files import fingerprint, load_reference, save_reference

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


def test_labels_are_transferred_and_the_new_kind_is_unfamiliar() -> None:
    reference = make_reference()
    z, kind = make_cells(200, seed=1, kinds=4)  # the fourth is not in the reference
    found = reference.transfer(z, "type", k=5)
    known = kind < 3
    assert (found["code"] == kind)[known].mean() > 0.98
    assert found["probability"][known].mean() > 0.95
    assert (found["familiarity"][~known] < 0.05).mean() > 0.95
    # Of cells like the reference's own, a share alpha lies below alpha.
    fresh, _ = make_cells(3000, seed=2)
    low = [(reference.transfer(fresh, "type", 5)["familiarity"] < a).mean() for a in (0.1, 0.3)]
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
        np.testing.assert_allclose(a.embeddings, b.embeddings, atol=1e-6)
        for x, y in zip(a.neighbours(query, 5), b.neighbours(query + origin, 5), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
        want, found = a.transfer(query, "type", 5), b.transfer(query + origin, "type", 5)
        served = b.labeller("type", 5)(tf.constant(query + origin, tf.float32))
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
        reference.embeddings * reference.lengths[:, np.newaxis], z * share + origin, atol=1e-5
    )
    found = reference.transfer(query + origin, "type", 5)
    plain = Reference(z, labels).transfer(query, "type", 5)
    right, plain_right = ((x["code"] == query_kind).mean() for x in (found, plain))
    assert right > plain_right + 0.01, (right, plain_right)  # of 3,000: 2.5 standard errors
    # Kept, in part and served it is the same.
    save_reference(reference, tmp_path / "reference")
    kept = load_reference(tmp_path / "reference")
    served = kept.part(np.arange(60)).labeller("type", 5)(tf.constant(query + origin))
    again = kept.transfer(query + origin, "type", 5)
    for name, values in found.items():
        np.testing.assert_allclose(again[name], values, atol=1e-6)
        np.testing.assert_allclose(served[name], values, atol=0.01)


def test_cells_that_were_not_trained_on_stay_as_they_are() -> None:
    _, _, query, kind, spread = make_fitted(60, 300, seed=1)
    reference = Reference(query, {"type": Labels(kind, NAMES)}, spread=spread)
    np.testing.assert_allclose(
        reference.embeddings * reference.lengths[:, np.newaxis], query, atol=1e-5
    )
    # A training that has stretched all units is told from that.
    for z, shrunk in ((make_fitted(60, 9, seed=1)[0], True), (query, False)):
        made = Reference(1.5 * z, spread=spread)
        assert (made.factor < 0.9).any() == shrunk
    # So are single kinds, which spread less where kinds lie apart, and units without components.
    z, z_kind = make_fitted(60, 9, seed=1)[:2]
    wide = np.pad(spread, ((0, 0), (0, 12))) / np.sqrt(2)
    for cells, of, trained in ((z, z_kind, True), (query, kind, False)):
        for code in (0, 1, 2):
            made = Reference(np.pad(cells[of == code], ((0, 0), (0, 12))) / np.sqrt(2), spread=wide)
            assert (made.factor < 0.9).any() == trained
            np.testing.assert_array_equal(made.factor[30:], 1)
    # Where all units have one share there is no slope, and the shares themselves tell.
    same = spread[:1] * np.array([[1], [0.5]])
    for factor in (1.0, 0.5):
        made = Reference(make_fitted(60, 9, seed=1)[0] * factor, spread=same)
        np.testing.assert_array_equal(made.factor, 0.5 if factor == 1 else 1)


def test_nearness_is_seen_from_the_middle() -> None:
    z, kind, query, _, spread = make_fitted(60, 40, seed=2)
    origin = np.linspace(-1, 2, 30).astype(np.float32)
    reference = Reference(z, {"type": Labels(kind, NAMES)}, origin=origin, spread=spread)
    index, cosine = reference.neighbours(query, 15)
    own = reference.embeddings * reference.lengths[:, np.newaxis]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, query)]
    np.testing.assert_allclose(cosine, np.einsum("nkd,nd->nk", unit[0][index], unit[1]), atol=1e-5)
    own, query = own - origin, query - origin
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, query)]
    want = np.einsum("nkd,nd->nk", unit[0][index], unit[1]).mean(1)
    found = reference._nearness(tf.constant(query + origin), index, cosine)
    np.testing.assert_allclose(found, want, atol=1e-5)
    middle = reference.transfer(origin[np.newaxis], "type", 5)
    near = reference._nearness(tf.constant(origin[np.newaxis]), index[:1], cosine[:1])
    assert near.numpy().tolist() == [0.0] and middle["familiarity"] < 0.1


def test_reference_cells_are_judged_as_cells_of_a_query_would_be() -> None:
    z, kind, _, _, spread = make_fitted(60, 300, seed=3)
    origin = np.linspace(-1, 2, 30).astype(np.float32)
    reference = Reference(z + origin, {"type": Labels(kind, NAMES)}, origin=origin, spread=spread)
    share = (spread[1] / spread[0]).astype(np.float64)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    held, query = z * share, z * share**0.25
    compared = unit(query + origin) @ unit(held + origin).T
    np.fill_diagonal(compared, -2)
    near = np.argsort(-compared, axis=1)[:, :15]
    near = np.einsum("nkd,nd->nk", unit(held)[near], unit(query)).mean(1)
    centre = np.empty(60)
    for i in range(60):
        others = (kind == kind[i]) & (np.arange(60) != i)
        centre[i] = unit(unit(held)[others].sum(0)) @ unit(query)[i]
    found = reference.calibrated("type")
    for code in range(3):
        for values, grid in ((near, found.near), (centre, found.centre)):
            want = np.quantile(values[kind == code], np.linspace(0, 1, 201))
            np.testing.assert_allclose(grid[code], want, atol=1e-4)


def test_familiarity_by_hand() -> None:
    """One label, so that everything can be computed with loops in float64."""
    z, _ = make_cells(60, seed=0, kinds=1)
    reference = Reference(z, {"type": Labels(np.zeros(60, np.int32), ("B",))})
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float64)
    query = make_cells(9, seed=5, kinds=2)[0]

    def parts(cell: np.ndarray, others: np.ndarray, n_near: int) -> tuple[float, float]:
        centre = others.sum(0) / np.linalg.norm(others.sum(0))
        return np.sort(others @ cell)[-n_near:].mean(), centre @ cell

    own = np.array([parts(unit[i], np.delete(unit, i, 0), 15) for i in range(60)])

    def joint(pair: np.ndarray) -> float:
        return sum(
            np.log(
                (1 + 60 * np.mean(np.quantile(own[:, i], np.linspace(0, 1, 201)) <= pair[i])) / 61
            )
            for i in range(2)
        )

    calibrated = np.quantile([joint(pair) for pair in own], np.linspace(0, 1, 201))
    want = [
        (1 + 60 * np.mean(calibrated <= joint(parts(cell / np.linalg.norm(cell), unit, 15)))) / 61
        for cell in query
    ]
    found = reference.transfer(query, "type", k=5)["familiarity"]
    np.testing.assert_allclose(found, want, atol=0.02)  # a quantile or two of rounding
    assert np.ptp(want) > 0.3


@pytest.mark.parametrize(("n", "most"), [(3, 0.0), (5, 0.0), (10, 0.13), (100, 0.13)])
def test_cells_like_those_of_a_small_reference_are_seldom_rejected(n: int, most: float) -> None:
    rng, rejected = np.random.default_rng(0), []
    for _ in range(20):
        z = rng.normal(3, 1, (n + 50, 16))
        reference = Reference(z[:n], {"type": Labels(np.zeros(n, np.int32), ("B",))})
        rejected.append((reference.transfer(z[n:], "type", 1)["familiarity"] < 0.1).mean())
    assert np.mean(rejected) <= most
    # With cells enough the strange ones are told all the same.
    if n == 100:
        assert reference.transfer(-z[:1] + 6 * np.eye(16)[:1], "type", 1)["familiarity"][0] < 0.1


def test_function_for_a_saved_model_says_the_same(tmp_path: Path) -> None:
    reference = make_reference()
    z = make_cells(40, seed=3, kinds=4)[0].astype("f4")
    label = reference.labeller("type", k=3)

    class Served(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32)])
        def __call__(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
            return label(z)

    tf.saved_model.save(Served(), str(tmp_path / "served"))
    answer = tf.saved_model.load(str(tmp_path / "served"))(z)
    for name, values in reference.transfer(z, "type", k=3).items():
        np.testing.assert_allclose(answer[name], values, atol=1e-6)


def test_nobody_votes_where_all_point_away() -> None:
    reference = Reference(np.ones((4, 2)), {"type": Labels(np.zeros(4, np.int32), ("B",))})
    found = reference.transfer(np.array([[-1.0, -1.0]]), "type", k=2)
    assert {name: x.tolist() for name, x in found.items()} == {
        "code": [-1],
        "probability": [0.0],
        "familiarity": [0.0],
    }


def test_tiny_references_and_rare_labels_work() -> None:
    one = Reference(np.ones((1, 2)), {"type": Labels(np.zeros(1, np.int32), ("B",))})
    assert one.transfer(np.array([[1.0, 0.9]]), "type", k=1)["code"].tolist() == [0]
    z, kind = make_cells(100, seed=0, kinds=2)
    z = np.concatenate([z, [3 * np.eye(8)[2]]])  # a label of a single cell
    rare = Reference(z, {"type": Labels(np.append(kind, 2).astype(np.int32), NAMES)})
    found = rare.transfer(z[-1:] * 2, "type", k=1)
    assert found["code"].tolist() == [2] and found["familiarity"][0] > 0.1


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


def test_large_references_are_searched_approximately_or_on_without_faiss(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference = make_reference()
    z = make_cells(60, seed=4)[0]
    want = reference.neighbours(z, 4)
    monkeypatch.setattr("concerto_tf.models.reference.EXACT_CELLS", 100)
    monkeypatch.setattr("concerto_tf.models.reference.FEW_CELLS", 50)
    with caplog.at_level("INFO", logger="concerto_tf"):
        found = make_reference().neighbours(z, 4)
        assert not caplog.text or importlib.util.find_spec("faiss")
        alike = [len(np.intersect1d(a, b)) for a, b in zip(found[0], want[0], strict=True)]
        assert np.mean(alike) >= 0.98 * 4
        np.testing.assert_allclose(found[1][:, 0], want[1][:, 0], atol=1e-6)
        caplog.clear()
        few = make_reference().neighbours(z[:50], 4)  # an index would not pay
        np.testing.assert_array_equal(few[0], want[0][:50])
        assert "approximate" not in caplog.text


def test_no_faiss_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("concerto_tf.models.reference.EXACT_CELLS", 100)
    monkeypatch.setattr("concerto_tf.models.reference.FEW_CELLS", 5)
    monkeypatch.setitem(sys.modules, "faiss", None)  # what an import of it then raises is real
    want = make_reference().neighbours(np.eye(8), 4)
    assert "pip install faiss-cpu" in caplog.text and want[0].shape == (8, 4)


def test_approximate_search_reaches_its_recall_on_other_cells_than_it_was_measured_on() -> None:
    """20,000 reference cells in overlapping groups, queries from the same groups: of 30 neighbours
    each of 4,000 cells at least 0.98 are found, looking at a small part of the lists."""
    pytest.importorskip("faiss")
    from concerto_tf.models.search import ApproximateSearch, exact

    rng = np.random.default_rng(0)
    centre = rng.normal(size=(30, 32))
    shape = rng.normal(size=(30, 8, 32)) / 3

    def cells(n: int) -> np.ndarray:
        group = rng.integers(0, 30, n)
        z = centre[group] + np.einsum("nk,nkd->nd", rng.normal(size=(n, 8)), shape[group])
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)

    reference, query = cells(20_000), cells(4_000)
    search = ApproximateSearch(reference)
    index, cosine = search.search(query, 30)
    true_cosine, true = exact(query, reference, 30)
    recall = np.mean([len(np.intersect1d(a, b)) / 30 for a, b in zip(index, true, strict=True)])
    assert recall >= 0.98 and search.recall >= 0.99
    assert (np.diff(cosine, axis=1) <= 0).all()
    assert (cosine <= true_cosine + 1e-6).all()
    np.testing.assert_allclose(cosine, np.einsum("nd,nkd->nk", query, reference[index]), atol=1e-5)
    # One list for all: fewer cells than asked for are made up for by an exact search.
    index, _ = search.search(query[:3], 19_999)
    assert (index >= 0).all() and len(np.unique(index[0])) == 19_999


def test_a_saved_reference_comes_back_whole(tmp_path: Path) -> None:
    reference = make_reference(model="m", cells="c")
    reference.calibrated("type")
    save_reference(reference, tmp_path / "reference")
    save_reference(reference, tmp_path / "reference")  # replaces the one that is there
    again = load_reference(tmp_path / "reference")
    z = make_cells(20, seed=4)[0]
    for name, values in reference.transfer(z, "type", 5).items():
        np.testing.assert_array_equal(again.transfer(z, "type", 5)[name], values)
    assert (again.model, again.cells, again.n_cells) == ("m", "c", 300)
    for name, held in reference.values.items():
        assert again.values[name].features == held.features
        assert sp.issparse(again.values[name].matrix) == sp.issparse(held.matrix)
        assert abs(again.values[name].matrix - held.matrix).max() == 0
    assert not [path for path in tmp_path.iterdir() if path.name != "reference"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink], ids=["cut", "changed", "removed"])
@pytest.mark.parametrize(
    "file", ["embeddings.npy", "labels-0.npy", "values-1-indptr.npy", "reference.json"]
)
def test_damage_is_found(tmp_path: Path, file: str, harm: object) -> None:
    save_reference(make_reference(), tmp_path / "reference")
    harm(tmp_path / "reference" / file)
    with pytest.raises(InputError, match="reference"):
        load_reference(tmp_path / "reference")


def test_a_newer_or_altered_description_is_refused(tmp_path: Path) -> None:
    save_reference(make_reference(), tmp_path / "reference")
    path = tmp_path / "reference" / "reference.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "saved_format": 99}))
    with pytest.raises(InputError, match="newer"):
        load_reference(tmp_path / "reference")
    path.write_text(json.dumps({**whole, "model": "another"}))
    with pytest.raises(InputError, match="changed or damaged"):
        load_reference(tmp_path / "reference")


def test_fingerprint_tells_models_apart_and_survives_saving(
    tmp_path: Path, make_model: object
) -> None:
    from concerto_tf.models import load_model, save_model

    model = make_model()
    save_model(model, tmp_path / "model.keras")
    assert fingerprint(load_model(tmp_path / "model.keras")) == fingerprint(model)
    assert fingerprint(make_model(seed=1)) != fingerprint(model)
    before = fingerprint(model)
    model.readout_origin.assign(np.full(model.hidden_units, 0.5))
    assert fingerprint(model) != before
    assert fingerprint(make_model(sources=("a", "c"))) != fingerprint(model)
