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
    model = ContrastiveSC(NAMES, **ContrastiveSC.presets["paper"].options)
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
