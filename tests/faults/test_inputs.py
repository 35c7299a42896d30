"""Inputs and options that would be taken for something else, or end in a traceback or a hang."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

import concerto_tf
from concerto_tf import InputError, convert
from concerto_tf._identity import identity_of_cells
from concerto_tf.records import open_input

ROOT = Path(__file__).parents[2]


def values_of(source: Any, **options: Any) -> np.ndarray:
    with open_input(source, **options) as found:
        return found.chunk(0, found.n_cells)["rna"].toarray()


# --- what was silent --------------------------------------------------------------------------


def mtx(folder: Path, counts: np.ndarray, features: list[str], zipped: bool = False) -> Path:
    """A 10x folder of cells x genes."""
    folder.mkdir(exist_ok=True)
    scipy.io.mmwrite(
        folder / "matrix.mtx", sp.coo_matrix(counts.T), field="integer", symmetry="general"
    )
    barcodes = [f"cell{i}" for i in range(len(counts))]
    (folder / "features.tsv").write_text("\n".join(f"{name}\t{name}" for name in features))
    (folder / "barcodes.tsv").write_text("\n".join(barcodes))
    for name in ("matrix.mtx", "features.tsv", "barcodes.tsv") if zipped else ():
        with gzip.open(folder / f"{name}.gz", "wb") as file:
            file.write((folder / name).read_bytes())
        (folder / name).unlink()
    return folder


def test_large_whole_numbers_of_an_mtx(tmp_path: Path) -> None:
    counts = np.array([[3_000_000_000, 1], [2, 4_294_967_295]])
    found = values_of(mtx(tmp_path / "large", counts, ["A1", "B1"]))
    np.testing.assert_array_equal(found, counts)
    (tmp_path / "large" / "matrix.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n2 2 1\n1 1 99999999999999999999\n"
    )
    with pytest.raises(InputError, match="cannot be read"):
        values_of(tmp_path / "large")


def test_plain_and_gzipped_files_of_two_samples(tmp_path: Path, caplog) -> None:
    folder = mtx(tmp_path / "both", np.eye(2, dtype=int), ["A1", "B1"], zipped=True)
    mtx(folder, np.eye(2, dtype=int) * 5, ["C1", "D1"])
    with open_input(folder) as found:
        assert found.genes.ids == ("C1", "D1")
    (folder / "features.tsv").unlink()
    with open_input(folder) as found:
        assert "features.tsv.gz is gzipped and the matrix not" in caplog.text


def test_antibodies_alone_are_no_rna(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "adt.h5", "w") as file:
        group = file.create_group("matrix")
        counts = sp.csr_matrix(np.eye(3, dtype="int32"))
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"] = np.array([3, 3])
        group["barcodes"] = np.array([b"a", b"b", b"c"])
        for name in ("id", "name"):
            group[f"features/{name}"] = np.array([b"CD3", b"CD4", b"CD8"])
        group["features/feature_type"] = np.array([b"Antibody Capture"] * 3)
    with pytest.raises(InputError, match="no features of the type 'Gene Expression', but Antibody"):
        open_input(tmp_path / "adt.h5")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16"])
def test_repeated_entries_add_up(dtype: str) -> None:
    largest = np.iinfo(dtype).max
    data = np.full(3, largest, dtype)
    matrix = sp.csr_matrix((data, [0, 0, 1], [0, 3]), (1, 2))
    assert not matrix.has_canonical_format
    assert values_of(anndata.AnnData(matrix)).tolist() == [[2 * int(largest), largest]]


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i4", ">u2"])
def test_numbers_of_another_byte_order(kind: str, tmp_path: Path) -> None:
    counts = np.arange(12).reshape(4, 3) % 5 + 1
    dense, sparse = tmp_path / "dense.h5ad", tmp_path / "sparse.h5ad"
    anndata.AnnData(counts.astype("f4")).write_h5ad(dense)
    anndata.AnnData(sp.csr_matrix(counts.astype("f4"))).write_h5ad(sparse)
    with h5py.File(dense, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        file["X"] = counts.astype(kind)
        file["X"].attrs.update(attributes)
    with h5py.File(sparse, "r+") as file:
        held = file["X/data"][:]
        del file["X/data"]
        file["X/data"] = held.astype(kind)
    for cells in (dense, sparse, anndata.AnnData(counts.astype(kind))):
        np.testing.assert_array_equal(values_of(cells), counts)
    cells = anndata.AnnData(counts.astype("f4"))
    cells.obs["day"] = np.array([1, 2, 1, 2], ">i4")
    with open_input(cells) as found:
        assert found.column("day")[1] == ["1", "2"]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([1, "1", True, "B"], "truth values are mixed"),
        ([1, "1", 2, "B"], "holds 1 as a number and as text"),
        ([True, 1, 0, False], "truth values are mixed"),
    ],
)
def test_labels_of_several_types(column: list, words: str) -> None:
    cells = anndata.AnnData(np.eye(4, dtype="f4"))
    cells.obs["kind"] = pd.Series(column, dtype=object, index=cells.obs_names)
    with open_input(cells) as found, pytest.raises(InputError, match=f"obs/kind: {words}"):
        found.column("kind")


def test_a_layer_named_raw_beside_raw() -> None:
    cells = anndata.AnnData(np.eye(3, dtype="f4"))
    cells.raw = cells.copy()
    assert values_of(cells, layer="raw").sum() == 3
    cells.layers["raw"] = 2 * cells.X
    with pytest.raises(InputError, match=r"a layer 'raw' beside \.raw"):
        open_input(cells, layer="raw")


def test_an_input_that_changed_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    for size in (100, 10_000_000):
        path.write_bytes(bytes(size))
        os.utime(path, (1, 1))
        before = identity_of_cells(path)
        path.write_bytes(bytes(size - 1) + b"x")
        os.utime(path, (1, 1))
        assert identity_of_cells(path) != before


def test_a_zarr_that_lost_a_chunk(cells, tmp_path: Path, caplog) -> None:
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its next version will do
        cells.write_zarr(tmp_path / "lost.zarr", chunks=(30, 30))
    caplog.set_level("INFO")
    expected = values_of(cells)
    np.testing.assert_array_equal(values_of(tmp_path / "lost.zarr"), expected)
    assert "has no checksums" in caplog.text
    for name in ("data", "indices"):
        store = Path(shutil.copytree(tmp_path / "lost.zarr", tmp_path / name))
        chunk = next(path for path in (store / "X" / name / "c").rglob("*") if path.is_file())
        chunk.unlink()
        with pytest.raises(InputError, match=f"1 chunks of X/{name} are missing"):
            open_input(store)


# --- what ended in a traceback, or never ------------------------------------------------------


@pytest.mark.parametrize("call", ["convert", "train", "embed", "inspect", "evaluate", "score"])
def test_a_pipe_is_not_waited_for(call: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    given: dict[str, tuple] = {
        "convert": (tmp_path / "pipe", tmp_path / "out"),
        "train": (tmp_path / "pipe", tmp_path / "out"),
        "embed": (tmp_path / "pipe", tmp_path / "pipe"),
        "inspect": (tmp_path / "pipe",),
        "evaluate": (tmp_path / "pipe",),
        "score": (tmp_path / "pipe", "exhaustion"),
    }
    with pytest.raises(InputError, match="is a pipe or a device"):
        getattr(concerto_tf, call)(*given[call])


def test_a_pipe_within_a_folder_is_not_waited_for(given, call, judge, tmp_path: Path) -> None:
    for name in ("records", "model"):
        shutil.copytree(given / name, tmp_path / name)
    out = ["-o", tmp_path / "out"]
    for path, line in {
        "records/manifest.json": ["train", tmp_path / "records", *out],
        "records/vocabulary.tsv": ["train", tmp_path / "records", *out],
        "model/training.json": ["embed", tmp_path / "model", given / "cells.h5ad", *out],
    }.items():
        (tmp_path / path).unlink()
        os.mkfifo(tmp_path / path)
        judge(*call(line))


@pytest.mark.parametrize(
    ("call", "options"),
    [
        (concerto_tf.convert, {"seed": "x"}),
        (concerto_tf.convert, {"shards": 2.5}),
        (concerto_tf.convert, {"seed": -1}),
        (concerto_tf.convert, {"drop_empty": "no"}),
        (concerto_tf.run, {"seed": True}),
        (concerto_tf.train, {"ensemble": 1.5}),
        (concerto_tf.cluster, {"seed": None}),
        (concerto_tf.map, {"k": 1.5}),
        (concerto_tf.impute, {"k": "5"}),
        (concerto_tf.compare, {"alpha": "0.1", "condition": "a", "control": "b"}),
        (concerto_tf.annotate, {"alpha": None}),
        (concerto_tf.convert, {"label_keys": 1}),
        (concerto_tf.convert, {"label_keys": [1]}),
        (concerto_tf.convert, {"modalities": {"protein": 1}}),
        (concerto_tf.convert, {"like": 1.5}),
        (concerto_tf.run, {"resolution": b"1"}),
        (concerto_tf.train, {"options": [1]}),
        (concerto_tf.train, {"start": b"model"}),
        (concerto_tf.embed, {"out": 1.5}),
    ],
)
def test_options_of_another_type(call: Callable, options: dict, tmp_path: Path) -> None:
    given = [tmp_path / "a", tmp_path / "b"]
    name, value = next(iter(options.items()))
    shown = re.escape(repr(value))
    if call in (concerto_tf.map, concerto_tf.impute, concerto_tf.annotate):
        given.append(tmp_path / "out")
    with pytest.raises(InputError, match=f"{name} is {shown}; it must be"):
        call(*given, **options)


def test_half_a_character_in_a_name(cells, tmp_path: Path) -> None:
    for place in ("obs_names", "var_names"):
        bad = cells.copy()
        names = list(getattr(bad, place))
        names[3] = "cell\ud800"
        setattr(bad, place, names)
        with pytest.raises(InputError, match="half of a character"):
            convert(bad, tmp_path / "out")
    bad = cells.copy()
    bad.obs["kind"] = ["a\udcff", "b", "c"] * 30
    with pytest.raises(InputError, match="half of a character"):
        convert(bad, tmp_path / "out", label_keys=["kind"])
    assert not (tmp_path / "out").exists()


def test_half_a_character_in_an_argument(tmp_path: Path) -> None:
    odd = os.fsdecode(b"cells\xff.h5ad")
    for given in ({"inputs": odd}, {"inputs": ["a", odd]}, {"inputs": "a", "label_keys": [odd]}):
        with pytest.raises(InputError, match=r"'cells.udcff.h5ad': is not text"):
            convert(**given, out=tmp_path / "out")


def test_json_without_end(whole, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.path, tmp_path / "records"))
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        concerto_tf.Records(folder)
    (tmp_path / "reference.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        concerto_tf.load_reference(tmp_path)


def test_an_address_of_this_machine_is_a_path(cells, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "my cells.h5ad")
    address = (tmp_path / "my cells.h5ad").as_uri()
    assert address.startswith("file:///") and "%20" in address
    np.testing.assert_array_equal(values_of(address), values_of(cells))


def test_columns_of_obsm_are_no_genes(cells) -> None:
    bad = cells.copy()
    frame = pd.DataFrame(np.ones((90, 2)), index=bad.obs_names, columns=["CD3", "CD4"])
    bad.obsm["protein"] = frame.set_axis(["CD3", "CD3"], axis=1)
    with pytest.raises(InputError, match=r"obsm/protein: two of its columns have one name"):
        open_input(bad, modalities={"protein": "obsm:protein"})


DEAF = """
import signal, sys, time
from concerto_tf import cli
from concerto_tf.cli import commands
cli._PATIENCE_SECONDS = 0.5
cli._needs_tensorflow = lambda options: False  # its import takes seconds

class Deaf:
    def __del__(self):
        print("here", flush=True)
        time.sleep(30)  # Ctrl-C in here is lost: Python ignores what is raised

def deaf(options):
    one = Deaf()
    del one
    time.sleep(60)

def stubborn(options):
    print("here", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

commands.demo = {name}
sys.argv = ["concerto", "demo"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["deaf", "stubborn"])
def test_ctrl_c_is_heard_wherever_it_comes(name: str) -> None:
    code = DEAF.replace("{name}", name)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "here\n"
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and time.monotonic() - began < 15
    assert "interrupted; run the same command to continue" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"value_clip": "ten"}, "value_clip is 'ten'"),
        ({"input_epsilon": -1}, "input_epsilon is -1"),
    ],
)
def test_a_model_of_unsuitable_settings(settings: dict, words: str, tmp_path: Path) -> None:
    from concerto_tf.models import Concerto, load_model, save_model

    genes = [f"AB{i}C" for i in range(8)]
    with pytest.raises(InputError, match=words):
        Concerto(genes, **settings)
    save_model(Concerto(genes, hidden_units=8, components=0), tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"] |= settings
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=f"does not load: .*{words}"):
        load_model(tmp_path / "model.keras")


def test_a_model_that_was_changed_is_said(given, call, tmp_path: Path) -> None:
    """Two genes have each other's weights: whole in itself, but not what was trained."""
    folder = Path(shutil.copytree(given / "model", tmp_path / "model"))
    line = ["embed", folder, given / "cells.h5ad", "-o", tmp_path / "out.h5ad"]
    assert "not as its training left it" not in call(line)[1]
    with zipfile.ZipFile(folder / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    genes = config["config"]["vocabulary"]
    genes[0], genes[1] = genes[1], genes[0]
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert "model.keras: is not as its training left it" in call(line)[1]


def test_a_view_of_cells_on_disk_is_not_called_damaged(cells, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    view = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")[:40]
    with pytest.raises(InputError, match=r"a view of cells that are on disk.* view\.to_memory"):
        open_input(view)
    np.testing.assert_array_equal(values_of(view.to_memory()), cells.X[:40].toarray())
    view.file.close()
