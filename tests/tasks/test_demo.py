"""The cells of the demonstration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from concerto_tf.tasks.demo import LABEL_KEY, demo, demo_cells


def test_cells_come_with_scanpy_and_are_log_normalized() -> None:
    cells = demo_cells()
    assert cells.shape == (700, 765)
    assert cells.obs[LABEL_KEY].nunique() == 10 and list(cells.obs) == [LABEL_KEY]
    assert cells.X.min() >= 0 and not float(cells.X.max()).is_integer()
    assert not (cells.uns or cells.obsm or cells.obsp or cells.varm)


@pytest.mark.slow
def test_demo_runs_to_a_result(tmp_path: Path) -> None:
    found = demo(tmp_path / "demo")
    assert found["cells"] == 700 and np.isfinite(found["ari_leiden"])
    assert (tmp_path / "demo" / "result.h5ad").exists()
    assert (tmp_path / "demo-cells.h5ad").exists()
