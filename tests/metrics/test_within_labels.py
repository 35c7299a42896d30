"""What is judged within each label, against formulas written out and against scib-metrics."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from concerto_tf.errors import InputError
from concerto_tf.metrics import (
    bras,
    cilisi,
    graph_connectivity,
    ilisi,
    isolated_labels,
    kbet,
    pcr,
    scib,
)
from concerto_tf.metrics.within_labels import accepted


def cells(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of four labels and three sources, further apart with each seed."""
    rng = np.random.default_rng(seed)
    labels, sources = rng.choice(4, n, p=[0.45, 0.3, 0.2, 0.05]), rng.integers(0, 3, n)
    sources[labels == 2] %= 2
    apart = 0.7 * seed * np.eye(8)[4 + sources]
    return (rng.normal(size=(n, 8)) + 4 * np.eye(8)[labels] + apart), sources, labels


def unlike_composition(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two types, 80/20 and 20/80 over two batches, perfectly mixed within."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n // 2)
    sources = (rng.random(n) < np.where(labels == 0, 0.2, 0.8)).astype(int)
    return rng.normal(size=(n, 10)) + 20 * np.eye(10)[labels], sources, labels


@pytest.mark.parametrize("seed", range(3))
def test_correct_integration_of_unlike_batches_is_no_bad_mixing(seed: int) -> None:
    z, sources, labels = unlike_composition(1000, seed)
    assert kbet(z, sources, labels, k=50) >= 0.90
    assert kbet(z, sources, k=50) < 0.5, "against the proportions of all cells"
    assert bras(z, sources, labels) > 0.95
    z[:, 9] += 20 * sources
    assert kbet(z, sources, labels, k=50) == 0 and cilisi(z, sources, labels) < 0.01
    assert bras(z, sources, labels) < 0.6


def test_cilisi_is_the_mean_index_among_cells_of_the_label() -> None:
    z, sources, labels = cells(1, 200)
    found = []
    for label in np.unique(labels):
        own = labels == label
        if own.sum() < 10:
            continue
        distance = cdist(z[own], z[own])
        np.fill_diagonal(distance, np.inf)
        near = sources[own][distance.argsort(1)[:, : min(30, own.sum() - 1)]]
        kinds = np.unique(sources[own])
        index = [1 / sum((row == kind).mean() ** 2 for kind in kinds) for row in near]
        found += [(value - 1) / (len(kinds) - 1) for value in index]
    assert cilisi(z, sources, labels) == pytest.approx(np.mean(found), rel=1e-6)


def test_bras_is_by_cosine_and_against_all_other_sources_together() -> None:
    z, sources, labels = cells(2, 150)
    kept = []
    for label in np.unique(labels):
        own, of = z[labels == label], sources[labels == label]
        distance, widths = cdist(own, own, "cosine"), []
        for i in range(len(own)):
            same = (of == of[i]) & (np.arange(len(own)) != i)
            a, b = distance[i, same].mean() if same.any() else None, distance[i, of != of[i]].mean()
            widths.append(0.0 if a is None else (b - a) / max(a, b))
        kept.append(1 - np.abs(widths).mean())
    assert bras(z, sources, labels) == pytest.approx(np.mean(kept), abs=1e-5)


def test_isolated_labels_are_those_of_fewest_sources() -> None:
    from sklearn.metrics import silhouette_samples

    z, sources, labels = cells(1)  # label 2 alone has two sources
    want = (silhouette_samples(z, labels)[labels == 2].mean() + 1) / 2
    assert isolated_labels(z, sources, labels) == pytest.approx(want, abs=1e-5)
    few = isolated_labels(z, sources, labels, cap=300)  # frequent labels are thinned, not this one
    assert few == pytest.approx(want, abs=0.02)


def test_pcr_is_the_share_of_the_sources_variance_that_is_gone() -> None:
    from sklearn.decomposition import PCA

    z, sources, _ = cells(1)
    before = z + 2 * np.eye(8)[sources]

    def explained(x: np.ndarray) -> float:
        """By its definition: R squared of every component, weighted by its variance."""
        made = PCA().fit(x)
        of, hot = made.transform(x), np.eye(3)[sources]
        residual = of - hot @ np.linalg.lstsq(hot, of, rcond=None)[0]
        r2 = 1 - np.square(residual).sum(0) / np.square(of).sum(0)
        return float(r2 @ made.explained_variance_ / made.explained_variance_.sum())

    want = (explained(before) - explained(z)) / explained(before)
    assert pcr(before, z, sources) == pytest.approx(want, abs=1e-5)
    assert pcr(z, before, sources) == 0, "more than before is none less"
    with pytest.raises(InputError, match="400 cells before integration and 399 after"):
        pcr(before, z[1:], sources[1:])


def test_neighbourhoods_are_accepted_by_the_chi_square_test() -> None:
    from scipy.stats import chisquare

    rng = np.random.default_rng(0)
    of, around = rng.choice(3, 90, p=[0.5, 0.3, 0.2]), rng.integers(0, 90, (90, 12))
    share = np.bincount(of) / 90
    want = [
        chisquare(np.bincount(of[row], minlength=3), 12 * share).pvalue >= 0.2 for row in around
    ]
    assert 0.2 < np.mean(want) < 0.95
    assert accepted(around, of, 0.2) == pytest.approx(np.mean(want))


def test_labels_that_tell_nothing() -> None:
    z, sources, _ = cells(0, 60)
    for metric in (kbet, cilisi, bras):
        with pytest.raises(InputError, match="no label has .* cells of two sources"):
            metric(z, sources, labels=sources)
    pairs = np.arange(60) // 5  # labels of five cells
    with pytest.raises(InputError, match="no label has 10 cells"):
        kbet(z, sources, pairs)


@pytest.mark.skipif(find_spec("scib_metrics") is None, reason="no scib-metrics here")
@pytest.mark.parametrize("seed", range(4))
def test_the_same_without_scib_metrics_as_with_it(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, sources, labels = cells(seed, 600)
    before = z + 2 * np.eye(8)[sources]

    def scores() -> list[float]:
        return [
            kbet(z, sources, labels),
            bras(z, sources, labels),
            isolated_labels(z, sources, labels),
            pcr(before, z, sources),
            graph_connectivity(z, labels),
        ]

    theirs = scores()
    monkeypatch.setattr(scib, "installed", lambda: False)
    np.testing.assert_allclose(scores(), theirs, atol=1e-3)
    with scib.quietly() as engine:
        from concerto_tf.metrics.graph import nearest_others

        table = scib.neighbours(*nearest_others(z.astype(np.float32), 90))
        assert ilisi(z, sources) == pytest.approx(engine.ilisi_knn(table, sources), abs=1e-3)
