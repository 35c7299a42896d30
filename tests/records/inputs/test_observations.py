from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from concerto_tf.records.inputs.observations import (
    BarcodeObservations,
    StoredFrame,
    barcode_repeated,
    codes_and_names,
)


@pytest.mark.parametrize(
    ("values", "codes", "categories"),
    [
        (pd.Categorical(["T", "B", None], ["T", "never", "B"]), [0, 1, -1], ["T", "B"]),
        (pd.Categorical([10, 2, 10]), [1, 0, 1], ["2", "10"]),
        (np.array(["b", "a", "", "b"], dtype=object), [1, 0, -1, 1], ["a", "b"]),
        (np.array(["b", None, "a", np.nan], dtype=object), [1, -1, 0, -1], ["a", "b"]),
        (np.array([10, 9, 10]), [1, 0, 1], ["9", "10"]),
        (np.array([True, False]), [1, 0], ["False", "True"]),
        (np.array([2.0, np.nan, 10.0, 0.5]), [1, -1, 2, 0], ["0.5", "2", "10"]),
        (pd.array([3, None, 1], dtype="Int64"), [1, -1, 0], ["1", "3"]),
        (pd.array([True, None], dtype="boolean"), [0, -1], ["True"]),
        (pd.array(["x", None, "w"], dtype="string"), [1, -1, 0], ["w", "x"]),
        (np.array(["a", 1, "a"], dtype=object), [1, 0, 1], ["1", "a"]),
        (np.array([b"ab", b"cd"]), [0, 1], ["ab", "cd"]),
        (np.array([None, None], dtype=object), [-1, -1], []),
    ],
)
def test_codes(values: Any, codes: list[int], categories: list[str]) -> None:
    got, names = codes_and_names(values)
    assert got.dtype == np.int64
    assert (got.tolist(), names) == (codes, categories)


@pytest.mark.parametrize("step", [2, 100])
def test_repeated_barcode_is_found_across_blocks(step: int) -> None:
    names = [f"cell-é{i}" for i in range(9)]
    assert barcode_repeated(BarcodeObservations(names), 9, step) is None
    names[8] = names[1]
    assert barcode_repeated(BarcodeObservations(names), 9, step) == "cell-é1"


@pytest.mark.parametrize("ordered", [True, False])
def test_the_order_of_categories_stays(tmp_path: Path, ordered: bool) -> None:
    import anndata

    stage = pd.Categorical(["late", "early", None], ["early", "late"], ordered=ordered)
    obs = pd.DataFrame({"stage": stage}, index=list("abc"))
    anndata.AnnData(np.ones((3, 2), np.float32), obs).write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad") as file:
        found = StoredFrame(file["obs"]).values("stage")
    assert found.ordered == ordered and list(found) == list(stage)


def test_categories_as_anndata_0_7_wrote_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        obs = file.create_group("obs")
        obs.attrs["_index"], obs.attrs["column-order"] = "index", ["cell_type"]
        obs["index"] = np.array([b"a", b"b", b"c"])
        obs["__categories/cell_type"] = np.array([b"B", b"T"])
        obs["cell_type"] = np.array([1, -1, 0], np.int8)
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref
        codes, names = codes_and_names(StoredFrame(obs).values("cell_type"))
    assert (codes.tolist(), names) == ([1, -1, 0], ["B", "T"])
