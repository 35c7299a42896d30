"""Everything in an object store: TensorFlow's `ram://` stands for `gs://` and the like."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tensorflow as tf

from concerto_tf import embed, export, load_model, save_model, train
from concerto_tf._files import atomic, remove, sha256, write_json
from concerto_tf._paths import as_path, copy_tree, is_remote, local_copy
from concerto_tf.cli import main
from concerto_tf.errors import InputError
from concerto_tf.models import Concerto
from concerto_tf.records import Records, convert

OPTIONS = {"shards": 3, "chunk_cells": 40, "source_key": "donor", "label_keys": ["type"]}


@pytest.fixture
def store() -> Iterator[Path]:
    folder = as_path(f"ram://{uuid4().hex}")
    folder.mkdir()
    yield folder
    remove(folder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    counts = random.negative_binomial(0.3, 0.1, (120, 60))
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"donor": random.choice(["old", "young"], 120), "type": random.choice(["B", "T"], 120)},
        index=[f"CELL{i}" for i in range(120)],
    )
    cells = anndata.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=[f"AB{i}C" for i in range(60)]),
    )
    cells.layers["twice"] = cells.X * 2
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- paths ----------------------------------------------------------------------------------


def test_a_path_keeps_its_address() -> None:
    path = as_path("gs://bucket/folder")
    assert str(path / "a.h5ad") == "gs://bucket/folder/a.h5ad"
    assert str((path / "a.h5ad").with_suffix(".tsv")) == "gs://bucket/folder/a.tsv"
    assert str(path.parent) == "gs://bucket" and path.name == "folder"
    assert as_path(str(path)) == path and path.absolute() == path and is_remote(path)
    assert not is_remote("records") and type(as_path("records")) is type(Path("records"))


def test_files_and_folders(store: Path) -> None:
    assert store.is_dir() and not store.is_file() and not (store / "none").exists()
    with pytest.raises(FileNotFoundError):
        (store / "none").read_text()
    with pytest.raises(FileNotFoundError):
        (store / "none").stat()
    (store / "a" / "b").mkdir(parents=True)
    for text in ("long and first", "second"):
        (store / "a" / "b" / "µ.txt").write_text(text, "utf-8")
    assert (store / "a" / "b" / "µ.txt").read_text("utf-8") == "second"
    assert (store / "a" / "b" / "µ.txt").stat().st_size == 6
    assert [str(path) for path in store.rglob("*.txt")] == [f"{store}/a/b/µ.txt"]
    with (store / "a" / "b" / "µ.txt").open("rb") as stream:
        stream.seek(-3, io.SEEK_END)
        assert stream.read() == b"ond" and stream.tell() == 6
    copy_tree(store / "a", store / "copy")
    with local_copy(store / "copy") as here:
        assert (here / "b" / "µ.txt").read_text() == "second"
    assert not here.exists()
    remove(store / "a")
    assert [path.name for path in store.iterdir()] == ["copy"]


def test_files_are_whole_or_not_there(store: Path) -> None:
    write_json(store / "a.json", [1])
    before = sha256(store / "a.json")
    with pytest.raises(KeyboardInterrupt), atomic(store / "a.json") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert sha256(store / "a.json") == before
    for number in range(2):
        with atomic(store / "folder") as temporary:
            temporary.mkdir()
            (temporary / f"part{number}").touch()
    assert [path.name for path in (store / "folder").iterdir()] == ["part1"]
    assert sorted(path.name for path in store.iterdir()) == ["a.json", "folder"]


def test_an_address_that_nothing_knows() -> None:
    with pytest.raises(InputError, match="nowhere://a.*does not know such addresses"):
        Records("nowhere://a")


# --- from cells to a model ------------------------------------------------------------------


def test_records(store: Path, file: Path, tmp_path: Path) -> None:
    expected = convert(file, tmp_path / "records", **OPTIONS)
    records = convert(file, f"{store}/records", **OPTIONS)
    assert content(store / "records") == content(tmp_path / "records")
    assert Records(f"{store}/records").verify() == []
    for name, values in expected.obs().items():
        np.testing.assert_array_equal(records.obs()[name], values)
    for one, other in zip(expected.dataset(32), records.dataset(32), strict=True):
        np.testing.assert_array_equal(one["values"], other["values"])
    # Done already, and not to be overwritten by something else.
    assert convert(file, f"{store}/records", **OPTIONS).n_cells == 120
    with pytest.raises(InputError, match="holds records differing in seed"):
        convert(file, f"{store}/records", seed=1, **OPTIONS)


@pytest.mark.parametrize("step", [5, 130])
def test_records_after_an_interruption(store: Path, file: Path, tmp_path: Path, step: int) -> None:
    def stop(done: int, total: int) -> None:
        if done >= step / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(file, store / "records", progress=stop, **OPTIONS)
    with pytest.raises(InputError, match="unfinished"):
        Records(store / "records")
    convert(file, store / "records", **OPTIONS)
    assert content(store / "records") == content(convert(file, tmp_path / "r", **OPTIONS).path)


def test_records_by_a_cluster(store: Path, file: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    expected = content(convert(file, tmp_path / "records", **OPTIONS).path)
    copy_tree(file, store / "cells.h5ad")
    # Of threads, as other processes have another ram://.
    with distributed.LocalCluster(2, processes=False, dashboard_address=None) as cluster:

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        asked = {"dask": cluster, **OPTIONS}
        with pytest.raises(KeyboardInterrupt):
            convert(store / "cells.h5ad", store / "records", progress=stop, **asked)
        parts = list((store / "records" / "spool").glob("part-*"))
        convert(store / "cells.h5ad", store / "records", **asked)
    assert 0 < len(parts) and not (store / "records" / "spool").exists()
    found = content(store / "records")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found.keys() - {"manifest.json"})


def test_inputs(store: Path, file: Path, tmp_path: Path) -> None:
    copy_tree(file, store / "cells.h5ad")
    expected = content(convert(file, tmp_path / "here", **OPTIONS).path)
    found = content(convert(f"{store}/cells.h5ad", tmp_path / "there", **OPTIONS).path)
    for name in expected.keys() - {"manifest.json"}:
        assert found[name] == expected[name]
    folder = tmp_path / "mtx"
    folder.mkdir()
    (folder / "matrix.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n2 3 3\n1 1 5\n2 2 1\n1 3 2\n"
    )
    (folder / "features.tsv").write_text("AB1C\tAB1C\nAB2C\tAB2C\n")
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(b"a\nb\nc\n"))
    copy_tree(folder, store / "mtx")
    assert convert(store / "mtx", store / "of-mtx").n_cells == 3
    with pytest.raises(InputError, match="no such file"):
        convert(store / "none.h5ad", store / "records")
    assert not (store / "records").exists()
    (store / "zarr").mkdir()
    (store / "zarr" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match="copy the store here"):
        convert(store / "zarr", store / "records")


def test_a_model_saved_and_loaded(store: Path) -> None:
    model = Concerto([f"AB{i}C" for i in range(60)])
    save_model(model, f"{store}/model.keras")
    loaded = load_model(f"{store}/model.keras")
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Stopped(Exception):
    """Stands for whatever ends a training in the middle."""


def test_training_goes_on_and_its_model_serves(store: Path, file: Path, tmp_path: Path) -> None:
    records = convert(file, f"{store}/records", **OPTIONS)
    options = {"epochs": 8, "batch_size": 32, "genes": "all"}
    whole = train(records, tmp_path / "model", **options)

    def stop(done: int, total: int) -> None:
        if (store / "model" / "checkpoint" / "training.npz").exists():
            raise Stopped

    with pytest.raises(Stopped):
        train(f"{store}/records", f"{store}/model", progress=stop, **options)
    model = train(f"{store}/records", f"{store}/model", **options)
    for one, other in zip(whole.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in (store / "model").iterdir()) == sorted(
        path.name for path in (tmp_path / "model").iterdir()
    )
    rounds = (tmp_path / "model" / "training.csv").read_text().count("\n")
    assert (store / "model" / "training.csv").read_text().count("\n") == rounds

    copy_tree(file, store / "cells.h5ad")
    z = embed(f"{store}/model", f"{store}/cells.h5ad", f"{store}/embedded.h5ad")
    with local_copy(store / "embedded.h5ad") as copy:
        written = anndata.read_h5ad(copy)
    np.testing.assert_array_equal(written.obsm["X_concerto"], z)
    assert (written.layers["twice"] != written.X * 2).nnz == 0
    np.testing.assert_allclose(z, embed(whole, file), rtol=1e-5, atol=1e-6)

    served = export(f"{store}/model", f"{store}/served")
    answer = tf.saved_model.load(str(served)).signatures["serving_default"](
        genes=tf.constant([["AB1C"]]), values=tf.constant([[3.0]])
    )
    assert answer["embedding"].shape[0] == 1 and (served / "MODEL_CARD.md").is_file()


def test_commands(store: Path, file: Path, capsys) -> None:
    assert main(["convert", str(file), "-o", f"{store}/r", "--label-key", "type"]) == 0
    assert main(["inspect", f"{store}/r", "--verify"]) == 0
    assert main(["convert", "nowhere://cells.h5ad", "-o", f"{store}/s"]) == 2
    assert "does not know such addresses" in capsys.readouterr().err
