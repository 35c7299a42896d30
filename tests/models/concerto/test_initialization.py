"""The start from principal components."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from concerto_tf.models import batches as batches_module
from concerto_tf.models.batches import first_cells
from concerto_tf.numerics.components import standardize_by_source
from concerto_tf.records.batch import Minibatch


def test_both_networks_begin_with_the_principal_components(
    make_model: Callable, make_batch: Callable
) -> None:
    cells = make_batch(200)
    model = make_model(components=3, readout="both", hidden_units=16, units=16, align_sources=False)
    model.initialize([cells])
    model.calibrate([cells])
    [x], source = first_cells(lambda batch: model.networks.values(Minibatch(batch)), [cells], 30)
    y, _ = standardize_by_source(x, source, model.input_epsilon)
    components = PCA(3).fit_transform(np.clip(y, -10, 10))
    z = model(cells).numpy()
    for view in (z[:, :16], z[:, 16:]):
        # How much of each component a linear map finds in the view.
        view = np.c_[view, np.ones(len(view))]
        fitted = view @ np.linalg.lstsq(view, components, rcond=None)[0]
        explained = 1 - ((components - fitted) ** 2).sum(0) / (components**2).sum(0)
        assert explained.min() > 0.8, explained


def test_scaled_inputs_change_the_steps_and_not_the_start(
    make_model: Callable, make_batch: Callable
) -> None:
    cells, kernels, embeddings = make_batch(200), [], []
    for scaled in (True, False):
        model = make_model(components=3, scale_inputs=scaled)
        model.initialize([cells])
        model.calibrate([cells])
        embeddings.append(model(cells).numpy())
        kernels.append(np.array(model.networks.student_dense.kernel))
    np.testing.assert_allclose(kernels[0], kernels[1] * np.sqrt(30), rtol=1e-4)
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", ["student", "teacher"])
def test_cells_in_the_middle_have_a_direction(make_model: Callable, readout: str) -> None:
    # Three kinds, and equal parts of them: seen from the middle these have no direction.
    rng = np.random.default_rng(0)
    mean = np.kron(np.eye(3), np.full((1, 10), 12.0)) + 2
    mean = np.r_[mean, mean.mean(0, keepdims=True)]
    kind = rng.integers(0, 4, 400)
    cells = {
        "genes": np.tile(np.arange(30, dtype=np.int32), (400, 1)),
        "values": rng.poisson(mean[kind]).astype(np.float32),
        "source": np.zeros(400, np.int32),
    }
    embeddings, right = [], []
    for offset in (0.0, 0.5):
        model = make_model(
            components=2,
            hidden_units=12,
            units=12,
            sources=("a",),
            readout=readout,
            readout_offset=offset,
            denoise=0.0,
        )
        model.initialize([cells])
        np.testing.assert_array_equal(model.geometry.origin, offset * (np.arange(12) < 4))
        model.calibrate([cells])
        embeddings.append(model(cells).numpy())
        vote = KNeighborsClassifier(5, metric="cosine").fit(embeddings[-1][::2], kind[::2])
        middle = kind[1::2] == 3
        right.append((vote.predict(embeddings[-1][1::2]) == kind[1::2])[middle].mean())
    np.testing.assert_allclose(*(pdist(z) for z in embeddings), rtol=1e-4, atol=1e-5)
    assert right[0] < right[1] > 0.9, right


@pytest.mark.parametrize("readout", ["student", "teacher", "both"])
def test_a_model_knows_how_far_unseen_cells_spread(make_model: Callable, readout: str) -> None:
    rng = np.random.default_rng(0)
    mean = rng.gamma(2, 1, (3, 30)) * 4
    batches = [
        {
            "genes": np.tile(np.arange(30, dtype=np.int32), (n, 1)),
            "values": rng.poisson(mean[rng.integers(0, 3, n)]).astype(np.float32),
            "source": np.zeros(n, np.int32),
        }
        for n in (200, 3000)
    ]
    model = make_model(
        components=6, hidden_units=16, units=16, sources=("a",), readout=readout, scale_genes=False
    )
    assert model.geometry.spread is None
    model.initialize(batches[:1])
    if readout == "both":  # of length 1
        assert model.geometry.spread is None
        return
    model.calibrate(batches[:1])
    seen, unseen = (model(cells).numpy().std(0)[:12] for cells in batches)
    if readout == "student":  # the teacher's attention is not quite uniform
        np.testing.assert_allclose(model.geometry.spread[0, :12], seen, rtol=0.05)
    np.testing.assert_array_equal(model.geometry.spread[:, 12:], 0)
    share = np.divide(*model.geometry.spread[::-1, :12])
    np.testing.assert_array_equal(share[:6], share[6:12])
    assert share[:2].min() > 0.92 > 0.88 > share[2:6].max()
    np.testing.assert_allclose(share[:12], unseen / seen, atol=0.15)


def test_start_follows_from_the_seed_alone(make_model: Callable, make_batch: Callable) -> None:
    cells = make_batch(50)
    kernels = []
    for seed in (1, 1, 2):
        model = make_model(components=3, seed=seed)
        model.initialize([cells])
        kernels.append(np.array(model.networks.student_dense.kernel))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_sample_is_of_so_many_cells_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [
        {"genes": np.zeros((6, 1), np.int32), "values": np.full((6, 2), i)} for i in range(9)
    ]
    for cells, values, most in ((20, 1000, 20), (1000, 30, 15), (1000, 1000, 54)):
        monkeypatch.setattr(batches_module, "SAMPLE_CELLS", cells)
        monkeypatch.setattr(batches_module, "SAMPLE_VALUES", values)
        [x], source = first_cells(lambda batch: [batch["values"]], batches, 2)
        assert len(x) == len(source) == most
        np.testing.assert_array_equal(x[:, 0], np.arange(54)[:most] // 6)


def test_padding_and_too_few_cells_are_no_sample(
    make_model: Callable, make_batch: Callable
) -> None:
    cells = make_batch(10)
    cells["row"][3:] = -1
    model = make_model()
    [x], source = first_cells(lambda batch: model.networks.values(Minibatch(batch)), [cells], 30)
    assert x.shape == (3, 30) and source.shape == (3,)
    before = np.array(model.networks.student_dense.kernel)
    cells["row"][1:] = -1
    model = make_model(components=3)
    model.initialize([cells])
    np.testing.assert_array_equal(np.array(model.networks.student_dense.kernel), before)
