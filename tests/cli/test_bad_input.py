"""Input that the user has to mend: exit code 2, a line that helps, nothing finished-looking."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData

Break = Callable[[AnnData, Path], None]


def edited(edit: Callable[[AnnData], AnnData | None]) -> Break:
    """Writes the cells after a change that leaves a valid `.h5ad`."""

    def write(adata: AnnData, path: Path) -> None:
        changed = edit(adata)
        (adata if changed is None else changed).write_h5ad(path)

    return write


def value(x: float) -> Break:
    def edit(adata: AnnData) -> None:
        adata.X = adata.X.toarray()
        adata.X[7, 3] = x

    return edited(edit)


def half(adata: AnnData, path: Path) -> None:
    adata.write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def table(adata: AnnData, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["table"] = np.zeros(3)


def no_value(adata: AnnData, path: Path) -> None:
    counts = adata.X.toarray()
    counts[4] = 0
    adata.X = counts
    adata.write_h5ad(path)


def renamed(axis: str, name: str) -> Break:
    """Gives the second gene or cell the name of the first, as a file can hold it."""

    def write(adata: AnnData, path: Path) -> None:
        adata.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            names = file[axis]["_index"]
            names[1] = names[0]

    return write


# What is wrong, how it comes about, and what the message must say.
UNSUITABLE: list[tuple[str, Break, list[str]]] = [
    ("missing", lambda adata, path: None, ["cells.h5ad", "no such file", "check the path"]),
    ("truncated", half, ["cells.h5ad", "truncated or damaged", "again"]),
    ("empty file", lambda adata, path: path.touch(), ["cells.h5ad", "file is empty", "again"]),
    ("text", lambda adata, path: path.write_text("gene\n"), ["not a file of a known", ".h5ad"]),
    ("not an AnnData", table, ["cells.h5ad", "neither an AnnData", "table", ".h5ad"]),
    ("no cells", edited(lambda adata: adata[:0].copy()), ["cells.h5ad", "no cells"]),
    ("no genes", edited(lambda adata: adata[:, :0].copy()), ["cells.h5ad", "no genes"]),
    ("empty cell", no_value, ["1 cell has no counts", "--drop-empty"]),
    ("negative", value(-1), ["cells.h5ad", "negative", "AB3C", "layer: scaled"]),
    ("NaN", value(np.nan), ["cells.h5ad", "NaN", "AB3C", "leave the cell out"]),
    ("infinite", value(np.inf), ["cells.h5ad", "infinite", "AB3C", "leave the cell out"]),
    ("genes", renamed("var", "AB0C"), ["cells.h5ad", "AB0C", "var_names_make_unique"]),
    ("barcodes", renamed("obs", "cell"), ["cells.h5ad", "'cell", "obs_names_make_unique"]),
]
CASES = pytest.mark.parametrize(
    ("broken", "words"), [case[1:] for case in UNSUITABLE], ids=[case[0] for case in UNSUITABLE]
)


@CASES
@pytest.mark.parametrize("command", ["run", "convert"])
def test_unsuitable_cells_are_refused(
    command: str, broken: Break, words: list[str], make_cells, concerto, tmp_path: Path
) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out"
    broken(make_cells(), path)
    concerto(command, path, "-o", out, "--quiet").mendable(*words)
    assert not out.exists()


@CASES
def test_unsuitable_cells_are_not_embedded(
    broken: Break, words: list[str], make_cells, concerto, model: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out"
    out.mkdir()
    broken(make_cells(), path)
    concerto("embed", model, path, "-o", out / "out.h5ad", "--quiet").mendable(*words[:1])
    assert not any(out.iterdir())


def test_mended_cells_are_converted_into_the_same_folder(
    make_cells, concerto, tmp_path: Path
) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out"
    value(-1)(make_cells(), path)
    out.mkdir()
    concerto("convert", path, "-o", out, "--quiet").mendable("negative")
    make_cells().write_h5ad(path)
    assert concerto("convert", path, "-o", out).code == 0
    assert (out / "manifest.json").exists()


def test_cells_without_valuesmay_be_left_out(make_cells, concerto, tmp_path: Path) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out"
    no_value(make_cells(), path)
    answer = concerto("convert", path, "-o", out, "--drop-empty", "--json")
    assert answer.code == 0 and answer.last["cells"] == 59
    assert "1 cells without any count were left out" in answer.err


@pytest.mark.parametrize("option", ["--label-key", "--source-key", "--layer"])
@pytest.mark.parametrize("command", ["run", "convert"])
def test_missing_key_names_those_that_are_there(
    command: str, option: str, concerto, cells_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    there = ["scaled"] if option == "--layer" else ["did you mean 'cell_type'", "batch", "age"]
    answer = concerto(command, cells_file, "-o", out, option, "celltype", "--quiet")
    answer.mendable("cells.h5ad", "celltype", *there)
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "convert"])
def test_cells_without_a_source(command: str, make_cells, concerto, tmp_path: Path) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out"
    adata = make_cells()
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(60) > 2)
    adata.write_h5ad(path)
    answer = concerto(command, path, "-o", out, "--source-key", "batch", "--quiet")
    answer.mendable("cells.h5ad", "'batch' is missing for 3 of 60 cells", "fill it in")
    assert not out.exists()


def one_source_cell(adata: AnnData) -> None:
    adata.obs["batch"] = np.where(np.arange(60) == 9, "lonely", "crowd")


# Records may hold them; a model cannot be trained on them.
TOO_LITTLE = [
    (edited(lambda adata: adata[:1].copy()), ["1 cell;", "at least 10"]),
    (edited(lambda adata: adata[:, :1].copy()), ["one gene", "at least 2"]),
    (edited(one_source_cell), ["'lonely' has one cell", "merge"]),
]


@pytest.mark.parametrize(("broken", "words"), TOO_LITTLE, ids=["cell", "gene", "source"])
def test_too_little_to_train_on(
    broken: Break, words: list[str], make_cells, concerto, tmp_path: Path
) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out"
    broken(make_cells(), path)
    key = ("--source-key", "batch", "--quiet")
    concerto("run", path, "-o", out, *key).mendable("cells.h5ad", *words)
    assert not out.exists()
    assert concerto("convert", path, "-o", tmp_path / "records", *key).code == 0
    concerto("train", tmp_path / "records", "-o", out, "--quiet").mendable("records", *words)
    assert not out.exists()


def test_inputs_in_different_units(make_cells, concerto, tmp_path: Path) -> None:
    counts, normal = make_cells(), make_cells(seed=1)
    counts.write_h5ad(tmp_path / "counts.h5ad")
    values = normal.X.toarray()
    normal.X = np.log1p(values / values.sum(1, keepdims=True) * 1e4)
    normal.write_h5ad(tmp_path / "normal.h5ad")
    inputs = [tmp_path / "counts.h5ad", tmp_path / "normal.h5ad"]
    answer = concerto("convert", *inputs, "-o", tmp_path / "out", "--quiet")
    answer.mendable("counts.h5ad counts", "normal.h5ad lognorm", "layer")
    assert not (tmp_path / "out").exists()


def test_other_genes_than_the_model_s(make_cells, concerto, model: Path, tmp_path: Path) -> None:
    adata = make_cells()
    adata.var_names = [f"XY{i}Z" for i in range(40)]
    path, out = tmp_path / "other.h5ad", tmp_path / "out.h5ad"
    adata.write_h5ad(path)
    concerto("embed", model, path, "-o", out, "--quiet").mendable("other.h5ad", "XY0Z", "AB0C")
    concerto("convert", path, "--like", model, "-o", tmp_path / "records", "--quiet").mendable(
        "other.h5ad"
    )
    assert not out.exists() and not (tmp_path / "records").exists()


@pytest.mark.parametrize("command", ["cluster", "evaluate"])
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda adata, path: None, ["cells.h5ad", "no such file"]),
        (half, ["cells.h5ad", "truncated"]),
        (table, ["cells.h5ad", "cannot be read"]),
        (lambda adata, path: adata.write_h5ad(path), ["'X_concerto'", "X_spatial", "--rep"]),
    ],
    ids=["missing", "truncated", "not an AnnData", "no embedding"],
)
def test_nothing_to_cluster_or_score(
    command: str, broken: Break, words: list[str], make_cells, concerto, tmp_path: Path
) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    broken(make_cells(), path)
    rest = ["-o", out] if command == "cluster" else ["--label-key", "cell_type"]
    concerto(command, path, *rest, "--quiet").mendable(*words)
    assert not out.exists()


def test_labels_that_cannot_be_scored(make_cells, concerto, tmp_path: Path) -> None:
    adata = make_cells()
    adata.obsm["X_concerto"] = adata.X.toarray()
    adata.obs["same"] = "T cell"
    adata.write_h5ad(tmp_path / "cells.h5ad")

    def scored(*options: str) -> None:
        return concerto("evaluate", tmp_path / "cells.h5ad", *options, "--quiet")

    scored("--label-key", "same").mendable("only 'T cell'", "at least 2")
    scored("--label-key", "celltype").mendable("'celltype'", "cell_type", "batch")
    scored().mendable("label key", "source key")


def test_process_ends_with_the_code_and_no_traceback(started, tmp_path: Path) -> None:
    anndata.AnnData(np.zeros((3, 2), "float32")).write_h5ad(tmp_path / "zero.h5ad")
    process: subprocess.Popen = started("run", tmp_path / "zero.h5ad", "-o", tmp_path / "out")
    out, err = process.communicate()
    assert process.returncode == 2
    # On a busy machine it says that it is starting.
    lines = [line for line in err.splitlines() if not line.startswith("starting: ")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("concerto: zero.h5ad: ")
    assert not (tmp_path / "out").exists()
