"""Whatever is harmed in models, references and results: noticed or harmless, never silently wrong.

Many cases in one process, each counted; all with `pytest -m "slow or not slow" tests/faults`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest


@pytest.fixture(scope="module")
def made(given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, records, a model with a reference, and what it says of them."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("cells.h5ad", "records", "embedded.h5ad", "mapped.h5ad", "model"):
        path = given / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / name)
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


@pytest.mark.parametrize("n", [5, pytest.param(70, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", list(PARTS))
def test_flipped_bits(part: str, n: int, made: Path, call, judge, flip, tmp_path: Path) -> None:
    name, read = PARTS[part]
    expected, rng = read(made / name), np.random.default_rng(n)
    work = Path(shutil.copytree(made, tmp_path / "work"))
    (work / name).unlink()
    line: list[Any] = ["embed", work / "model", work / "records"]
    if part == "model/reference":
        line = ["map", work / "model", "--query", work / "cells.h5ad", "--label-key", "kind"]
    place = work / part
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    files = [path for path in files if path.is_file() and path.stat().st_size]

    def right() -> bool:
        return bool(np.all(np.asarray(read(work / name)) == np.asarray(expected)))

    for _ in range(n):
        path = files[rng.integers(len(files))]
        content = flip(path, rng)
        judge(*call([*line, "-o", work / name, "--quiet"]), right)
        path.write_bytes(content)
        (work / name).unlink(missing_ok=True)


STATE = ("run.json", "metrics.json", "result.h5ad", "model/training.json", "model/model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("n", [40])
def test_flipped_bits_of_a_run(
    n: int, given, content_of, call, judge, flip, tmp_path: Path
) -> None:
    """Run again, it leaves what it had left; clustered anew, it says so or is as it was."""
    whole, rng = content_of(given / "run"), np.random.default_rng(n)
    for number in range(n):
        out = Path(shutil.copytree(given / "run", tmp_path / "run"))
        harmed = STATE[number % len(STATE)]
        flip(out / harmed, rng)
        line = ["run", given / "cells.h5ad", "-o", out, "--epochs", 1, "--label-key", "kind"]
        code, said = call(line)

        # The model is looked at by who uses it; the results are whole without.
        kept = {f"run/{harmed}"} & {"run/model/training.json", "run/model/model.keras"}

        def right(out: Path = out, kept: set[str] = kept) -> bool:
            found = content_of(out)
            return all(found.get(name) == of for name, of in whole.items() if name not in kept)

        assert code == 2 or right(), (harmed, said)
        # That it was made again is told.
        judge(2 if "made again" in said or "kept as" in said else code, said, right)
        shutil.rmtree(out)


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


def test_malformed_inputs(cells, call, judge, tmp_path: Path) -> None:
    """Each is an error with exit code 2, and nothing is left."""
    cells.write_h5ad(tmp_path / "whole.h5ad")
    for name, change in edits(cells).items():
        path = tmp_path / "cells.h5ad"
        shutil.copy(tmp_path / "whole.h5ad", path)
        with h5py.File(path, "r+") as file:
            change(file)
        code, said = call(["convert", path, "-o", tmp_path / "out", "--quiet"])
        judge(code, said)
        assert said.count("\n") == 1 and not (tmp_path / "out").exists(), (name, said)


@pytest.mark.parametrize("share", [0.3, pytest.param(0.7, marks=pytest.mark.slow)])
def test_a_file_that_ends_early(share: float, made: Path, call, judge, tmp_path: Path) -> None:
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
        judge(code, said)
        assert not list(work.glob("out*")), name
        shutil.rmtree(work)
