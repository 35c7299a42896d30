"""What tells cells, files and arguments apart: their content, or what stands for it."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from concerto_tf._identity import identity_of_cells, identity_of_file, json_checksum
from concerto_tf.errors import InputError


def test_a_checksum_is_of_the_content() -> None:
    assert json_checksum({"a": 1, "b": [2]}) == json_checksum({"b": [2], "a": 1})
    assert json_checksum({"a": 1}) != json_checksum({"a": 2})


def test_files_are_told_by_name_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "cells.h5ad"
    file.write_text("cells")
    before = identity_of_cells(file)
    assert identity_of_cells(str(file)) == before
    os.utime(file, (1, 1))
    assert identity_of_cells(file) != before
    os.utime(file, (2, 2))
    of_folder = identity_of_cells(tmp_path, without=tmp_path / "results" / "run")
    (tmp_path / "results" / "run").mkdir(parents=True)
    (tmp_path / "results" / "run" / "run.json").touch()
    assert identity_of_cells(tmp_path, without=tmp_path / "results" / "run") == of_folder
    assert identity_of_cells(tmp_path) != of_folder
    with pytest.raises(InputError, match="none: there is no such file or folder"):
        identity_of_cells(tmp_path / "none")
    (tmp_path / "genes.txt").write_text("CD3E")
    first = identity_of_file(tmp_path / "genes.txt")
    os.utime(tmp_path / "genes.txt", (1, 1))
    assert identity_of_file(tmp_path / "genes.txt") == first
    (tmp_path / "genes.txt").write_text("CD4")
    assert identity_of_file(tmp_path / "genes.txt") != first


def test_cells_in_memory_are_told_by_their_content(tmp_path: Path) -> None:
    cells = anndata.AnnData(
        np.eye(3, dtype="float32"), obs=pd.DataFrame({"type": list("abc")}, index=list("xyz"))
    )
    before = identity_of_cells(cells)
    assert identity_of_cells(cells.copy()) == before
    for change in (
        lambda c: c.obs.__setitem__("type", list("abd")),
        lambda c: c.layers.__setitem__("twice", 2 * c.X),
        lambda c: setattr(c, "X", 2 * c.X),
    ):
        other = cells.copy()
        change(other)
        assert identity_of_cells(other) != before
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert identity_of_cells(backed) == identity_of_cells(backed)
    backed.file.close()
