"""The golden records: read by the package, and by what their specification says and no more."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from concerto_tf.records import Records, Vocabulary

GOLDEN = Path(__file__).parents[2] / "tfrecords" / "golden"
COUNTS = np.array(
    [
        [1, 1, 0, 0, 0, 1, 2, 1],
        [1, 1, 2, 0, 4, 3, 0, 3],
        [1, 1, 1, 1, 0, 0, 3, 2],
        [2, 0, 3, 2, 2, 300, 0, 2],
        [2, 2, 2, 0, 0, 0, 1, 1],
        [4, 1, 1, 1, 0, 2, 2, 1],
        [1, 0, 0, 0, 2, 3, 1, 0],
        [2, 0, 1, 0, 0, 0, 0, 2],
        [1, 2, 1, 0, 1, 0, 1, 0],
        [4, 0, 2, 1, 1, 1, 0, 0],
        [1, 0, 2, 1, 1, 0, 2, 0],
        [1, 1, 0, 0, 0, 2, 1, 2],
    ]
)
PROTEIN = np.array(
    [
        [15, 16, 30],
        [24, 24, 16],
        [29, 19, 26],
        [14, 17, 27],
        [24, 18, 19],
        [24, 12, 27],
        [21, 10, 14],
        [22, 26, 22],
        [17, 19, 23],
        [25, 23, 17],
        [15, 22, 21],
        [21, 10, 20],
    ]
)
BARCODES = [f"AAAC{letter}-1" for letter in "ABCDEFGHIJKL"]
DONORS = ["old", "young"] * 6
TYPES = ["T", "B", None, "T", "NK", "T"] * 2


def test_read_by_the_package() -> None:
    records = Records(GOLDEN)
    assert records.verify() == []
    assert records.n_cells == 12 and records.n_genes == 8 and records.units == "counts"
    assert records.vocabulary.symbols == (
        "CD3E",
        "CD4",
        "CD8A",
        "MS4A1",
        "NKG7",
        "LYZ",
        "GNLY",
        "PPBP",
    )
    assert records.vocabulary_of("protein") == Vocabulary(("CD3", "CD19", "CD56"))
    [batch] = records.dataset(12)
    found, protein = np.zeros((12, 8)), np.zeros((12, 3))
    for i, row in enumerate(batch["row"].numpy()):
        np.add.at(found[row], batch["genes"][i].numpy(), batch["values"][i].numpy())
        np.add.at(
            protein[row], batch["protein/genes"][i].numpy(), batch["protein/values"][i].numpy()
        )
    assert np.array_equal(found, COUNTS) and np.array_equal(protein, PROTEIN)
    obs = records.obs()
    assert obs["cell"].tolist() == BARCODES
    assert obs["source"].tolist() == DONORS
    assert obs["label/type"].tolist() == TYPES
    scaled = 1e4 * COUNTS / COUNTS.sum(1, keepdims=True)
    np.testing.assert_allclose(records.gene_stats.mean, scaled.mean(0), rtol=1e-8)


# What follows knows tfrecords/README.md alone.


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def records_of(content: bytes) -> Iterator[bytes]:
    while content:
        length, check = struct.unpack("<QI", content[:12])
        data, content = content[12 : 12 + length], content[12 + length :]
        assert masked(struct.pack("<Q", length)) == check
        assert struct.unpack("<I", content[:4])[0] == masked(data)
        yield data
        content = content[4:]


def varint(data: bytes) -> tuple[int, bytes]:
    number = shift = 0
    while True:
        byte, data = data[0], data[1:]
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (number - 2**64 if number >= 2**63 else number), data


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        tag, data = varint(data)
        assert tag & 7 == 2
        length, data = varint(data)
        yield tag >> 3, data[:length]
        data = data[length:]


def cell(data: bytes) -> dict[str, int | bytes]:
    features: dict[str, int | bytes] = {}
    [(_, entries)] = fields(data)
    for _, entry in fields(entries):
        parts = dict(fields(entry))
        [(kind, values)] = fields(parts[2])
        [(_, value)] = fields(values)
        features[parts[1].decode()] = value if kind == 1 else varint(value)[0]
    return features


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def table(path: Path) -> dict[str, list[str]]:
    header, *lines = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    return {name: [line[i] for line in lines] for i, name in enumerate(header)}


def test_read_by_the_specification() -> None:
    manifest = json.loads((GOLDEN / "manifest.json").read_text("utf-8"))
    checksum = manifest.pop("checksum")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == checksum
    assert manifest["schema_version"] == 1

    counts, protein, keys = np.zeros((12, 8)), np.zeros((12, 3)), []
    for shard in manifest["shards"]:
        content = (GOLDEN / shard["file"]).read_bytes()
        assert len(content) == shard["bytes"]
        assert hashlib.sha256(content).hexdigest() == shard["sha256"]
        cells = [cell(data) for data in records_of(content)]
        assert len(cells) == shard["n_cells"]
        per_source = np.bincount([features["source"] for features in cells], minlength=2)
        assert per_source.tolist() == shard["cells_per_source"]
        for features in cells:
            row = features["row"]
            for name, prefix, target in (("rna", "", counts), ("protein", "protein/", protein)):
                info = manifest["modalities"][name]
                genes = np.frombuffer(features[prefix + "genes"], np.dtype(info["gene_dtype"]))
                values = np.frombuffer(features[prefix + "values"], np.dtype(info["value_dtype"]))
                assert len(genes) == len(values) <= info["max_nonzeros"]
                assert (np.diff(genes.astype(int)) > 0).all()
                target[row, genes] = values
            assert features["cell"].decode() == BARCODES[row]
            assert manifest["sources"][features["source"]] == DONORS[row]
            label = features["label/type"]
            assert (None if label < 0 else manifest["labels"]["type"][label]) == TYPES[row]
            key = mix((row + 1) * 0x9E3779B97F4A7C15 % 2**64)
            assert shard["file"] == f"shard-{key * 2 >> 64:05d}-of-00002.tfrecord"
            keys.append(key)
    assert keys == sorted(keys)
    assert np.array_equal(counts, COUNTS) and np.array_equal(protein, PROTEIN)

    info = manifest["modalities"]["rna"]
    content = (GOLDEN / info["vocabulary"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == info["sha256"]
    genes = table(GOLDEN / info["vocabulary"])
    assert genes["id"][0] == "ENSG00000198851" and genes["symbol"][0] == "CD3E"
    assert [int(n) for n in genes["n_cells"]] == (COUNTS > 0).sum(0).tolist()
    scaled = 1e4 * COUNTS / COUNTS.sum(1, keepdims=True)
    np.testing.assert_allclose(np.array(genes["mean"], float), scaled.mean(0), rtol=1e-8)
    np.testing.assert_allclose(np.array(genes["variance"], float), scaled.var(0, ddof=1), rtol=1e-8)


def test_the_reader_of_the_specification_notices_damage(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    shutil.copy(GOLDEN / "shard-00000-of-00002.tfrecord", shard)
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    with pytest.raises(AssertionError):
        list(records_of(bytes(content)))
