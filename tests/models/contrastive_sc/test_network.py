"""contrastive-sc: strong input dropout in both views, NT-Xent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.losses import nt_xent
from concerto_tf.models import ContrastiveSC, load_model, save_model
from concerto_tf.models.asked import model_of_two_genes

pytestmark = pytest.mark.stack

NAMES = [f"G{i}" for i in range(30)]


@pytest.mark.parametrize("rescale", [False, True])
def test_views_keep_their_share_of_the_genes(rescale: bool, make_batch: Callable) -> None:
    model = ContrastiveSC(NAMES, backbone=(4,), mask_rate=0.8, rescale=rescale)
    x = model.dense(make_batch(1000)) + 1.0  # no zero is one of the cell
    views = [model.augmented(x).numpy() for _ in range(2)]
    for view in views:
        kept = view != 0
        # 30,000 draws: six standard deviations are 0.014; a right mask fails once in 5e8.
        assert abs(kept.mean() - 0.2) < 0.014
        np.testing.assert_allclose(view[kept], (x.numpy() * (5 if rescale else 1))[kept], rtol=1e-6)
    both = ((views[0] != 0) & (views[1] != 0)).mean()
    assert abs(both - 0.04) < 0.007, "the views hide independently"


def test_loss_is_nt_xent_at_the_printed_temperature() -> None:
    model = model_of_two_genes("contrastive-sc", "paper")
    assert model.backbone.widths[-1] == 32 and len(model.backbone.widths) == 3
    assert model.augmentation.rate in (0.8, 0.9) and model.head is None
    a, b = (tf.random.stateless_normal([6, 32], [i, 0]) for i in range(2))
    np.testing.assert_allclose(model.contrastive_loss(a, b), nt_xent(a, b, 0.07), rtol=1e-6)


def test_learns_and_comes_back(make_batch: Callable, tmp_path: Path) -> None:
    data = tf.data.Dataset.from_tensor_slices(make_batch(64)).batch(32)
    model = ContrastiveSC(NAMES, backbone=(12, 8), head=None, mask_rate=0.5, seed=4, components=4)
    model.compile(learning_rate=0.01, jit_compile=False)
    loss = model.fit(data, epochs=8, verbose=0).history["loss"]
    assert np.mean(loss[-2:]) < loss[0]
    save_model(model, tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.embed(data), model.embed(data))
    assert again.augmentation.rate == 0.5 and again.get_config() == model.get_config()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rate_outside_its_range(rate: float) -> None:
    with pytest.raises(InputError, match=r"rate must lie in \[0, 1\)"):
        ContrastiveSC(NAMES, mask_rate=rate)


def test_the_authors_layers_are_batch_normalized(make_batch: Callable, tmp_path: Path) -> None:
    asked = {"backbone": (12, 10, 8), "batch_norm": True, "unit_length": True}
    model = ContrastiveSC(NAMES, head=None, components=0, scale_inputs=False, **asked)
    data = tf.data.Dataset.from_tensor_slices(make_batch(64)).batch(32)
    model.compile(learning_rate=0.01, jit_compile=False)
    model.fit(data, epochs=2, verbose=0)
    first, second = model.backbone.norms
    assert np.abs(np.array(first.moving_mean)).max() > 0
    x = model.standardized(make_batch(64))
    # By hand, at inference: linear, batch normalization, ReLU, and the last is linear alone.
    for step, norm in zip(model.backbone.steps, (first, second, None), strict=True):
        x = x.numpy() @ np.array(step.kernel) + np.array(step.bias)
        if norm is not None:
            spread = np.sqrt(np.array(norm.moving_variance) + 1e-5)
            x = (x - np.array(norm.moving_mean)) / spread
            x = tf.nn.relu(x * np.array(norm.gamma) + np.array(norm.beta))
    want = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(model(make_batch(64)), want, atol=1e-5)
    save_model(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(
        load_model(tmp_path / "model.keras").embed(data), model.embed(data)
    )
