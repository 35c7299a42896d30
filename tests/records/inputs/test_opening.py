from __future__ import annotations

import gzip
import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.inputs.opening import open_input


def make(n_cells: int = 200) -> ad.AnnData:
    x = sp.random(n_cells, 30, 0.5, format="csr", dtype=np.float32, rng=0)
    return ad.AnnData(x)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.h5ad"
    with pytest.raises(InputError) as error:
        open_input(path)
    assert str(error.value) == f"{path}: there is no such file or folder; check the path"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "closed.h5ad"
    make().write_h5ad(path)
    path.chmod(0)
    with pytest.raises(InputError, match="^closed.h5ad: you are not permitted to read it; ask"):
        open_input(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated_h5ad(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.h5ad"
    make().write_h5ad(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(InputError, match="^cut.h5ad: truncated or damaged .*; copy or download it"):
        open_input(path)


def test_values_damaged_within(tmp_path: Path) -> None:
    path = tmp_path / "in.h5ad"
    make().write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(0)
    with open(path, "r+b") as file:
        file.seek(place.byte_offset)
        file.write(b"\xff" * place.size)
    with open_input(path) as cells:
        with pytest.raises(InputError, match="in.h5ad: X, cells 0 to 200 cannot be read .*damaged"):
            cells.chunk(0, 200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; copy or download it again"),
        (
            b"gene,cell\n",
            "not a file of a known format; give an .h5ad, an .h5mu, a .zarr, a 10x .h5",
        ),
        (gzip.compress(b"x", mtime=0), "not a file of a known format; gunzip it first"),
    ],
)
def test_not_hdf5(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "in.h5ad"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^in.h5ad: {message}"):
        open_input(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["X", "Y"],
            r"neither an AnnData, a MuData nor a 10x file \(it holds: X, Y\); give an .h5ad",
        ),
        ([], r"neither an AnnData, a MuData nor a 10x file \(it holds: nothing\)"),
        (
            ["mod", "obs_x"],
            "a MuData, none of whose modalities is called rna or gex .there are: none",
        ),
    ],
)
def test_hdf5_of_something_else(tmp_path: Path, names: list[str], message: str) -> None:
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        for name in names:
            file.create_group(name)
    with pytest.raises(InputError, match=f"^in.h5: {message}"):
        open_input(path)


def test_zarr_of_something_else(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(tmp_path / "in.zarr", mode="w").create_group("images")
    with pytest.raises(InputError, match="^in.zarr: a zarr store, but not of an AnnData"):
        open_input(tmp_path / "in.zarr")


def test_neither_path_nor_anndata() -> None:
    with pytest.raises(InputError, match="^ndarray: give a path or an AnnData"):
        open_input(np.ones((2, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rna", "a/b", "", "../x"])
def test_modality_names(name: str) -> None:
    with pytest.raises(InputError, match=f"modality name '{name}': use letters, digits and _"):
        open_input(make(), modalities={name: "obsm:x"})


@pytest.mark.parametrize("place", ["protein", "obs:protein", "obsm:"])
def test_modality_places(place: str) -> None:
    with pytest.raises(InputError) as error:
        open_input(make(), modalities={"protein": place})
    assert str(error.value) == (
        f"AnnData: modality protein: {place!r} is not understood here; write obsm:KEY or "
        "layer:NAME or feature_types:TYPE"
    )


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("pbmc3k.h5ad", "pbmc3k"),
        ("my.data.h5ad", "my.data"),
        ("donor1/outs/filtered_feature_bc_matrix.h5ad", "donor1"),
    ],
)
def test_stem_tells_samples_apart(tmp_path: Path, path: str, stem: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    make().write_h5ad(tmp_path / path)
    with open_input(tmp_path / path) as cells:
        assert (cells.stem, cells.name) == (stem, Path(path).name)
    with open_input(make()) as cells:
        assert cells.stem == "AnnData"


def test_suffix_does_not_matter_and_relative_paths_survive_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "in.h5ad").rename(tmp_path / "data.bin")
    monkeypatch.chdir(tmp_path)
    with open_input("data.bin") as cells:
        monkeypatch.chdir("/")
        assert cells.path == tmp_path / "data.bin"
        assert cells.chunk(0, 200)["rna"].nnz == make().X.nnz


def test_closing_twice_and_a_file_that_can_be_replaced(tmp_path: Path) -> None:
    make().write_h5ad(tmp_path / "in.h5ad")
    cells = open_input(tmp_path / "in.h5ad")
    cells.close()
    cells.close()
    with h5py.File(tmp_path / "in.h5ad", "r+"):
        pass


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 201)])
def test_cells_that_are_not_there(start: int, stop: int) -> None:
    with open_input(make()) as cells:
        with pytest.raises(IndexError, match=f"cells {start} to {stop} of 200"):
            cells.chunk(start, stop)
