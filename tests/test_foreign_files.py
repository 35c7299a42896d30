"""Files from somebody else: nothing in them is run, and nothing outside their folder is read."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import resource
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

import concerto_tf
from concerto_tf import Concerto, InputError, Records, Reference, load_model, load_reference
from concerto_tf._keras import keras
from concerto_tf.models import CLEAR
from concerto_tf.models.saving import save_model
from concerto_tf.records.tfrecord import checksum

PACKAGE = Path(concerto_tf.__file__).parent


class Trap:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that a trap leaves."""
    return tmp_path / "sprung"


def test_nothing_of_python_is_unpickled_or_evaluated() -> None:
    """Nowhere in the package: neither pickle and its like, nor eval and exec.

    But for what workers of a conversion are handed by the process that started them.
    """
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom) and path.name != "workers.py":
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                bad = {"pickle", "dill", "cloudpickle", "shelve", "marshal"} & {*names}
                assert not bad, (path, bad)
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                of = getattr(getattr(node.func, "value", None), "id", "")
                assert name not in ("eval", "exec") and (of, name) != ("joblib", "load"), path
                given = {key.arg: getattr(key.value, "value", None) for key in node.keywords}
                if (of, name) == ("np", "load"):
                    assert given["allow_pickle"] is False, path
                if name == "load_model" and of != "":
                    assert given["safe_mode"] is True, path


def test_a_trap_springs_where_it_is_let(sprung: Path) -> None:
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()


def test_a_pickled_array_of_a_reference_is_not_read(sprung: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    concerto_tf.save_reference(Reference(np.eye(3)), folder)
    np.save(folder / "embeddings.npy", np.array([Trap(sprung)], object), allow_pickle=True)
    reseal(
        folder / "reference.json",
        lambda content: content["files"].update(
            {"embeddings.npy": sha256(folder / "embeddings.npy")}
        ),
    )
    with pytest.raises(InputError, match="embeddings.npy"):
        load_reference(folder)
    assert not sprung.exists()


def test_a_pickled_checkpoint_is_not_read(sprung: Path, tmp_path: Path) -> None:
    from concerto_tf.tasks.training.callbacks import saved_rounds

    np.savez(tmp_path / "training.npz", rounds=np.array([Trap(sprung)], object))
    assert saved_rounds(tmp_path) == 0  # damaged: the training begins anew
    assert not sprung.exists()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reseal(path: Path, change: Any) -> None:
    """Changes a description together with its checksum, as a forger does."""
    content = json.loads(path.read_text("utf-8"))
    del content["checksum"]
    change(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({**content, "checksum": digest}), "utf-8")


@pytest.mark.parametrize("kind", ["a Lambda", "a class of a module"])
@pytest.mark.parametrize(
    ("cls", "places"),
    [(Concerto, ["loss", "units", "surprise"]), (CLEAR, ["backbone", "augmentation", "head"])],
)
def test_a_model_with_code_in_it_is_refused(
    cls: type, places: list[str], kind: str, sprung: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """A Lambda is Python bytecode, which Keras unpacks where safe mode is off; a module is run
    when it is imported."""
    path = tmp_path / "model.keras"
    save_model(cls(["CD3E", "MS4A1"]), path)
    (tmp_path / "trap_module.py").write_text(
        f"from pathlib import Path\nPath({str(sprung)!r}).touch()\nclass Trap: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    layer = keras.layers.Lambda(lambda x, at=str(sprung): Path(at).touch())
    code = keras.layers.serialize(layer)
    if kind != "a Lambda":
        code |= {"module": "trap_module", "class_name": "Trap", "registered_name": "Trap"}
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    for place in places:
        changed = {**config, "config": {**config["config"], place: code}}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**parts, "config.json": json.dumps(changed).encode()}.items():
                archive.writestr(name, content)
        with pytest.raises(InputError, match="model.keras"):
            load_model(path)
    assert not sprung.exists()


@pytest.fixture
def records(tmp_path: Path) -> Records:
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(1.0, (40, 12)).astype("f4") + np.eye(40, 12, dtype="f4"))
    return concerto_tf.convert(adata, tmp_path / "records", drop_empty=True)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "a/../../secret"])
def test_nothing_outside_the_folder_is_opened(name: str, records: Records, tmp_path: Path) -> None:
    shutil.copy(records.path / records.manifest.shards[0].file, tmp_path / "secret")
    opened: list[str] = []
    watching = False
    sys.addaudithook(
        lambda event, given: opened.append(str(given[0])) if watching and event == "open" else None
    )
    for change in (
        lambda content: content["shards"][0].update(file=name),
        lambda content: content["modalities"]["rna"].update(vocabulary=name),
    ):
        reseal(records.path / "manifest.json", change)
        watching = True
        for skip in (False, True):
            with pytest.raises(InputError, match="not within the folder"):
                Records(records.path, skip_damaged=skip)
        watching = False
    assert opened and {Path(path).name for path in opened} == {"manifest.json"}


ENDLESS = 10**12


def peak() -> int:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def bounded() -> Iterator[None]:
    """Fails a test that takes much memory or time."""
    before, began = peak(), time.monotonic()
    yield
    assert peak() - before < 500e6
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("length", [2**34, 2**40, 2**62, 2**64 - 3])
@pytest.mark.usefixtures("bounded")
def test_a_forged_length_of_a_record(length: int, records: Records) -> None:
    """With checksums that fit; TensorFlow would ask for as much memory and crash."""
    shard = records.manifest.shards[0]
    path = records.path / shard.file
    head = length.to_bytes(8, "little")
    content = path.read_bytes()
    first = 16 + int.from_bytes(content[:8], "little")
    forged = content[:first] + head + checksum(head) + content[first + 12 :]
    path.write_bytes(forged)
    assert len(forged) == shard.bytes
    reseal(records.path / "manifest.json", lambda of: of["shards"][0].update(sha256=sha256(path)))
    with pytest.raises(InputError, match=f"{shard.file} is forged .*{length} bytes"):
        list(Records(records.path).dataset(8))
    assert len(Records(records.path).verify()) == 1
    # The record is left out, as its length is not to be trusted, and the others are not.
    assert Records(records.path, skip_damaged=True).lost == {shard.file: 1}


@pytest.mark.usefixtures("bounded")
def test_a_forged_length_of_a_compressed_record(tmp_path: Path) -> None:
    """A few kilobytes that say, and even hold, a record of 128 MB of zeros."""
    adata = anndata.AnnData(np.eye(40, 12, dtype="f4") + 1)
    records = concerto_tf.convert(adata, tmp_path / "gzip", compression="gzip")
    shard = records.manifest.shards[0]
    path = records.path / shard.file
    head = (2**27).to_bytes(8, "little")
    pack = zlib.compressobj(wbits=31)
    bomb = pack.compress(head + checksum(head))
    bomb += b"".join(pack.compress(bytes(2**20)) for _ in range(128)) + pack.flush()
    path.write_bytes(bomb)
    reseal(
        records.path / "manifest.json",
        lambda of: of["shards"][0].update(sha256=sha256(path), bytes=len(bomb)),
    )
    with pytest.raises(InputError, match=f"{shard.file} is forged .*{2**27} bytes"):
        list(Records(records.path).dataset(8))


@pytest.mark.usefixtures("bounded")
def test_a_forged_number_of_genes(records: Records) -> None:
    """Batches are as wide as the cell with the most genes."""
    reseal(
        records.path / "manifest.json",
        lambda content: content["modalities"]["rna"].update(n_genes=ENDLESS, max_nonzeros=ENDLESS),
    )
    with pytest.raises(InputError, match="does not hold 1000000000000 genes"):
        list(Records(records.path).dataset(8))
    assert len(Records(records.path).verify()) == 1


@pytest.mark.parametrize("key", ["obs/_index", "var/_index", "X/indptr", "X/data", "obs/kind"])
@pytest.mark.parametrize("size", [ENDLESS, 10**10])
@pytest.mark.usefixtures("bounded")
def test_a_forged_size_in_hdf5(key: str, size: int, tmp_path: Path) -> None:
    """Nothing is stored for it, and reading it would give as many zeros."""
    path = tmp_path / "cells.h5ad"
    adata = anndata.AnnData(sp.csr_matrix(np.eye(9, 4, dtype="f4") + 1))
    adata.obs["kind"] = 1
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        attributes, dtype = dict(file[key].attrs), file[key].dtype
        del file[key]
        file.create_dataset(key, (size,), dtype, chunks=(1024,)).attrs.update(attributes)
        if key == "X/data":  # and all the others agree
            del file["X/indices"]
            file.create_dataset("X/indices", (size,), "i4", chunks=(1024,))
            indptr = file["X/indptr"][()].astype("i8")
            indptr[-1] = size
            del file["X/indptr"]
            file["X/indptr"] = indptr
    with pytest.raises(InputError, match="cells.h5ad"):
        concerto_tf.convert(path, tmp_path / "out", label_keys=["kind"])
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("bounded")
def test_a_forged_size_in_a_reference(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    concerto_tf.save_reference(Reference(np.eye(3)), folder)
    path = folder / "embeddings.npy"
    path.write_bytes(path.read_bytes().replace(b"(3, 3)", b"(%d, 3)" % ENDLESS))
    reseal(
        folder / "reference.json",
        lambda content: content["files"].update({path.name: sha256(path)}),
    )
    with pytest.raises(InputError, match="embeddings.npy"):
        load_reference(folder)


@pytest.mark.usefixtures("bounded")
def test_a_zip_that_unpacks_without_end(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("config.json", "w", force_zip64=True) as file:
            for _ in range(400):
                file.write(b" " * 1_000_000)
    assert path.stat().st_size < 1e6
    with pytest.raises(InputError, match="model.keras"):
        load_model(path)


@pytest.mark.usefixtures("bounded")
def test_a_model_that_says_it_is_endless(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    save_model(Concerto(["CD3E", "MS4A1"]), path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["units"] = 10**9
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, "config.json": json.dumps(config).encode()}.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="model.keras"):
        load_model(path)
