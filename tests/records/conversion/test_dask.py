"""Conversion by the workers of a dask cluster."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from concerto_tf.errors import InputError
from concerto_tf.records import convert
from concerto_tf.records.conversion import workers

distributed = pytest.importorskip("distributed")

OPTIONS = {"shards": 3, "chunk_cells": 40, "source_key": "donor", "label_keys": ["type"]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_bytes_as_on_one_machine(cluster: Any, file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "here", **OPTIONS).path)
    # By address, as the command has it, and from another folder than the workers'.
    there = convert(file, tmp_path / "there", dask=cluster.scheduler_address, **OPTIONS)
    assert content(there.path) == expected
    with distributed.Client(cluster) as client:
        ran = client.run(lambda: "concerto_tf.records.conversion.writer" in sys.modules)
        assert len(ran) == 2 and all(ran.values())
        # The next conversion does not take the last one's cells for its own.
        other = convert(file, tmp_path / "other", dask=client, seed=1, **OPTIONS)
    assert content(other.path) == content(convert(file, tmp_path / "one", seed=1, **OPTIONS).path)


def test_relative_paths_are_those_of_the_caller(
    cluster: Any, file: Path, tmp_path: Path, monkeypatch
) -> None:
    expected = content(convert(file, tmp_path / "here", **OPTIONS).path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(file, "cells.h5ad")
    convert("cells.h5ad", "there", dask=cluster.scheduler_address, **OPTIONS)
    there = content(tmp_path / "elsewhere" / "there")
    assert {name: there[name] for name in there if name != "manifest.json"} == {
        name: expected[name] for name in expected if name != "manifest.json"
    }


@pytest.mark.slow
def test_goes_on_when_a_worker_is_killed(cluster: Any, file: Path, tmp_path: Path) -> None:
    expected = content(convert(file, tmp_path / "here", **OPTIONS).path)
    killed = []

    def kill(done: int, total: int) -> None:
        if not killed:
            killed.append(next(iter(cluster.workers.values())).process.process.pid)
            os.kill(killed[0], 9)

    there = convert(
        file, tmp_path / "there", dask=cluster.scheduler_address, progress=kill, **OPTIONS
    )
    assert killed and content(there.path) == expected


def test_what_is_wrong_with_the_cells_is_said(cluster: Any, make_cells, tmp_path: Path) -> None:
    cells = make_cells(100)
    cells.X[90, cells.X[90].indices[0]] = -1
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match="negative value"):
        convert(
            tmp_path / "cells.h5ad",
            tmp_path / "out",
            chunk_cells=40,
            dask=cluster.scheduler_address,
        )
    assert not (tmp_path / "out").exists()


def test_an_address_that_cannot_be_reached(file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_DASK_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nowhere"):
        with pytest.raises(InputError, match=f"{address}.*check the address"):
            convert(file, tmp_path / "out", dask=address)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="one of workers and dask"):
        convert(file, tmp_path / "out", dask="nowhere", workers=2)


def test_without_dask(file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'concerto_tf\[dask\]'"):
        convert(file, tmp_path / "out", dask="tcp://127.0.0.1:9")
