"""CICL: pseudo-labels, the loss, and embeddings that do not depend on company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from concerto_tf.errors import InputError
from concerto_tf.losses import cluster_aware, nt_xent
from concerto_tf.models import load_model, save_model
from concerto_tf.models.batches import first_cells
from concerto_tf.models.cicl import CICL

pytestmark = pytest.mark.stack

SMALL = {
    "depth": 2,
    "width": 8,
    "heads": 2,
    "key_dim": 4,
    "units": 8,
    "head_units": (8, 6),
    "components": 3,
    "sources": ("a", "b"),
}


def make(**options: Any) -> CICL:
    return CICL([f"G{i}" for i in range(30)], **{**SMALL, **options})


def sample_of(model: CICL, cells: dict[str, np.ndarray]) -> np.ndarray:
    [x], source = first_cells(lambda batch: [model.dense(batch)], [cells], model.n_inputs)
    return model.standardized_sample(x, source)


def data(cells: dict[str, np.ndarray]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors(cells)


@pytest.fixture(scope="module")
def trained(make_batch: Callable) -> CICL:
    model = make()
    model.compile(learning_rate=1e-2)
    model.fit(data(make_batch(64)).repeat(5), epochs=1, verbose=0)
    return model


def part(cells: dict[str, np.ndarray], at: Any) -> dict[str, np.ndarray]:
    return {key: value[at] for key, value in cells.items() if key != "row"}


def test_embedding_depends_on_neither_order_nor_company(
    trained: CICL, make_batch: Callable
) -> None:
    cells = make_batch(20, seed=1)
    together = trained.embed([part(cells, slice(None))])
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_allclose(trained.embed([part(cells, order)]), together[order], atol=1e-5)
    alone = [trained(part(cells, slice(i, i + 1))).numpy() for i in range(20)]
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)
    # It is the landmarks that are attended to, and not nothing.
    before = np.array(tf.convert_to_tensor(trained.landmarks))
    trained.landmarks.assign(before[::-1] + 1)
    assert np.abs(trained(part(cells, slice(None))) - together).max() > 1e-3
    trained.landmarks.assign(before)


def test_landmarks_are_cells_that_the_seed_chose(make_batch: Callable) -> None:
    cells = make_batch(64)
    kept = []
    for seed in (1, 1, 2):
        model = make(seed=seed)
        assert np.isfinite(model(part(cells, slice(None)))).all()  # before there are any
        model.initialize([cells])
        kept.append(np.array(tf.convert_to_tensor(model.landmarks)))
    x = sample_of(model, cells)
    for row in kept[2]:
        assert np.abs(x - row).max(1).min() < 1e-5
    np.testing.assert_array_equal(kept[0], kept[1])
    assert not np.allclose(kept[0], kept[2])
    model = make()
    model.initialize([make_batch(5)])  # fewer cells than landmarks: each several times
    _, times = np.unique(tf.convert_to_tensor(model.landmarks), axis=0, return_counts=True)
    assert sorted(times) == [51, 51, 51, 51, 52]


def test_begins_as_pca(make_batch: Callable) -> None:
    cells, model = make_batch(100), make(width=3)
    model.initialize([cells])
    model.calibrate([cells])
    x = sample_of(model, cells)
    want = PCA(3).fit_transform(x)
    z = model(cells).numpy()
    correlation = np.corrcoef(z.T, want.T)[:3, 3:]
    assert np.abs(np.diag(correlation)).min() > 0.99


def test_loss_is_equation_17(make_batch: Callable) -> None:
    cells = make_batch(32)
    model = make(clusters=3, identity_start=False, align_sources=False)
    model.initialize([cells])
    seen = {}

    def kept(name: str) -> None:
        original = getattr(model, name)
        calls = seen.setdefault(name, [])

        def wrapped(*args: Any, **options: Any) -> Any:
            calls.append((args[0], original(*args, **options)))
            return calls[-1][1]

        setattr(model, name, wrapped)

    for name in ("augmented", "pseudo_labels", "encode"):
        kept(name)
    loss, a, b = model.batch_loss({key: tf.constant(value) for key, value in cells.items()})
    [(whole, labels)] = seen["pseudo_labels"]
    # Both views are of the cells that are clustered, and differ.
    assert all(np.array_equal(x, whole) for x, _ in seen["augmented"])
    assert not np.allclose(seen["augmented"][0][1], seen["augmented"][1][1])
    want = nt_xent(a, b, 0.5) + 0.1 * cluster_aware(a, b, labels, 0.5)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    # The pseudo-labels are those of K-means in the space of the encoder now, without augmentation.
    h = seen["encode"][-1][1].numpy()
    reference = KMeans(3, n_init=10, random_state=0).fit_predict(h)
    assert adjusted_rand_score(reference, labels) > 0.5
    kernel = [step.kernel for step in model.head.steps]
    z = np.maximum(seen["encode"][0][1] @ np.array(kernel[0]), 0) @ np.array(kernel[1])
    np.testing.assert_allclose(a, z, atol=1e-4)  # equation 10; biases begin at 0


def test_clusters_anew_in_every_step(trained: CICL, make_batch: Callable) -> None:
    count = int(tf.convert_to_tensor(trained.clusterings))
    assert count == 5
    trained.evaluate(data(make_batch(64)), verbose=0)
    assert int(tf.convert_to_tensor(trained.clusterings)) == count


def test_weight_of_zero_is_the_instance_loss_alone(make_batch: Callable) -> None:
    cells = {key: tf.constant(value) for key, value in make_batch(16).items()}
    loss, a, b = make(cluster_weight=0.0).batch_loss(cells)
    np.testing.assert_allclose(loss, nt_xent(a, b, 0.5), rtol=1e-6)


def test_saves_continues_and_takes_new_sources(
    trained: CICL, make_batch: Callable, tmp_path
) -> None:
    cells = make_batch(16, seed=2)
    save_model(trained, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    assert loaded.get_config() == trained.get_config()
    np.testing.assert_allclose(loaded(cells), trained(cells), atol=1e-6)
    other = trained.with_sources(("b", "c"))
    same = part(cells, cells["source"] == 1)
    np.testing.assert_allclose(
        other({**same, "source": 0 * same["source"]}), trained(same), atol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {**CICL.presets["paper"].options, "target_sum": 1e4},
        {"noise": 1.0, "mask_rate": 0.0},
    ],
)
def test_trains_under_xla_with_other_arguments(options: dict, make_batch: Callable) -> None:
    small = {"heads": 2, "key_dim": 4, "units": 8, "head_units": (8, 6), "depth": 2}
    model = make(**{**options, **small, "loss": "nt_xent"})
    model.compile(jit_compile=True)
    history = model.fit(data(make_batch(24)), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model.embed([make_batch(3)]).shape == (3, model.embedding_dim)


def test_half_precision(make_batch: Callable) -> None:
    cells = make_batch(24)
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = make()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    model.compile()
    history = model.fit(data(cells), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all() and model(cells).dtype == tf.bfloat16
    assert all(weight.dtype != tf.bfloat16 for weight in model.weights)


def test_two_replicas_compute_what_one_does(
    strategy: tf.distribute.Strategy, make_batch: Callable
) -> None:
    # Without random views, so that the cells alone decide.
    options = {"mask_rate": 0.0, "clusters": 3, "identity_start": False}
    cells = make_batch(32)
    batches = tf.data.Dataset.from_tensor_slices(cells).batch(32)
    embeddings = []
    for scope in (strategy, None):
        if scope is None:
            model = make(**options)
            model.compile("sgd", learning_rate=0.1, jit_compile=False)
        else:
            with scope.scope():
                model = make(**options)
                model.compile("sgd", learning_rate=0.1)
        model.fit(batches, epochs=2, verbose=0)
        embeddings.append(model.embed([cells]))
    np.testing.assert_allclose(*embeddings, atol=1e-4)


def test_bad_arguments(make_batch: Callable) -> None:
    model = make(clusters=33)
    model.compile()
    with pytest.raises(InputError, match="33 clusters of a minibatch of 32 cells; take a larger"):
        model.fit(data(make_batch(32)), verbose=0)
    assert not int(tf.convert_to_tensor(model.started))
    for options, message in [
        ({"clusters": 1}, "clusters must be a whole number of at least 2"),
        ({"cluster_weight": -1}, "cluster_weight is -1"),
        ({"mask_rate": 1.2}, "rate must lie in"),
        ({"noise": -0.1}, "fraction must lie in"),
        ({"heads": 0}, "heads must be"),
    ]:
        with pytest.raises(InputError, match=message):
            make(**options)
