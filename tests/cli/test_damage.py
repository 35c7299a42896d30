"""Records and models that are damaged, too new, or do not fit together; full disks."""

from __future__ import annotations

import json
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import pytest


def shard_of(records: Path) -> Path:
    return next(records.glob("shard-*"))


def flip(records: Path) -> None:
    path = shard_of(records)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(records: Path) -> None:
    path = shard_of(records)
    path.write_bytes(path.read_bytes()[:-20])


def change(records: Path, **entries: object) -> None:
    path = records / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def change_vocabulary(records: Path) -> None:
    path = records / "vocabulary.tsv"
    path.write_text(path.read_text().replace("AB0C", "AB00C"))


DAMAGE = [
    ("flipped", flip, ["shard-00000-of-00001.tfrecord", "damaged", "convert again"]),
    ("truncated", truncate, ["shard-00000-of-00001.tfrecord", "bytes instead", "convert again"]),
    ("missing", lambda path: shard_of(path).unlink(), ["shard-00000", "missing", "convert again"]),
    ("newer", lambda path: change(path, schema_version=99), ["schema 99", "update concerto_tf"]),
    ("changed", lambda path: change(path, n_cells=59), ["manifest.json", "changed", "again"]),
    ("no JSON", lambda path: (path / "manifest.json").write_text("{"), ["manifest.json", "again"]),
    ("genes", change_vocabulary, ["vocabulary.tsv", "changed", "again"]),
    ("no manifest", lambda path: (path / "manifest.json").unlink(), ["no manifest.json"]),
    ("nowhere", shutil.rmtree, ["there is no such folder"]),
]


@pytest.mark.parametrize(
    ("damage", "words"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE]
)
def test_damaged_records(
    damage: Callable[[Path], None], words: list[str], concerto, records, model, tmp_path: Path
) -> None:
    shutil.copytree(records, bad := tmp_path / "records")
    damage(bad)
    words = ["records", *words]
    concerto("train", bad, "-o", tmp_path / "out", "--quiet").mendable(*words)
    assert not (tmp_path / "out").exists()
    if (bad / "manifest.json").exists():  # else `embed` takes the folder for cells
        concerto("embed", model, bad, "-o", tmp_path / "out.h5ad", "--quiet").mendable(*words)
    assert not (tmp_path / "out.h5ad").exists()


def test_verify_names_what_inspect_alone_cannot_see(concerto, records, tmp_path: Path) -> None:
    assert concerto("inspect", records, "--verify", "--json").last["problems"] == []
    shutil.copytree(records, bad := tmp_path / "records")
    flip(bad)
    assert concerto("inspect", bad).code == 0
    concerto("inspect", bad, "--verify", "--quiet").mendable(str(bad), "shard-00000", "checksum")
    answer = concerto("inspect", bad, "--verify", "--json")
    assert answer.code == 2 and "shard-00000" in answer.last["problems"][0]


def test_restored_shard_is_trained_on(concerto, records, tmp_path: Path) -> None:
    """A training that a damaged shard ended leaves nothing in the way of the next."""
    shutil.copytree(records, bad := tmp_path / "records")
    flip(bad)
    command = ["train", bad, "-o", tmp_path / "out", "--quiet", "--epochs"]
    concerto(*command, 1).mendable("damaged")
    shutil.copy(shard_of(records), shard_of(bad))
    assert concerto(*command, 2).code == 0
    assert (tmp_path / "out" / "model.keras").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def edit_model(edit: Callable[[dict], None]) -> Callable[[Path], None]:
    """Rewrites the configuration in a `.keras` file."""

    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(parts["config.json"])
        edit(config)
        parts["config.json"] = json.dumps(config).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)

    return rewrite


def somebody_else_s(path: Path) -> None:
    from concerto_tf._keras import keras

    keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)]).save(path)


def other_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content[:400] if name.endswith(".h5") else content)


MODELS = [
    ("truncated", cut, ["not a saved model, or cut short"]),
    ("text", lambda path: path.write_text("model"), ["not a saved model"]),
    ("not ours", somebody_else_s, ["none of concerto_tf"]),
    (
        "newer",
        edit_model(lambda config: config["config"].update(saved_format=99)),
        ["newer than this", "pip install -U"],
    ),
    ("weights", other_weights, ["does not load", "damaged"]),
    ("missing", Path.unlink, ["no model.keras", "`train`"]),
]


@pytest.mark.parametrize(
    ("damage", "words"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS]
)
def test_damaged_models(
    damage: Callable[[Path], None],
    words: list[str],
    concerto,
    records,
    model,
    cells_file,
    tmp_path: Path,
) -> None:
    shutil.copytree(model, bad := tmp_path / "model")
    damage(bad / "model.keras")
    out = tmp_path / "out"
    for command in (
        ["embed", bad, cells_file, "-o", tmp_path / "out.h5ad"],
        ["export", bad, "-o", out],
        ["train", records, "--from", bad, "-o", out],
    ):
        concerto(*command, "--quiet").mendable(str(bad), *words)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if (bad / "model.keras").exists():
        concerto("convert", cells_file, "--like", bad, "-o", out, "--quiet").mendable(*words)
        assert not out.exists()


def test_model_and_records_that_do_not_fit(make_cells, concerto, model, tmp_path: Path) -> None:
    out = tmp_path / "out.h5ad"
    fewer = make_cells()[:, :30].copy()
    fewer.write_h5ad(tmp_path / "fewer.h5ad")
    concerto("convert", tmp_path / "fewer.h5ad", "-o", tmp_path / "fewer")
    for command in (
        ["embed", model, tmp_path / "fewer", "-o", out],
        ["train", tmp_path / "fewer", "--from", model, "-o", tmp_path / "out"],
    ):
        concerto(*command, "--quiet").mendable(str(tmp_path / "fewer"), "genes", "--like")
    normal = make_cells()
    values = normal.X.toarray()
    normal.X = np.log1p(values / values.sum(1, keepdims=True) * 1e4)
    normal.write_h5ad(tmp_path / "normal.h5ad")
    concerto("convert", tmp_path / "normal.h5ad", "-o", tmp_path / "normal", "--like", model)
    for command in (
        ["embed", model, tmp_path / "normal", "-o", out],
        ["embed", model, tmp_path / "normal.h5ad", "-o", out],
        ["train", tmp_path / "normal", "--from", model, "-o", tmp_path / "out"],
    ):
        concerto(*command, "--quiet").mendable("log-normalized values", "raw counts", "--layer")
    assert not out.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["embed", "cluster"])
def test_full_disk_under_hdf5(command: str, started, cells_file, finished, tmp_path: Path) -> None:
    """In a process of its own: HDF5 is not fit for use after a file that it could not close."""
    run, out = finished[0], tmp_path / "out.h5ad"
    inputs = [run / "model", cells_file] if command == "embed" else [run / "result.h5ad"]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    process = started(
        command,
        *inputs,
        "-o",
        out,
        "--quiet",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)),
    )
    written, err = process.communicate()
    assert (process.returncode, written) == (2, ""), err
    assert err.count("\n") == 1 and err.startswith(f"concerto: {tmp_path}")
    assert "File too large; make room" in err
    assert not any(tmp_path.iterdir())


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file can grow past a size, which programs see as they see a full disk: writes fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("command", "n_bytes"),
    [
        ("run", 4_000),  # in the conversion
        ("run", 40_000),  # in the training
        ("convert", 0),
        ("convert", 4_000),
        ("train", 0),
        ("export", 20_000),
    ],
)
def test_full_disk(
    command: str, n_bytes: int, concerto, cells_file, finished, leftover, tmp_path: Path
) -> None:
    given = {"train": finished[0] / "records", "export": finished[0] / "model"}
    (tmp_path / "place").mkdir()
    with full_disk(n_bytes):
        answer = concerto(
            command, given.get(command, cells_file), "-o", tmp_path / "place" / "out", "--quiet"
        )
    answer.mendable(str(tmp_path / "place"), "File too large", "name a")
    found = leftover(tmp_path / "place")
    # What was finished before the disk was full may stay.
    assert found in ([], ["manifest.json"]) if command == "run" else found == []


def test_skip_damaged_says_what_is_lost(
    concerto, records, model, cells_file, tmp_path: Path
) -> None:
    shutil.copytree(records, bad := tmp_path / "records")
    flip(bad)
    option = ["--skip-damaged", "--json"]
    answer = concerto("train", bad, "-o", tmp_path / "model", "--epochs", 1, *option)
    assert answer.code == 0 and answer.last["cells_lost"] == 1
    assert "1 of its 60 cells are lost" in answer.err and "with 59 of 60 cells" in answer.err
    for command, name in (("embed", "e.h5ad"), ("explain", "e.tsv")):
        answer = concerto(command, model, bad, "-o", tmp_path / name, *option)
        assert answer.code == 0 and answer.last["cells_lost"] == 1, answer
    whole = tmp_path / "whole.h5ad"
    concerto("embed", model, records, "-o", whole, "--quiet")
    left, all_of_them = anndata.read_h5ad(tmp_path / "e.h5ad"), anndata.read_h5ad(whole)
    assert left.n_obs == 59
    # The cells that are left are as they would have been; in float32 their company may show.
    there = all_of_them[left.obs_names].obsm["X_concerto"]
    np.testing.assert_allclose(left.obsm["X_concerto"], there, atol=1e-5)
    # What is whole is read as ever.
    answer = concerto("embed", model, records, "-o", tmp_path / "e.h5ad", *option)
    assert answer.code == 0 and (answer.last["cells"], answer.last["cells_lost"]) == (60, 0)


def test_run_goes_on_without_damaged_cells(concerto, cells_file, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["run", cells_file, "-o", out, "--epochs", 1, "--label-key", "cell_type"]
    with full_disk(40_000):  # ends in the training
        concerto(*command, "--quiet")
    shutil.rmtree(out / "model")  # it had begun with the cells that are damaged now
    flip(out / "records")
    answer = concerto(*command, "--skip-damaged", "--json")
    assert answer.code == 0 and (answer.last["cells"], answer.last["cells_lost"]) == (59, 1)
    assert anndata.read_h5ad(out / "result.h5ad").n_obs == 59
