"""What a protocol leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from concerto_tf.errors import InputError
from protocols.report import check_folder, leave


def test_table_result_and_figure_are_left(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([0, 1])
    table = pd.DataFrame({"method": ["a", "b"], "ari": [0.5, np.nan]})
    result = {
        "mean": np.float32(0.5),
        "n": np.int64(3),
        "worst": float("inf"),
        "none": np.nan,
        "list": (np.arange(2), {1: True}),
        "where": Path("x"),
    }
    left = leave(tmp_path / "new" / "folder", table, result, figure)
    folder = tmp_path / "new" / "folder"
    assert {p.name for p in folder.iterdir()} == {"table.tsv", "result.json", "figure.png"}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table.tsv", sep="\t"), table)
    assert (
        left
        == json.loads((folder / "result.json").read_text())
        == {
            "mean": 0.5,
            "n": 3,
            "worst": None,
            "none": None,
            "list": [[0, 1], {"1": True}],
            "where": "x",
        }
    )
    assert (folder / "figure.png").read_bytes()[1:4] == b"PNG"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        check_folder(tmp_path / "file" / "below")
