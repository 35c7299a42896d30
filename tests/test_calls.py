"""No output takes the place of an input, or of a file that a model or records are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import concerto_tf
from concerto_tf._calls import checked
from concerto_tf.cli import main
from concerto_tf.errors import InputError


@checked
def call(cells: Any, out: Any = None, *, genes: Any = None, figure: Any = None) -> str:
    """Stands for any task."""
    return "done"


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    path = tmp_path / "cells.h5ad"
    adata = anndata.AnnData(np.eye(4, dtype="float32") + 1)
    adata.obsm["X_concerto"] = np.eye(4, dtype="float32")
    adata.write_h5ad(path)
    return path


def test_inputs_are_known_by_any_name(cells: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.h5ad").symlink_to(cells)
    (tmp_path / "hard.h5ad").hardlink_to(cells)
    (tmp_path / "folder").mkdir()
    names = [cells, str(cells), "cells.h5ad", "./folder/../cells.h5ad", "link.h5ad", "hard.h5ad"]
    backed = anndata.read_h5ad(cells, backed="r")
    for out in names:
        for given in ({"cells": cells}, {"cells": [cells, "b"]}, {"cells": "a", "genes": cells}):
            with pytest.raises(InputError, match="is read by this very call and would be lost"):
                call(**given, out=out)
        with pytest.raises(InputError, match="is read by"):
            call(backed, out)
        with pytest.raises(InputError, match="is read by"):
            call(cells, figure=out)
    backed.file.close()
    with pytest.raises(InputError, match="is to be written twice"):
        call(cells, "out.h5ad", figure=tmp_path / "out.h5ad")
    for out in (None, "out.h5ad", tmp_path / "folder", "gs://bucket/out.h5ad"):
        assert call(cells, out) == "done"
    for odd in ("", "a\0b", "x" * 999, 3, None, {"a": cells}):
        assert call(odd, "out.h5ad") == "done"
    with pytest.raises(InputError, match="is read by"):
        call("gs://bucket/cells.h5ad", "gs://bucket/cells.h5ad")


def test_nothing_is_written_into_a_store_that_is_read(tmp_path: Path) -> None:
    store = tmp_path / "cells.zarr"
    (store / "X").mkdir(parents=True)
    (store / "zarr.json").touch()
    for out in (store / "out.h5ad", store / "records", store / "X" / "0"):
        with pytest.raises(InputError, match="lies in .*cells.zarr, which is read"):
            call(store, out)
    assert call(tmp_path, tmp_path / "out") == "done"


OWN = {
    "manifest.json": ["manifest.json", "vocabulary.tsv", "shard-00000-of-00001.tfrecord"],
    "model.keras": ["model.keras", "training.json", "training.csv", "MODEL_CARD.md"],
    "reference.json": ["reference.json", "embeddings.npy"],
    "saved_model.pb": ["saved_model.pb", "fingerprint.pb", "MODEL_CARD.md"],
    "run.json": ["run.json", "metrics.json"],
}


@pytest.mark.parametrize("mark", list(OWN))
def test_files_of_models_and_records_are_left_alone(mark: str, tmp_path: Path) -> None:
    for name in (mark, *OWN[mark], "mine.tsv"):
        (tmp_path / name).write_text("whole")
    for name in OWN[mark]:
        with pytest.raises(InputError, match="is a file of .*, which would be lost"):
            call("cells", tmp_path / name)
    for name in ("mine.tsv", "new.h5ad"):
        assert call("cells", tmp_path / name) == "done"
    (tmp_path / "any.keras").touch()
    with pytest.raises(InputError, match="is a file of a model"):
        call("cells", tmp_path / "any.keras")


#: Commands that read one file and write another, with what else they need.
COMMANDS: dict[str, Callable[[Path], list[Any]]] = {
    "run": lambda path: [path],
    "convert": lambda path: [path, "--overwrite"],
    "embed": lambda path: ["model.keras", path],
    "map": lambda path: ["model.keras", "--query", path],
    "impute": lambda path: ["model.keras", "--query", path],
    "explain": lambda path: ["model.keras", path],
    "cluster": lambda path: [path],
    "pseudotime": lambda path: [path, "--root", "0"],
    "score": lambda path: [path, "--set", "exhaustion"],
    "compare": lambda path: [path, "--condition", "a", "--control", "b"],
    "train": lambda path: [path],
    "finetune": lambda path: ["model.keras", path, "--label-key", "a"],
    "export": lambda path: [path],
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_refuses(command: str, cells: Path, capsys) -> None:
    before = cells.read_bytes()
    line = [command, *map(str, COMMANDS[command](cells)), "-o", str(cells)]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "is read by this very call and would be lost; name another place (-o" in said
    assert said.count("\n") == 1 and cells.read_bytes() == before


def test_every_public_call_that_writes_is_guarded() -> None:
    import inspect

    for name in concerto_tf.__all__:
        found = getattr(concerto_tf, name)
        if inspect.isfunction(found) and "out" in inspect.signature(found).parameters:
            if name not in ("demo",):  # has no input
                assert hasattr(found, "__wrapped__"), name
