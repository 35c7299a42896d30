"""What an interrupted conversion leaves is harmed anywhere: it ends with the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf import InputError, convert

OPTIONS = {"source_key": "batch", "label_keys": ["kind"], "shards": 3, "chunk_cells": 20}


class Stopped(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.fixture(scope="module", params=["by cell", "by gene"])
def file(request: pytest.FixtureRequest, cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "cells.h5ad"
    other = cells.copy()
    if request.param == "by gene":  # which the spool has a copy of, cell by cell
        other.X = sp.csc_matrix(other.X)
    other.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def interrupted(file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of conversions that were stopped early, in the middle and late."""

    def stop_at(cells: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done >= cells:
                raise Stopped

        return progress

    folders = []
    for cells in (30, 45, 80):
        folder = tmp_path_factory.mktemp("stopped") / "records"
        with pytest.raises(Stopped):
            convert(file, folder, **OPTIONS, progress=stop_at(cells))
        folders.append(folder)
    return folders


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def harms(path: Path, rng: np.random.Generator) -> list[Callable[[], object]]:
    size = path.stat().st_size

    def flip() -> None:
        held = bytearray(path.read_bytes())
        held[rng.integers(size)] ^= 1 << int(rng.integers(8))
        path.write_bytes(held)

    return [flip, flip, flip, lambda: os.truncate(path, int(rng.integers(size))), path.unlink]


@pytest.mark.parametrize("n", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_spool_is_made_again(
    n: int, file: Path, interrupted: list[Path], tmp_path: Path, caplog, count: Callable
) -> None:
    whole = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    rng, said = np.random.default_rng(n), 0
    for number in range(n):
        out = tmp_path / "out"
        shutil.copytree(interrupted[number % 3], out)
        there = [path for path in sorted(out.rglob("*")) if path.is_file() and path.stat().st_size]
        path = there[rng.integers(len(there))]
        harm = harms(path, rng)
        harm[rng.integers(len(harm))]()
        caplog.clear()
        told = path.relative_to(out)
        if told.name == "plan.json" and not path.exists():  # so that nobody knows what it is
            with pytest.raises(InputError, match="is not empty and holds no records"):
                convert(file, out, **OPTIONS)
            count("noticed")
            shutil.rmtree(out)
            continue
        assert content(convert(file, out, **OPTIONS).path) == whole, told
        count("noticed")
        said += "is damaged" in caplog.text or "begun anew" in caplog.text or not path.exists()
        shutil.rmtree(out)
    assert said > n // 3


def test_a_part_of_another_conversion_is_not_taken(
    cells, file: Path, interrupted: list[Path], tmp_path: Path, caplog
) -> None:
    """As where two processes wrote into one folder and no lock could tell."""
    whole = content(convert(file, tmp_path / "whole", **OPTIONS).path)
    other = cells.copy()
    other.X = other.X * 2
    other.write_h5ad(tmp_path / "other.h5ad")

    def stop(done: int, total: int) -> None:
        if done >= 30:
            raise Stopped

    with pytest.raises(Stopped):
        convert(tmp_path / "other.h5ad", tmp_path / "stranger", **OPTIONS, progress=stop)
    for i, folder in enumerate(interrupted):
        out = Path(shutil.copytree(folder, tmp_path / f"out{i}"))
        shutil.copy(tmp_path / "stranger" / "spool" / "part-00000", out / "spool")
        caplog.clear()
        assert content(convert(file, out, **OPTIONS).path) == whole
        assert "part-00000: is damaged, or of another conversion" in caplog.text
