"""Malformed cells of every format: a line that says so, no traceback, and no output left."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

Harm = Callable[[Path], None]
Case = tuple[str, Harm]


def edited(edit: Callable[[h5py.File], Any]) -> Harm:
    """Changes an HDF5 file."""

    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            edit(file)

    return harm


def replaced(key: str, value: Callable[[np.ndarray], Any]) -> Harm:
    """Puts another array, or a group for None, in the place of one, and leaves its attributes."""

    def edit(file: h5py.File) -> None:
        old = file[key]
        attributes, held = dict(old.attrs), np.asarray(old)
        del file[key]
        new = value(held)
        place = file.create_group(key) if new is None else file.create_dataset(key, data=new)
        place.attrs.update(attributes)

    return edited(edit)


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "a group": lambda x: None,
    "one number": lambda x: 3,
    "empty": lambda x: x[:0],
    "text": lambda x: np.array([b"AB"] * len(x)),
    "longer": lambda x: np.concatenate([x, x[-1:]]),
    "shorter": lambda x: x[:-1],
    "a table": lambda x: np.stack([x, x]),
    "NaN": lambda x: np.full(len(x), np.nan),
    "structs": lambda x: np.zeros(len(x), [("a", "i4"), ("b", "f4")]),
}


def harmed_arrays(keys: list[str], besides: tuple[str, ...] = ()) -> Iterator[Case]:
    for key in keys:
        yield f"no {key}", edited(lambda file, key=key: file.pop(key))
        for name, value in ARRAYS.items():
            if f"{key}: {name}" not in besides:
                yield f"{key}: {name}", replaced(key, value)


def cut_or_flipped(n_cut: int, n_flipped: int) -> Iterator[Case]:
    for share in np.linspace(0, 0.99, n_cut).round(3).tolist():

        def cut(path: Path, share: float = share) -> None:
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

        yield f"cut at {share}", cut
    for seed in range(n_flipped):

        def flip(path: Path, seed: int = seed) -> None:
            rng, content = np.random.default_rng(seed), bytearray(path.read_bytes())
            for at in rng.integers(len(content), size=20):
                content[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)

        yield f"flipped {seed}", flip


def circle(file: h5py.File) -> None:
    del file["obs/kind/codes"]
    file["obs/kind/codes"] = h5py.SoftLink("/obs")


def put(key: str, at: int, value: float) -> Harm:
    return edited(lambda file: file[key].__setitem__(at, value))


def attribute(key: str, name: str, value: Any) -> Harm:
    return edited(lambda file: file[key].attrs.__setitem__(name, value))


H5AD: list[Case] = [
    *harmed_arrays(
        [
            "X/data",
            "X/indices",
            "X/indptr",
            "obs/_index",
            "var/_index",
            "obs/kind/codes",
            "obs/kind/categories",
        ],
        # These are other values, not malformed ones: names and labels may be what they like.
        besides=("obs/kind/categories: longer",),
    ),
    *((f"no {key}", edited(lambda file, key=key: file.pop(key))) for key in ("X", "obs", "var")),
    *(
        (f"{key or '/'} is encoded as {kind!r}", attribute(key or "/", "encoding-type", kind))
        for key in ("X", "obs/kind")
        for kind in ("dataframe", "csc_matrix", "nothing", 7)
    ),
    *(
        (f"shape {shape}", attribute("X", "shape", shape))
        for shape in ([12, 9], [13, 8], [0, 0], [-12, 8], [10**12, 8], [12, 10**12], [12], "12x8")
    ),
    ("index named elsewhere", attribute("obs", "_index", "../../etc")),
    ("no such columns", attribute("obs", "column-order", ["no"])),
    ("index outside", put("X/indices", 3, 8)),
    ("index far outside", put("X/indices", 3, 2**31 - 1)),
    ("negative index", put("X/indices", 3, -1)),
    ("offsets that fall", put("X/indptr", 2, 0)),
    ("offsets that begin late", put("X/indptr", 0, 1)),
    ("offsets past the end", put("X/indptr", -1, 10**6)),
    ("codes outside", put("obs/kind/codes", 0, 99)),
    ("codes far below", put("obs/kind/codes", 0, -5)),
    *((f"value {x}", put("X/data", 5, x)) for x in (-1, np.nan, np.inf, -np.inf, -1e-30)),
    ("text", lambda path: path.write_text("gene,count\n")),
    ("empty", lambda path: path.write_bytes(b"")),
    ("gzipped", lambda path: path.write_bytes(gzip.compress(path.read_bytes()))),
    ("zeros behind the magic", lambda path: path.write_bytes(path.read_bytes()[:8] + bytes(4000))),
    ("a folder", lambda path: (path.unlink(), path.mkdir())),
    ("a link to itself", lambda path: (path.unlink(), path.symlink_to(path.name))),
    ("a group that holds itself", edited(circle)),
    *cut_or_flipped(12, 30),
]

TENX: list[Case] = [
    *harmed_arrays(
        [
            "matrix/data",
            "matrix/indices",
            "matrix/indptr",
            "matrix/shape",
            "matrix/barcodes",
            "matrix/features/id",
            "matrix/features/name",
        ],
        besides=tuple(f"matrix/features/name: {what}" for what in ("NaN", "text", "longer")),
    ),
    ("index outside", put("matrix/indices", 3, 8)),
    ("negative", put("matrix/data", 3, -2)),
    *cut_or_flipped(4, 10),
]


def row(number: int, text: str) -> Harm:
    """Replaces a line of the matrix."""

    def harm(folder: Path) -> None:
        path = folder / "matrix.mtx"
        lines = path.read_text().splitlines()
        lines[number] = text
        path.write_text("\n".join(lines) + "\n")

    return harm


def on(name: str, change: Callable[[bytes], bytes]) -> Harm:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def gzipped(name: str, change: Callable[[bytes], bytes]) -> Harm:
    def harm(folder: Path) -> None:
        content = gzip.compress((folder / name).read_bytes())
        (folder / f"{name}.gz").write_bytes(change(content))
        (folder / name).unlink()

    return harm


PARTS = ("matrix.mtx", "features.tsv", "barcodes.tsv")
PLAIN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\xfe" + content[::-1],
    "empty": lambda content: b"",
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "cut": PLAIN["cut"],
    "changed": lambda content: content[:30] + b"xxxx" + content[34:],
}
MTX: list[Case] = [
    *(
        (f"{text!r} first", row(0, text))
        for text in (
            "",
            "%%MatrixMarket",
            "%%MatrixMarket matrix array real general",
            "8 12 3",
            "%%MatrixMarket matrix coordinate complex general",
            "%%MatrixMarket matrix coordinate integer symmetric",
            "\x00\x01",
        )
    ),
    *(
        (f"size {text!r}", row(2, text))
        for text in (
            "",
            "8 12",
            "8 12 x",
            "8 12 -3",
            "8 12 999999999999",
            "8 12 1",
            "999999999999 12 40",
            "8 999999999999 40",
            "0 0 0",
            "-8 -12 40",
            "8.5 12 40",
            "1e1000 12 40",
        )
    ),
    *(
        (f"entry {text!r}", row(6, text))
        for text in (
            "0 1 1",
            "1 0 1",
            "9 1 1",
            "1 13 1",
            "-1 1 1",
            "1 1 -9999",
            "1 1",
            "1 1 x",
            "a b c",
            "1 1 1 1",
            "1.5 1 1",
            "99999999999999999999 1 1",
            "1 1 99999999999999999999",
            "\x00",
        )
    ),
    *((f"no {name}", lambda folder, name=name: (folder / name).unlink()) for name in PARTS),
    *((f"{name} {what}", on(name, change)) for what, change in PLAIN.items() for name in PARTS),
    *((f"{name}.gz {what}", gzipped(name, do)) for what, do in PACKED.items() for name in PARTS),
    ("not gzipped", lambda folder: (folder / "matrix.mtx").rename(folder / "matrix.mtx.gz")),
    ("barcodes repeated", on("barcodes.tsv", lambda content: content.replace(b"l1\n", b"l2\n"))),
    ("features repeated", on("features.tsv", lambda content: content.replace(b"AB1C", b"AB2C"))),
    (
        "a folder in its place",
        lambda folder: ((folder / "features.tsv").unlink(), (folder / "features.tsv").mkdir()),
    ),
]


def stored(name: str, change: Callable[[bytes], bytes]) -> Harm:
    """Changes all files of a zarr store whose path ends in a name."""

    def harm(folder: Path) -> None:
        found = [path for path in folder.rglob("*") if path.is_file() and path.match(name)]
        assert found, name
        for path in found:
            path.write_bytes(change(path.read_bytes()))

    return harm


def metadata(place: str, **entries: Any) -> Harm:
    """Changes what an array says of itself."""

    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), **entries}).encode()

    return stored(f"{place}/.zarray", change)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-5],
    "a list": lambda content: b"[]",
    "not text": lambda content: b"\xff\xfe\x00",
}
ZARR: list[Case] = [
    *(
        (f"no {place}", lambda folder, place=place: shutil.rmtree(folder / place))
        for place in (
            "X",
            "X/data",
            "X/indices",
            "X/indptr",
            "obs",
            "var",
            "obs/_index",
            "var/_index",
            "obs/kind",
            "obs/kind/codes",
            "obs/kind/categories",
        )
    ),
    *(
        (f"{name} is {kind}", stored(name, change))
        for name in (
            "X/.zattrs",
            "obs/.zattrs",
            "X/data/.zarray",
            "X/indptr/.zarray",
            "var/_index/.zarray",
            "X/.zgroup",
        )
        for kind, change in SPOILED.items()
    ),
    *(
        (f"{place} says {entries}", metadata(place, **entries))
        for place in ("X/data", "X/indptr", "obs/_index")
        for entries in (
            {"shape": [10**12]},
            {"shape": [-1]},
            {"shape": []},
            {"shape": [3, 3]},
            {"chunks": [0]},
            {"dtype": "|O8"},
            {"dtype": "<c8"},
            {"zarr_format": 9},
            {"compressor": {"id": "pickle"}},
        )
    ),
    *(
        (f"{place} chunk cut", stored(f"{place}/0", lambda content: content[: len(content) // 2]))
        for place in ("X/data", "X/indices", "X/indptr", "obs/_index", "var/_index")
    ),
]

CORPUS = {"cells.h5ad": H5AD, "cells.h5": TENX, "mtx": MTX, "cells.zarr": ZARR}
# A tenth of them by default.
CASES = [
    pytest.param(name, harm, id=f"{name} {case}", marks=[pytest.mark.slow] if i % 10 else [])
    for name, cases in CORPUS.items()
    for i, (case, harm) in enumerate(cases)
]


@pytest.fixture(scope="module")
def formats(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cells in all formats. Not to be changed."""
    folder = tmp_path_factory.mktemp("formats")
    adata = cells[:12, :8].copy()
    adata.obs["kind"] = adata.obs["kind"].astype("category")
    adata.write_h5ad(folder / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this format is no longer the default
        adata.write_zarr(folder / "cells.zarr")
    (folder / "cells.zarr" / ".zmetadata").unlink(missing_ok=True)  # a copy of all metadata
    names, barcodes = (np.array(list(x), "S") for x in (adata.var_names, adata.obs_names))
    whole = adata.X.astype("int32")
    with h5py.File(folder / "cells.h5", "w") as file:
        for key, value in {
            "data": whole.data,
            "indices": whole.indices,
            "indptr": whole.indptr,
            "shape": np.array([8, 12]),
            "barcodes": barcodes,
            "features/id": names,
            "features/name": names,
            "features/feature_type": np.array([b"Gene Expression"] * 8),
        }.items():
            file[f"matrix/{key}"] = value
    (folder / "mtx").mkdir()
    scipy.io.mmwrite(folder / "mtx" / "matrix.mtx", sp.coo_matrix(whole.T), field="integer")
    for name, lines in (("features", names), ("barcodes", barcodes)):
        (folder / "mtx" / f"{name}.tsv").write_bytes(b"\n".join(lines) + b"\n")
    return folder


@pytest.fixture
def copy(formats: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        source, place = formats / name, tmp_path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place)
        return place

    return make


def line(path: Path, out: Path) -> list[Any]:
    labels = [] if path.name in ("cells.h5", "mtx") else ["--label-key", "kind"]
    return ["convert", path, "-o", out, *labels, "--quiet"]


@pytest.mark.parametrize("name", CORPUS)
def test_whole_cells_are_converted(name: str, copy, call, tmp_path: Path) -> None:
    assert call(line(copy(name), tmp_path / "out"))[0] == 0


@pytest.mark.parametrize(("name", "harm"), CASES)
def test_malformed_cells_are_refused(
    name: str, harm: Harm, request, copy, call, judge, tmp_path: Path
) -> None:
    path = copy(name)
    harm(path)
    code, said = call(line(path, tmp_path / "out"))
    if code == 0 and "flipped" in request.node.callspec.id:
        return  # nothing in such a file tells its values from others
    judge(code, said)
    assert said.startswith("concerto") and said.count("\n") in (1, 2), said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]
