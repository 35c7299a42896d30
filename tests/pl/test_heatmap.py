"""The heatmap of groups and genes."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from concerto_tf.pl.heatmap import heatmap


def test_heatmap_of_many_groups_stays_readable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from matplotlib.image import imread

    table = pd.DataFrame(
        [
            {"group": f"g{i}", "gene": f"x{i}_{j}", "modality": "rna", "weight": 1.0, "rank": j + 1}
            for i in range(400)
            for j in range(5)
        ]
    )
    with caplog.at_level(logging.INFO, "concerto_tf"):
        heatmap(table, tmp_path / "map.png")
    assert "shows 80 of 400 groups, by 1 genes each" in caplog.text
    assert max(imread(tmp_path / "map.png").shape) < 5000
