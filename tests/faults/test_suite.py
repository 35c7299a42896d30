"""Whatever is harmed in models, references and results: noticed or harmless, never silently wrong.

Many cases in one process, each counted; `pytest -m slow tests/faults` runs all of them.
"""

from __future__ import annotations

import io
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest

from concerto_tf.cli import main

SECONDS = 120


@contextmanager
def in_time() -> Iterator[None]:
    """Raises TimeoutError in what does not end."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def call(line: list[Any]) -> tuple[int | None, str]:
    """Exit code of a command in this process and what it said; None where it did not end."""
    said = io.StringIO()
    try:
        with in_time(), redirect_stderr(said), redirect_stdout(said):
            return main([str(part) for part in line]), said.getvalue()
    except TimeoutError:
        return None, said.getvalue()


def outcome(code: int | None, said: str, right: Callable[[], bool]) -> str:
    """What came of a case.

    Args:
        code, said: Of the command.
        right: Whether what it left is as it would be without any harm.
    """
    if code is None:
        return "hangs"
    if code == 1 or "Traceback" in said:
        return "tracebacks"
    if code == 2:
        return "noticed"
    return "harmless" if right() else "silent"


@pytest.fixture(scope="module")
def made(cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, records, a model with a reference, and what it says of them."""
    folder = tmp_path_factory.mktemp("made")
    cells.write_h5ad(folder / "cells.h5ad")
    convert = ["convert", folder / "cells.h5ad", "-o", folder / "records", "--label-key", "kind"]
    lines = [
        [*convert, "--shards", 3],
        ["train", folder / "records", "-o", folder / "model", "--epochs", 1],
        [
            *["map", folder / "model", "--reference", folder / "cells.h5ad", "--query"],
            *[folder / "cells.h5ad", "--label-key", "kind", "-o", folder / "mapped.h5ad"],
        ],
        ["embed", folder / "model", folder / "records", "-o", folder / "embedded.h5ad"],
    ]
    for line in lines:
        code, said = call([*line, "--quiet"])
        assert code == 0, said
    return folder


def embedding(path: Path) -> np.ndarray:
    return anndata.read_h5ad(path).obsm["X_concerto"]


def labels(path: Path) -> list:
    return anndata.read_h5ad(path).obs["concerto_label"].astype(str).tolist()


PARTS = {
    "records": ("embedded.h5ad", embedding),
    "model/model.keras": ("embedded.h5ad", embedding),
    "model/reference": ("mapped.h5ad", labels),
}


@pytest.mark.parametrize("n", [6, pytest.param(70, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", list(PARTS))
def test_flipped_bits(part: str, n: int, made: Path, count: Any, tmp_path: Path) -> None:
    name, read = PARTS[part]
    expected, rng = read(made / name), np.random.default_rng(n)
    for number in range(n):
        work = Path(shutil.copytree(made, tmp_path / f"work{number}"))
        place = work / part
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        files = [path for path in files if path.is_file() and path.stat().st_size]
        path = files[rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        (work / name).unlink()
        line: list[Any] = ["embed", work / "model", work / "records"]
        if part == "model/reference":
            line = ["map", work / "model", "--query", work / "cells.h5ad", "--label-key", "kind"]
        code, said = call([*line, "-o", work / name, "--quiet"])

        def right(work: Path = work) -> bool:
            return bool(np.all(np.asarray(read(work / name)) == np.asarray(expected)))

        found = outcome(code, said, right)
        count(found)
        assert found in ("noticed", "harmless"), (path.name, code, said)
        shutil.rmtree(work)


def edits(cells: Any) -> dict[str, Callable[[h5py.File], Any]]:
    """What is wrong with an `.h5ad`, by name."""

    def put(place: str, value: Any) -> Callable[[h5py.File], None]:
        def change(file: h5py.File) -> None:
            kept = dict(file[place].attrs)
            del file[place]
            file[place] = value
            file[place].attrs.update(kept)

        return change

    nnz, n_genes = cells.X.nnz, cells.n_vars
    data, indices = cells.X.data, cells.X.indices
    wrong = indices.copy()
    wrong[nnz // 2] = n_genes
    found: dict[str, Callable[[h5py.File], Any]] = {
        "no X": lambda file: file.pop("X"),
        "no var": lambda file: file.pop("var"),
        "no obs": lambda file: file.pop("obs"),
        "no indptr": lambda file: file["X"].pop("indptr"),
        "short data": put("X/data", data[:-1]),
        "short indptr": put("X/indptr", cells.X.indptr[:-1]),
        "falling indptr": put("X/indptr", cells.X.indptr[::-1].copy()),
        "a gene beyond": put("X/indices", wrong),
        "text": put("X/data", np.array([b"a"] * nnz)),
        "complex": put("X/data", data.astype("c8")),
        "no index": lambda file: file["obs"].move(file["obs"].attrs.pop("_index"), "names"),
        "a shape of text": lambda file: file["X"].attrs.__setitem__("shape", "large"),
        "a shape beyond": lambda file: file["X"].attrs.__setitem__("shape", [2**40, 2**40]),
        "an unknown encoding": lambda file: file["X"].attrs.__setitem__("encoding-type", "x"),
    }
    for name, value in {
        "negative": -1.0,
        "NaN": np.nan,
        "infinite": np.inf,
        "a fraction": 0.5,
        "beyond float": 1e300,
    }.items():
        for where, place in {"first": 0, "middle": nnz // 2, "last": nnz - 1}.items():
            odd = data.astype("f8")
            odd[place] = value
            found[f"{name}, {where}"] = put("X/data", odd)
    return found


def test_malformed_inputs(cells, count: Any, tmp_path: Path) -> None:
    """Each is an error with exit code 2, and nothing is left."""
    cells.write_h5ad(tmp_path / "whole.h5ad")
    for name, change in edits(cells).items():
        path = tmp_path / "cells.h5ad"
        shutil.copy(tmp_path / "whole.h5ad", path)
        with h5py.File(path, "r+") as file:
            change(file)
        code, said = call(["convert", path, "-o", tmp_path / "out", "--quiet"])
        found = outcome(code, said, lambda: False)
        count(found)
        assert found == "noticed", (name, code, said)
        assert said.count("\n") == 1 and not (tmp_path / "out").exists(), (name, said)


@pytest.mark.parametrize("share", [0.3, pytest.param(0.7, marks=pytest.mark.slow)])
def test_a_file_that_ends_early(share: float, made: Path, count: Any, tmp_path: Path) -> None:
    """Of every file that commands read."""
    commands: dict[str, list[Any]] = {
        "cells.h5ad": ["embed", "model", "cells.h5ad", "-o", "out.h5ad"],
        "embedded.h5ad": ["cluster", "embedded.h5ad", "-o", "out.h5ad"],
        "mapped.h5ad": ["evaluate", "mapped.h5ad", "--label-key", "kind"],
        "records/manifest.json": ["train", "records", "-o", "out"],
        "records/vocabulary.tsv": ["inspect", "records", "--verify"],
        "model/model.keras": ["export", "model", "-o", "out"],
        "model/reference/reference.json": [
            *["map", "model", "--query", "cells.h5ad", "--label-key", "kind", "-o", "out.h5ad"],
        ],
    }
    for name, line in commands.items():
        work = Path(shutil.copytree(made, tmp_path / "work"))
        content = (work / name).read_bytes()
        (work / name).write_bytes(content[: int(share * len(content))])
        names = {"model", "records", "out", "out.h5ad"} | {Path(key).name for key in commands}
        code, said = call([work / part if part in names else part for part in line])
        found = outcome(code, said, lambda: False)
        count(found)
        assert found == "noticed", (name, code, said)
        assert not list(work.glob("out*")), name
        shutil.rmtree(work)
