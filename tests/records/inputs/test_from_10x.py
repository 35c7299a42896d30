from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.inputs.opening import open_input

N_CELLS, N_GENES, N_PROTEINS = 11, 7, 2
IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]
SYMBOLS = ["TBCE", "CD4", "TBCE", "CD8A", "LYZ", "MS4A1", "CD3E"]
PROTEINS = ["CD3_TotalC", "CD4_TotalC"]
BARCODES = [f"ACGT{i}-1" for i in range(N_CELLS)]


def counts(n_features: int = N_GENES) -> np.ndarray:
    return np.random.default_rng(0).poisson(0.8, (N_CELLS, n_features)).astype(np.int32)


def write_matrix(group: h5py.Group, values: np.ndarray) -> None:
    stored = sp.csc_matrix(values.T)
    for name in ("data", "indices", "indptr"):
        group[name] = getattr(stored, name)
    group["shape"] = np.array(stored.shape, dtype=np.int32)
    group["barcodes"] = np.array(BARCODES, dtype="S18")


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    path = tmp_path / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        write_matrix(group, counts(N_GENES + N_PROTEINS))
        group["features/id"] = np.array([*IDS, *PROTEINS], dtype="S20")
        group["features/name"] = np.array([*SYMBOLS, *PROTEINS], dtype="S20")
        group["features/feature_type"] = np.array(
            ["Gene Expression"] * N_GENES + ["Antibody Capture"] * N_PROTEINS, dtype="S20"
        )
        group["features/genome"] = np.array(["GRCh38"] * (N_GENES + N_PROTEINS), dtype="S10")
    return path


def v2(path: Path, genomes: list[str]) -> Path:
    with h5py.File(path, "w") as file:
        for genome in genomes:
            group = file.create_group(genome)
            write_matrix(group, counts())
            group["genes"] = np.array([f"{genome}_{id}" for id in IDS], dtype="S30")
            group["gene_names"] = np.array(SYMBOLS, dtype="S20")
    return path


def test_cell_ranger_3(dense: Any, v3: Path) -> None:
    with open_input(v3, modalities={"adt": "feature_types:Antibody Capture"}) as cells:
        assert (cells.n_cells, cells.genes.ids, cells.genes.symbols) == (
            N_CELLS,
            tuple(IDS),
            tuple(SYMBOLS),
        )
        assert cells.modalities["adt"].ids == tuple(PROTEINS)
        both = counts(N_GENES + N_PROTEINS)
        np.testing.assert_array_equal(dense(cells), both[:, :N_GENES])
        np.testing.assert_array_equal(dense(cells, "adt"), both[:, N_GENES:])
        assert cells.chunk(0, 3)["rna"].dtype == np.int32
        assert cells.barcodes(9, 11) == BARCODES[9:]
        cells.check_barcodes()
        with pytest.raises(InputError, match="no column 'day' in obs; there are none"):
            cells.column("day")
    with pytest.raises(InputError, match="no layer 'raw': a 10x matrix has none; leave it out"):
        open_input(v3, layer="raw")
    with pytest.raises(InputError, match="no feature type 'Peaks'; there are: Antibody Capture, G"):
        open_input(v3, modalities={"atac": "feature_types:Peaks"})
    with pytest.raises(
        InputError, match="'obsm:x' is not understood here; write feature_types:TYP"
    ):
        open_input(v3, modalities={"adt": "obsm:x"})


def test_cell_ranger_2(dense: Any, tmp_path: Path) -> None:
    with open_input(v2(tmp_path / "one.h5", ["GRCh38"])) as cells:
        assert cells.genes.ids == tuple(f"GRCh38_{id}" for id in IDS)
        assert (cells.genes.kind, cells.genes.symbols) == ("ensembl", tuple(SYMBOLS))
        np.testing.assert_array_equal(dense(cells), counts())
    path = v2(tmp_path / "two.h5", ["GRCh38", "mm10"])
    with pytest.raises(
        InputError, match="^two.h5: holds several genomes; name one as layer: GRCh38, mm10"
    ):
        open_input(path)
    with pytest.raises(InputError, match="no genome 'mm9'; there are: GRCh38, mm10"):
        open_input(path, layer="mm9")
    with open_input(path, layer="mm10") as cells:
        assert cells.genes.ids[0].startswith("mm10_")
    with pytest.raises(InputError, match="modality adt: the input has no feature types"):
        open_input(path, layer="mm10", modalities={"adt": "feature_types:Antibody Capture"})


def write_text(path: Path, text: str) -> None:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mtx_folder(
    folder: Path, zipped: bool = True, prefix: str = "", field: str = "integer", old: bool = False
) -> Path:
    folder.mkdir(parents=True)
    end = ".gz" if zipped else ""
    plain = folder / "plain.mtx"
    scipy.io.mmwrite(plain, sp.coo_matrix(counts().T.astype(float if field == "real" else int)))
    write_text(folder / f"{prefix}matrix.mtx{end}", plain.read_text())
    plain.unlink()
    kind = "" if old else "\tGene Expression"
    lines = [f"{id}\t{symbol}{kind}\n" for id, symbol in zip(IDS, SYMBOLS, strict=True)]
    write_text(folder / f"{prefix}{'genes' if old else 'features'}.tsv{end}", "".join(lines))
    write_text(folder / f"{prefix}barcodes.tsv{end}", "\n".join(BARCODES) + "\n")
    return folder


@pytest.mark.parametrize(
    ("zipped", "prefix", "field", "old"),
    [
        (True, "", "integer", False),
        (False, "", "integer", True),
        (True, "GSM1_donor_", "integer", False),
        (False, "", "real", False),
    ],
)
def test_mtx_folder(
    dense: Any,
    tmp_path: Path,
    zipped: bool,
    prefix: str,
    field: str,
    old: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("concerto_tf.records.inputs.from_10x.ENTRIES_PER_SLAB", 5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = mtx_folder(tmp_path / "donor2/filtered_feature_bc_matrix", zipped, prefix, field, old)
    with open_input(folder) as cells:
        assert (cells.genes.ids, cells.genes.symbols) == (tuple(IDS), tuple(SYMBOLS))
        np.testing.assert_array_equal(dense(cells), counts())
        assert cells.chunk(0, 1)["rna"].dtype == (np.int64 if field == "integer" else np.float64)
        assert cells.barcodes(0, 2) == BARCODES[:2]
        assert (cells.name, cells.stem) == ("filtered_feature_bc_matrix", "donor2")
    # The copy sorted by cell is gone.
    assert [path.name for path in tmp_path.iterdir()] == ["donor2"]
    (matrix,) = folder.glob("*matrix.mtx*")
    with open_input(matrix) as cells:
        np.testing.assert_array_equal(dense(cells), counts())


def test_mtx_entries_in_any_order(dense: Any, tmp_path: Path) -> None:
    folder = mtx_folder(tmp_path / "in", zipped=False)
    head, size, *entries = [
        line for line in (folder / "matrix.mtx").read_text().splitlines() if line[:2] != "%"
    ]
    entries = np.random.default_rng(1).permutation(entries).tolist()
    (folder / "matrix.mtx").write_text("\n".join([head, "% note", "", size, *entries]))
    with open_input(folder) as cells:
        np.testing.assert_array_equal(dense(cells), counts())


def test_protein_in_an_mtx_folder(dense: Any, tmp_path: Path) -> None:
    folder = mtx_folder(tmp_path / "in")
    kinds = ["Gene Expression"] * 5 + ["Antibody Capture"] * 2
    lines = [f"{i}\t{s}\t{k}" for i, s, k in zip(IDS, SYMBOLS, kinds, strict=True)]
    write_text(folder / "features.tsv.gz", "\n".join(lines))
    with open_input(folder, modalities={"adt": "feature_types:Antibody Capture"}) as cells:
        np.testing.assert_array_equal(dense(cells), counts()[:, :5])
        np.testing.assert_array_equal(dense(cells, "adt"), counts()[:, 5:])


@pytest.mark.parametrize("missing", ["barcodes", "features", "matrix"])
def test_a_file_of_the_three_is_missing(tmp_path: Path, missing: str) -> None:
    folder = mtx_folder(tmp_path / "in", zipped=False)
    (path,) = folder.glob(f"{missing}*")
    path.unlink()
    message = {
        "barcodes": r"no barcodes.tsv\[.gz\] beside the matrix",
        "features": r"no features.tsv\[.gz\] or genes.tsv\[.gz\] beside the matrix",
        "matrix": r"a folder without a matrix.mtx or matrix.mtx.gz \(it holds: barcodes.tsv, feat",
    }[missing]
    with pytest.raises(InputError, match=f"^in: {message}"):
        open_input(folder)


def test_two_matrices_in_a_folder(tmp_path: Path) -> None:
    folder = mtx_folder(tmp_path / "in")
    write_text(folder / "b_matrix.mtx.gz", "")
    with pytest.raises(InputError, match="several matrices .*: b_matrix.mtx.gz, matrix.mtx.gz"):
        open_input(folder)


HEAD = "%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the matrix's header cannot be read"),
        (
            "%%MatrixMarket matrix array real general\n7 11\n",
            "it is not a general coordinate matrix",
        ),
        ("%%MatrixMarket matrix coordinate pattern general\n7 11 1\n1 1\n", "values are pattern"),
        (HEAD + "% only this\n", "the matrix's header cannot be read"),
        (
            HEAD + "8 11 1\n1 1 1\n",
            "has 8 genes x 11 cells where there are 7 features and 11 barco",
        ),
        (HEAD + "7 11 3\n1 1 1\n2 1 1\n", "2 entries where 3 are announced; the file is truncated"),
        (HEAD + "7 11 2\n1 1 1\n2 1\n", "cannot be read .*; the file is damaged"),
        (HEAD + "7 11 1\n1 1 x\n", "cannot be read .*; the file is damaged"),
        (HEAD + "7 11 1\n8 1 1\n", "an entry names gene 8 of 7; the file is damaged"),
        (HEAD + "7 11 1\n0 1 1\n", "an entry names gene 0 of 7; the file is damaged"),
        (HEAD + "7 11 1\n", "0 entries where 1 are announced; the file is truncated"),
    ],
)
def test_damaged_mtx(tmp_path: Path, text: str, message: str) -> None:
    folder = mtx_folder(tmp_path / "in", zipped=False)
    (folder / "matrix.mtx").write_text(text)
    with pytest.raises(InputError, match=f"^in: .*{message}"):
        open_input(folder)


@pytest.mark.parametrize("name", ["matrix.mtx.gz", "features.tsv.gz"])
def test_truncated_gzip(tmp_path: Path, name: str) -> None:
    folder = mtx_folder(tmp_path / "in")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"^in: {name} cannot be read .*; the file is damaged"):
        open_input(folder)


def test_negative_and_nan_in_mtx(tmp_path: Path) -> None:
    folder = mtx_folder(tmp_path / "in", zipped=False)
    for value, message in [("-2", r"a negative value \(-2\)"), ("nan", "NaN")]:
        text = "%%MatrixMarket matrix coordinate real general\n7 11 1\n2 3 " + value
        (folder / "matrix.mtx").write_text(text)
        with open_input(folder) as cells:
            with pytest.raises(
                InputError, match=f"in: {message} in matrix.mtx, cell 'ACGT2-1', gene 'CD4'"
            ):
                cells.chunk(0, N_CELLS)


def test_an_mtx_without_entries(tmp_path: Path) -> None:
    folder = mtx_folder(tmp_path / "in", zipped=False)
    (folder / "matrix.mtx").write_text(HEAD + "7 11 0\n")
    with open_input(folder) as cells:
        assert cells.chunk(0, N_CELLS)["rna"].nnz == 0
