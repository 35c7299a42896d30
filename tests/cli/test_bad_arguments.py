"""Arguments and outputs that the user has to mend."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["COMMAND", "--help"]),
        (["fly"], ["fly", "run", "demo"]),
        (["run"], ["input", "-o"]),
        (["run", "a.h5ad"], ["-o"]),
        (["run", "a.h5ad", "-o", "x", "-o", "y"], ["-o", "given twice"]),
        (["run", "a.h5ad", "-o", "x", "--label-key", "a", "--label-key", "b"], ["given twice"]),
        (["run", "a.h5ad", "-o", "x", "--epochs", "many"], ["--epochs", "auto nor a number"]),
        (["run", "a.h5ad", "-o", "x", "--batch-size", "1.5"], ["--batch-size", "1.5"]),
        (["run", "a.h5ad", "-o", "x", "--resolution", "high"], ["--resolution", "high"]),
        (["run", "a.h5ad", "-o", "x", "--seed", "-1"], ["--seed", "0 to"]),
        (["run", "a.h5ad", "-o", "x", "--label", "b"], ["--label"]),  # no abbreviations
        (["convert", "a.h5ad", "-o", "x", "--modality", "protein"], ["NAME=PLACE", "protein"]),
        (["convert", "a.h5ad", "-o", "x", "--compression", "zip"], ["zip", "gzip"]),
        (["cluster", "a.h5ad", "-o", "x.h5ad", "--algorithm", "louvain"], ["louvain", "kmeans"]),
        (["cluster", "a.h5ad", "-o", "x.h5ad", "--n-clusters", "few"], ["--n-clusters", "few"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_arguments_that_cannot_be_read(arguments: list[str], words: list[str], concerto) -> None:
    concerto(*arguments).mendable("--help", *words)


TRAINING = [
    (["--method", "magic"], ["'magic'", "concerto"]),
    (["--preset", "pap"], ["'pap'", "paper"]),
    (["--optimizer", "best"], ["'best'", "adam"]),
    (["--strategy", "all"], ["'all'", "mirrored"]),
    (["--epochs", "0"], ["epochs is 0", "positive"]),
    (["--epochs", "-3"], ["epochs is -3", "positive"]),
    (["--batch-size", "1"], ["batch size is 1", "at least 2"]),
    (["--batch-size", "0"], ["batch size is 0", "positive"]),
    (["--learning-rate", "nan"], ["learning rate is nan", "positive"]),
    (["--learning-rate", "inf"], ["learning rate is inf", "positive"]),
]
TRAINING_CASES = pytest.mark.parametrize(
    ("options", "words"), TRAINING, ids=[" ".join(options) for options, _ in TRAINING]
)


@TRAINING_CASES
def test_training_options(
    options: list[str], words: list[str], concerto, cells_file: Path, records: Path, tmp_path: Path
) -> None:
    concerto("run", cells_file, "-o", tmp_path / "out", *options, "--quiet").mendable(*words)
    concerto("train", records, "-o", tmp_path / "out", *options, "--quiet").mendable(*words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lazyadam", "LazyAdam"])
def test_optimizer_of_tensorflow_addons(name: str, concerto, records: Path, tmp_path: Path) -> None:
    from concerto_tf.models.fitting.optimizers import _tensorflow_addons

    if _tensorflow_addons() is not None:
        pytest.skip("tensorflow-addons is there")
    answer = concerto("train", records, "-o", tmp_path / "out", "--optimizer", name, "--quiet")
    answer.mendable(name, "tensorflow-addons", "pip install 'concerto_tf[addons]'", "adamw")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resolution", ["0", "-1", "nan", "inf"])
def test_resolution(resolution: str, concerto, cells_file: Path, finished, tmp_path: Path) -> None:
    options = ["--resolution", resolution, "--quiet"]
    answer = concerto("run", cells_file, "-o", tmp_path / "out", *options)
    answer.mendable(f"resolution is {float(resolution)}", "positive")
    result = finished[0] / "result.h5ad"
    concerto("cluster", result, "-o", tmp_path / "out.h5ad", *options).mendable("positive")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--algorithm", "kmeans"], ["number of clusters", "--n-clusters N"]),
        (["--algorithm", "kmeans", "--n-clusters", "0"], ["clusters is 0", "60 cells"]),
        (["--algorithm", "kmeans", "--n-clusters", "61"], ["clusters is 61", "--n-clusters N"]),
        (["--n-clusters", "3"], ["leiden", "--algorithm leiden|kmeans"]),
        (["--runs", "3"], ["consensus", "--algorithm consensus"]),
        (["--rep", "X_other"], ["X_other", "X_concerto, X_spatial, X_umap", "--rep"]),
    ],
    ids=" ".join,
)
def test_cluster_options(
    options: list[str], words: list[str], concerto, finished, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5ad"
    result = finished[0] / "result.h5ad"
    concerto("cluster", result, "-o", out, *options, "--quiet").mendable(*words)
    assert not out.exists()


def test_nowhere_to_write_clusters(concerto, finished, tmp_path: Path) -> None:
    """Only a run has a place of its own for them."""
    result = finished[0] / "result.h5ad"
    concerto("cluster", result, "--quiet").mendable("result.h5ad", "-o OUT.h5ad")
    concerto("cluster", tmp_path, "--quiet").mendable(str(tmp_path), "holds no run", "`run`")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shards", "0"], ["shards is 0", "at least 1"]),
        (["--shards", "61"], ["61 shards for 60 cells"]),
        (["--workers", "0"], ["workers is 0", "at least 1"]),
        (["--modality", "rna=obsm:X"], ["rna"]),
        (["--modality", "protein=obsm:adt"], ["adt", "X_spatial"]),
        (["--modality", "protein=adt"], ["adt", "obsm:KEY"]),
        (["--like", "nowhere"], ["nowhere", "no such"]),
        (["--orthologs", "nowhere.tsv"], ["nowhere.tsv"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else None,
)
def test_convert_options(
    options: list[str], words: list[str], concerto, cells_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    concerto("convert", cells_file, "-o", out, *options, "--quiet").mendable(*words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("genes", "words"),
    [
        ("hvg", ["hvg:2000"]),
        ("hvg:0", ["at least one gene"]),
        ("nowhere.txt", ["nowhere.txt", "No such file", "one gene per line"]),
    ],
)
def test_genes_option(
    genes: str, words: list[str], concerto, records: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    concerto("train", records, "-o", out, "--genes", genes, "--quiet").mendable(*words)
    assert not out.exists()


# What each command needs, without -o; and whether the output is a file.
COMMANDS = pytest.mark.parametrize(
    ("command", "names", "file"),
    [
        ("run", ["cells"], False),
        ("convert", ["cells"], False),
        ("train", ["records"], False),
        ("export", ["model"], False),
        ("embed", ["model", "cells"], True),
        ("cluster", ["result"], True),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)


@pytest.fixture
def given(cells_file: Path, finished) -> dict[str, Path]:
    run = finished[0]
    return {
        "cells": cells_file,
        "records": run / "records",
        "model": run / "model",
        "result": run / "result.h5ad",
    }


@COMMANDS
def test_output_that_is_taken(
    command: str, names: list[str], file: bool, concerto, given, tmp_path: Path
) -> None:
    """A folder with something of the user's in it, or a file where a folder is to be."""
    inputs = [given[name] for name in names]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    answer = concerto(command, *inputs, "-o", full, "--quiet")
    answer.mendable(str(full), "name a")
    if not file:
        answer = concerto(command, *inputs, "-o", full / "thesis.txt", "--quiet")
        answer.mendable("thesis.txt", "name a")
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    assert (full / "thesis.txt").read_text() == "years of work"


@COMMANDS
@pytest.mark.parametrize("where", ["below a file", "/proc"])
def test_output_that_cannot_be_written(
    where: str, command: str, names: list[str], file: bool, concerto, given, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    out = (tmp_path / "file" if where == "below a file" else Path("/proc")) / "out"
    if where == "/proc" and not out.parent.is_dir():
        pytest.skip("no /proc here")
    inputs = [given[name] for name in names]
    answer = concerto(command, *inputs, "-o", out, "--quiet")
    answer.mendable(str(out.parent))
    assert not out.exists()


def test_folder_of_another_run(concerto, cells_file: Path, finished, tmp_path: Path) -> None:
    """Nothing of a finished run is replaced by one with other options."""
    shutil.copytree(finished[0], out := tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    answer = concerto("run", cells_file, "-o", out, "--epochs", 1, "--seed", 1, "--quiet")
    answer.mendable(str(out), "label_key", "seed", "another folder")
    answer = concerto("train", out / "records", "-o", out / "model", "--epochs", 2, "--quiet")
    answer.mendable(str(out / "model"), "differing in epochs", "another folder")
    answer = concerto("convert", cells_file, "-o", out / "records", "--seed", 1, "--quiet")
    answer.mendable(str(out / "records"), "another folder", "--overwrite")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_records_are_replaced_when_asked(
    concerto, cells_file: Path, records: Path, tmp_path: Path
) -> None:
    shutil.copytree(records, out := tmp_path / "records")
    answer = concerto("convert", cells_file, "-o", out, "--shards", 2, "--overwrite", "--json")
    assert answer.code == 0 and answer.last["shards"] == 2
