"""What tells labels beside the neighbours, against plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.numerics.readout import fit_genes, fit_units
from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.conformity import calibrated
from concerto_tf.reference.files import load_reference, save_reference
from concerto_tf.reference.levels import label_levels
from concerto_tf.reference.transfer import LabelTransfer, heard_of, transfer
from concerto_tf.reference.voices import Genes, Voices

NAMES = ("B", "NK", "T")
GENES, KEY, K = 12, "type", 5


def make_cells(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings that tell B from the others, genes that tell all three, and the types."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 3, n).astype(np.int32)
    z = 3 * np.eye(2, 6)[np.minimum(code, 1)] + rng.normal(0, 0.6, (n, 6))
    y = 1.5 * np.eye(3, GENES)[code] + rng.normal(size=(n, GENES))
    return z.astype(np.float32), y.astype(np.float32), code


def make_reference(n: int = 300, source: np.ndarray | None = None) -> tuple[Reference, np.ndarray]:
    z, y, code = make_cells(n, seed=0)
    origin = np.linspace(-1, 1, 6).astype(np.float32)
    reference = Reference(z + origin, {KEY: Labels(code, NAMES)}, origin=origin)
    rows = np.arange(0, n, 2)
    of = np.zeros(len(rows), int) if source is None else source[rows]
    reference.learn(KEY, Genes(rows, y[rows], np.ones(GENES), of))
    return reference, origin


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def test_labels_are_told_by_vote_embedding_and_genes() -> None:
    """In float64: the weighted log of smoothed shares (equation 16) and two linear functions."""
    reference, origin = make_reference()
    z, y, code = make_cells(80, seed=1)
    voices = reference.voices[KEY]
    by_genes = y @ voices.genes
    heard = heard_of(reference, z + origin, KEY, by_genes)
    found = transfer(reference, z + origin, KEY, K, heard)

    held, unit = reference.labels[KEY].codes, np.float64(reference.embedded.unit)
    cosine = z / np.linalg.norm(z, axis=1, keepdims=True) @ unit.T
    shares = np.zeros((80, 3))
    for i, near in enumerate(np.argsort(-cosine, axis=1)[:, :K]):
        np.add.at(shares[i], held[near], np.maximum(cosine[i, near], 0))
    shares /= shares.sum(1, keepdims=True)
    smooth = np.log((K * shares + 0.5 / 3) / (K + 0.5))
    want = voices.neighbours * smooth + z @ voices.units + by_genes + voices.bias
    np.testing.assert_allclose(found["shares"], softmax(want), atol=1e-4)
    np.testing.assert_allclose(found["probability"], softmax(want).max(1), atol=1e-4)
    assert (found["code"] == want.argmax(1)).all()
    single = transfer(reference, z + origin, KEY, 1, heard)  # sets know of no k
    np.testing.assert_array_equal(single["shares"], found["shares"])
    assert not np.allclose(single["probability"], found["probability"], atol=1e-3)
    # The embedding does not tell NK from T; the genes do.
    alone = transfer(reference.by_neighbours(), z + origin, KEY, K)
    assert np.mean(found["code"] == code) > 0.85 > 0.75 > np.mean(alone["code"] == code)
    assert reference.by_neighbours().voices == {}


def test_what_is_said_of_a_reference_cell_others_have_taught() -> None:
    """Of each half, what the other half teaches; and weights by which no own label is known."""
    reference, _ = make_reference()
    voices, held = reference.voices[KEY], reference.labels[KEY].codes
    rows, z, y = voices.rows, reference.embedded.from_middle(np.arange(300)), make_cells(300, 0)[1]
    said = voices.by_units + voices.by_genes
    # Another label of one cell changes what is said of its half by that cell, not of itself.
    codes = held.copy()
    codes[rows[0]] = (codes[rows[0]] + 1) % 3
    changed = Reference(reference.embedded, {KEY: Labels(codes, NAMES)})
    changed.learn(KEY, Genes(rows, y[rows], np.ones(GENES), np.zeros(len(rows), int)))
    assert not np.allclose(changed.voices[KEY].units, voices.units, atol=1e-6)
    # Fitted by the whole, cells are told better than by others.
    own = [fit_units(z[rows], held[rows], np.ones(len(rows)), 3)]
    own.append(fit_genes(y[rows], held[rows], np.ones(len(rows)), np.ones(GENES), 3))
    whole = z[rows] @ voices.units + y[rows] @ voices.genes + voices.bias
    for kernel, (want, _) in zip((voices.units, voices.genes), own, strict=True):
        weight = np.vdot(kernel, want) / np.vdot(want, want)
        assert weight > 0
        np.testing.assert_allclose(kernel, weight * want, atol=1e-4)
    truth = np.arange(len(rows)), held[rows]
    assert np.log(softmax(whole))[truth].mean() > np.log(softmax(said))[truth].mean()
    np.testing.assert_array_equal(voices.of_cells(rows[[4, 9]]), said[[4, 9]])


def test_sources_are_left_out_whole() -> None:
    """Genes that mislead in every other source are not trusted."""
    z, y, code = make_cells(300, 0)
    source = np.arange(300) // 100
    for i in (1, 2):
        y[source == i] = np.roll(y[source == i][:, :3], i, axis=1).repeat(4, axis=1)
    reference = Reference(z, {KEY: Labels(code, NAMES)})
    sizes = []
    for of in (np.zeros(300, int), source):
        reference.learn(KEY, Genes(np.arange(300), y, np.ones(GENES), of))
        sizes.append(np.linalg.norm(reference.voices[KEY].genes))
    assert sizes[1] < 0.1 * sizes[0]


def test_types_of_one_source_do_not_widen_sets() -> None:
    """Others of its cells tell them; else what speaks against their true labels would be all."""
    z, y, code = make_cells(600, 0)
    reference = Reference(z, {KEY: Labels(code, NAMES)})
    source = np.where(code == 2, 1, np.arange(600) % 2)
    reference.learn(KEY, Genes(np.arange(600), y, np.ones(GENES), source))
    assert len(reference.voices[KEY].rows) == 600
    assert np.quantile(calibrated(reference, KEY).votes.scores, 0.9) < 0.9


def test_few_labels_and_single_ones() -> None:
    z, y, code = make_cells(30, 0)
    for codes, learns in (
        (np.zeros(30, np.int32), False),  # one label
        (np.where(np.arange(30) < 1, 1, 0).astype(np.int32), True),  # a single cell of another
        (np.where(np.arange(30) < 4, code, -1).astype(np.int32), True),
    ):
        reference = Reference(z, {KEY: Labels(codes, NAMES)})
        reference.learn(KEY, Genes(np.arange(30), y, np.ones(GENES), np.zeros(30, int)))
        assert (KEY in reference.voices) == learns
        part = reference.labelled(KEY)
        heard = heard_of(part, z, KEY, y @ part.voices[KEY].genes if learns else None)
        found = transfer(part, z, KEY, min(K, part.n_cells), heard)
        assert np.isfinite(found["shares"]).all()
        assert set(found["code"]) <= {*codes[codes >= 0], -1}


def test_parts_of_a_reference_keep_what_is_said_of_their_cells() -> None:
    reference, _ = make_reference()
    whole = reference.voices[KEY]
    rows = np.array([7, 250, 4, 100, 2])
    part = reference.part(rows).voices[KEY]
    assert part.rows.tolist() == [1, 2, 3, 4]  # those of an even number were learned from
    for place in part.rows:
        of_whole = np.searchsorted(whole.rows, rows[place])
        own = np.searchsorted(part.rows, place)
        np.testing.assert_array_equal(part.by_units[own], whole.by_units[of_whole])
    two = whole.of_labels(np.array([0, 2]))
    np.testing.assert_array_equal(two.genes, whole.genes[:, [0, 2]])
    np.testing.assert_array_equal(two.bias, whole.bias[[0, 2]])


def test_labels_that_a_part_lacks_are_not_told() -> None:
    """As where a coarse label is known: among its finer ones alone."""
    reference, origin = make_reference()
    z, y, _ = make_cells(60, 3)
    held = reference.labels[KEY].codes
    upper = Labels((held > 0).astype(np.int32), ("B cells", "others"))
    reference.labels = {"coarse": upper, KEY: reference.labels[KEY]}
    said = {KEY: y @ reference.voices[KEY].genes}
    found, finest = label_levels(reference, z + origin, ["coarse", KEY], K, 0.0, said)
    others = (found["coarse"]["label"] == "others").to_numpy()
    assert others.any() and set(found[KEY]["label"][others]) <= {"NK", "T"}
    assert finest.shares.shape == (60, 3)


@pytest.mark.parametrize("genes", [True, False])
def test_saved_and_as_a_function_for_a_saved_model_it_says_the_same(
    tmp_path: Path, genes: bool
) -> None:
    reference, origin = make_reference()
    z, y, _ = make_cells(40, 4)
    if not genes:  # of a model whose genes cannot be read
        rows = np.arange(300)
        nothing = Genes(rows, np.zeros((300, 0)), np.zeros(0), np.zeros(300, int))
        reference.learn(KEY, nothing)
        assert not reference.voices[KEY].by_genes.any()
    by_genes = y @ reference.voices[KEY].genes if genes else None
    save_reference(reference, tmp_path / "reference")
    loaded = load_reference(tmp_path / "reference")
    for name in Voices.__dataclass_fields__:
        np.testing.assert_array_equal(
            getattr(loaded.voices[KEY], name), getattr(reference.voices[KEY], name)
        )
    want, found = (
        transfer(of, z + origin, KEY, K, heard_of(of, z + origin, KEY, by_genes))
        for of in (reference, loaded)
    )
    served = LabelTransfer(loaded, KEY, K)
    assert served.listens
    told = tf.function(served)(tf.constant(z + origin), tf.constant(y) if genes else None)
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)
        np.testing.assert_allclose(told[name], values, atol=1e-4)
    assert (calibrated(loaded, KEY).least.scores == calibrated(reference, KEY).least.scores).all()
