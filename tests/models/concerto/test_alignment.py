"""Models that align sources by the cell types that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from concerto_tf.layers import RandomMask, SourceBatchNormalization
from concerto_tf.models import Concerto, DenseModel, load_model
from concerto_tf.models.concerto import initialization
from concerto_tf.models.saving import save_model
from concerto_tf.numerics.alignment import align


def test_a_layer_does_what_was_reckoned() -> None:
    rng = np.random.default_rng(0)
    source = rng.permutation(np.repeat([0, 2], 60)).astype(np.int32)
    x = rng.normal(1, 2, size=(120, 4)).astype(np.float32) + source[:, None]
    layer = SourceBatchNormalization(3, epsilon=0.1, aligned=True)
    layer.build((None, 4))
    offsets = rng.normal(size=(3, 4)).astype(np.float32)
    want, _, factor, offset = align(x, source, offsets, layer.epsilon)
    layer.align(factor, offset)
    np.testing.assert_allclose(layer(x, source=source, training=True), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(want.mean(0), 0, atol=1e-4)
    # The source that has no cell here is left alone.
    np.testing.assert_array_equal(layer.source_factor.numpy()[1], 1)
    np.testing.assert_array_equal(layer.source_offset.numpy()[1], 0)


@pytest.fixture
def lacking() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Cells of six kinds in two sources, which have two kinds in common; and their kinds."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 6, 800)
    source = np.where(kind < 2, 0, np.where(kind > 3, 1, rng.integers(0, 2, 800))).astype(np.int32)
    profile = rng.gamma(2.0, 0.5, (6, 120)) * np.where(rng.random((6, 120)) < 0.15, 6, 1)
    technology = np.exp(rng.normal(0, 0.7, (2, 120)))
    counts = rng.poisson(profile[kind] * technology[source]).astype(np.float32)
    genes = np.tile(np.arange(120, dtype=np.int32), (800, 1))
    return {"genes": genes, "values": counts, "source": source}, kind


def started(cells: dict[str, np.ndarray], **options: object) -> Concerto:
    names = [f"G{i}" for i in range(120)]
    small = {"units": 16, "hidden_units": 32, "attention_units": 4, "components": 8}
    model = Concerto(names, sources=("a", "b"), **small, **options)
    model.initialize([cells])
    model.calibrate([cells])
    return model


def _distance(z: np.ndarray, source: np.ndarray, kind: np.ndarray, k: int) -> float:
    """How far the centers of a kind in both sources are apart."""
    a, b = (z[(kind == k) & (source == s)].mean(0) for s in (0, 1))
    return float(np.linalg.norm(a - b))


@pytest.mark.parametrize("readout", ["student", "teacher"])
def test_sources_that_hold_other_kinds_are_aligned_by_those_they_share(
    lacking: tuple[dict[str, np.ndarray], np.ndarray], readout: str
) -> None:
    cells, kind = lacking
    apart = {}
    for aligned in (True, False):
        z = started(cells, align_sources=aligned, readout=readout)(cells).numpy()
        spread = np.sqrt(z.var(0).sum())
        apart[aligned] = max(_distance(z, cells["source"], kind, k) for k in (2, 3)) / spread
    # One and the same kind in both sources: apart by this share of the spread of all cells.
    assert apart[True] < 0.25 < 0.5 < apart[False], apart


@pytest.mark.parametrize(("sorted_kind", "share"), [(0, 0.5), (0, 1.0), (3, 0.5), (3, 1.0)])
def test_a_source_of_one_kind_alone_stays_with_this_kind(sorted_kind: int, share: float) -> None:
    """Cells that were sorted, half or all of their kind, without a technology of their own."""
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 6, 800)
    profile = rng.gamma(2.0, 0.5, (6, 120)) * np.where(rng.random((6, 120)) < 0.05, 4, 1)
    cells = {
        "genes": np.tile(np.arange(120, dtype=np.int32), (800, 1)),
        "values": rng.poisson(profile[kind]).astype(np.float32),
        "source": ((kind == sorted_kind) & (rng.random(800) < share)).astype(np.int32),
    }
    z, own = started(cells)(cells).numpy(), cells["source"] == 1
    votes = KNeighborsClassifier(5).fit(z[~own], kind[~own]).predict(z[own])
    if share < 1:
        assert (votes == sorted_kind).mean() > 0.95
    centers = np.stack([z[kind == k].mean(0) for k in range(6)])
    nearest = np.linalg.norm(z[:, np.newaxis] - centers, axis=2).argmin(1)
    assert (nearest == kind).mean() > 0.95


def test_alignment_is_kept_with_the_model_and_for_its_sources(
    lacking: tuple[dict[str, np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    cells, _ = lacking
    model = started(cells)
    save_model(model, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(cells), model(cells))
    assert np.abs(model.networks.branches[0].student_norm.source_offset.numpy()).max() > 0.1
    other = model.with_sources(["b", "new", "a"])
    moved = {**cells, "source": np.where(cells["source"] == 0, 2, 0).astype(np.int32)}
    np.testing.assert_allclose(other(moved), model(cells), rtol=1e-5, atol=1e-6)
    [branch] = other.networks.branches
    np.testing.assert_array_equal(branch.student_norm.source_factor.numpy()[1], 1)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_other_methods_align_too(
    lacking: tuple[dict[str, np.ndarray], np.ndarray], rate: float
) -> None:
    cells, kind = lacking
    apart = {}
    for aligned in (True, False):
        model = DenseModel(
            [f"G{i}" for i in range(120)],
            sources=("a", "b"),
            backbone=(32,),
            components=8,
            augmentation=RandomMask(rate, rescale=False, seed=0),
            align_sources=aligned,
        )
        model.initialize([cells])
        model.calibrate([cells])
        z = model(cells).numpy()
        spread = np.sqrt(z.var(0).sum())
        apart[aligned] = max(_distance(z, cells["source"], kind, k) for k in (2, 3)) / spread
    assert apart[True] < 0.25 < 0.5 < apart[False], apart


@pytest.mark.parametrize("few", [1, 3, 10])
def test_a_source_of_a_few_cells_is_left_as_it_is(
    lacking: tuple[dict[str, np.ndarray], np.ndarray], few: int
) -> None:
    cells, _ = lacking
    keep = np.flatnonzero(cells["source"] == 0)
    keep = np.r_[keep, np.flatnonzero(cells["source"] == 1)[:few]]
    model = started({name: value[keep] for name, value in cells.items()})
    norm = model.networks.branches[0].student_norm
    np.testing.assert_array_equal(norm.source_factor.numpy()[1], 1)
    np.testing.assert_array_equal(norm.source_offset.numpy()[1], 0)
    model.calibrate([cells])
    z = model(cells).numpy()
    spread = [z[cells["source"] == code].std(0).mean() for code in (0, 1)]
    assert spread[1] > 0.5 * spread[0]


def test_cells_that_do_not_differ_have_nothing_to_align() -> None:
    one = np.arange(1, 121, dtype=np.float32)
    for n in (2, 3, 60):
        cells = {
            "genes": np.tile(np.arange(120, dtype=np.int32), (n, 1)),
            "values": np.tile(one, (n, 1)),
            "source": np.arange(n, dtype=np.int32) % 2,
        }
        assert np.isfinite(started(cells)(cells)).all()
        model = DenseModel([f"G{i}" for i in range(120)], sources=("a", "b"), backbone=(8,))
        model.initialize([cells])
        assert np.isfinite(model(cells)).all()


def two_modalities(cells: dict[str, np.ndarray], **options: object) -> Concerto:
    """A model that looks at the last 40 genes as another modality, which 100 cells lack."""
    protein = {"vocabulary": [f"P{i}" for i in range(40)], "target_sum": 1e3}
    small = {"units": 16, "hidden_units": 32, "attention_units": 4, "components": 8}
    model = Concerto(
        [f"G{i}" for i in range(80)],
        sources=("a", "b"),
        modalities={"protein": protein},
        **small,
        **options,
    )
    model.initialize([cells])
    model.calibrate([cells] * 8)
    return model


@pytest.fixture
def of_two(
    lacking: tuple[dict[str, np.ndarray], np.ndarray],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    cells, kind = lacking
    protein = cells["values"][:, 80:].copy()
    protein[np.random.default_rng(1).permutation(800)[:100]] = 0
    return {
        "genes": cells["genes"][:, :80],
        "values": cells["values"][:, :80],
        "protein/genes": cells["genes"][:, :40],
        "protein/values": protein,
        "source": cells["source"],
    }, kind


@pytest.mark.parametrize("readout", ["student", "teacher"])
def test_sources_are_aligned_in_every_modality(
    of_two: tuple[dict[str, np.ndarray], np.ndarray], readout: str
) -> None:
    cells, kind = of_two
    without = {name: cells[name] for name in ("genes", "values", "source")}
    apart = {}
    for aligned in (True, False):
        model = two_modalities(cells, align_sources=aligned, readout=readout)
        for seen in (cells, without):
            z = model(seen).numpy()
            spread = np.sqrt(z.var(0).sum())
            apart[aligned, len(seen)] = (
                max(_distance(z, cells["source"], kind, k) for k in (2, 3)) / spread
            )
    # As far as by the 80 genes alone; the 120 of the tests above say more.
    assert max(apart[True, 5], apart[True, 3]) < 0.55 < 0.6 < min(apart[False, 5], apart[False, 3])


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_normalization_of_both_modalities_is_that_of_all_sources(
    of_two: tuple[dict[str, np.ndarray], np.ndarray], network: str
) -> None:
    cells, _ = of_two
    model = two_modalities(cells, readout=network)
    norm = model.networks.joint_norm if network == "student" else model.networks.teacher_norm
    seen = []
    dense = getattr(model.networks, f"{network}_dense")
    inner = dense.call
    dense.call = lambda x, **_: seen.append(x) or inner(x)
    model(cells)
    [z] = (np.asarray(x) / np.asarray(norm.gamma) for x in seen)
    first = z[:, :8]  # the components
    np.testing.assert_allclose(first.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(first.std(0), 1, atol=0.15)
    means = [first[cells["source"] == code].mean(0) for code in (0, 1)]
    assert np.abs(means[0] - means[1]).max() > 0.5  # of other kinds, so not each at its mean


def test_a_modality_of_one_source_alone(of_two: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    cells, kind = of_two
    cells["protein/values"][cells["source"] == 1] = 0
    model = two_modalities(cells)
    np.testing.assert_array_equal(model.networks.branches[1].student_norm.source_offset.numpy(), 0)
    assert np.abs(model.networks.branches[0].student_norm.source_offset.numpy()).max() > 0.1
    z = model({name: cells[name] for name in ("genes", "values", "source")}).numpy()
    spread = np.sqrt(z.var(0).sum())
    assert max(_distance(z, cells["source"], kind, k) for k in (2, 3)) / spread < 0.55


def test_a_modality_that_the_first_cells_lack_is_aligned_in_the_teacher(
    of_two: tuple[dict[str, np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, _ = of_two
    monkeypatch.setattr(initialization, "_TEACHER_CELLS", 200)
    lacks = ~(cells["protein/values"] > 0).any(1)
    lacks[:300] = True
    order = np.argsort(~lacks, kind="stable")
    cells = {name: value[order] for name, value in cells.items()}
    cells["protein/values"][lacks[order]] = 0
    model = two_modalities(cells)
    assert np.abs(model.networks.branches[1].branch_norm.source_offset.numpy()).max() > 0.1


def test_one_source_is_not_aligned(make_model: Callable, make_batch: Callable) -> None:
    cells = {**make_batch(60), "source": np.zeros(60, np.int32)}
    model = make_model(components=3, sources=("a",))
    assert model.networks.branches[0].student_norm.aligned
    model.initialize([cells])
    np.testing.assert_array_equal(model.networks.branches[0].student_norm.source_offset.numpy(), 0)
    assert not make_model(components=0).networks.branches[0].student_norm.aligned
