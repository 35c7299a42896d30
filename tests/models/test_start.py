"""The start from principal components."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA

from concerto_tf.models.batches import first_cells
from concerto_tf.models.components import standardize_by_source


def test_both_networks_begin_with_the_principal_components(
    make_model: Callable, make_batch: Callable
) -> None:
    cells = make_batch(200)
    model = make_model(components=3, readout="both", hidden_units=16, units=16)
    model.initialize([cells])
    model.calibrate([cells])
    [x], source = first_cells(model._spread, [cells], model.n_features)
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
        kernels.append(np.array(model.student_dense.kernel))
    np.testing.assert_allclose(kernels[0], kernels[1] * np.sqrt(model.n_inputs), rtol=1e-4)
    np.testing.assert_allclose(embeddings[0], embeddings[1], rtol=1e-4, atol=1e-5)


def test_start_follows_from_the_seed_alone(make_model: Callable, make_batch: Callable) -> None:
    cells = make_batch(50)
    kernels = []
    for seed in (1, 1, 2):
        model = make_model(components=3, seed=seed)
        model.initialize([cells])
        kernels.append(np.array(model.student_dense.kernel))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_padding_and_too_few_cells_are_no_sample(
    make_model: Callable, make_batch: Callable
) -> None:
    cells = make_batch(10)
    cells["row"][3:] = -1
    model = make_model()
    [x], source = first_cells(model._spread, [cells], model.n_features)
    assert x.shape == (3, 30) and source.shape == (3,)
    before = np.array(model.student_dense.kernel)
    cells["row"][1:] = -1
    model = make_model(components=3)
    model.initialize([cells])
    np.testing.assert_array_equal(np.array(model.student_dense.kernel), before)
