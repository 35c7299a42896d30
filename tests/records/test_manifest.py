from __future__ import annotations

import json
from pathlib import Path

import pytest

from concerto_tf.errors import InputError
from concerto_tf.records.manifest import (
    FILE_NAME,
    SCHEMA_VERSION,
    Manifest,
    ModalityInfo,
    ShardInfo,
    _checksum,
)


def manifest(**changes) -> Manifest:
    content = {
        "package_version": "0.1",
        "n_cells": 5,
        "modalities": {
            "rna": ModalityInfo("vocabulary.tsv", 8, "uint16", "uint8", 4, "counts", "ef"),
        },
        "normalisation": {"target_sum": 10000, "log1p": True},
        "sources": ("a", "b"),
        "labels": {"type": ("T", "B cell")},
        "inputs": ({"name": "x.h5ad", "n_cells": 5},),
        "seed": 0,
        "compression": "none",
        "shards": (ShardInfo("s0", 2, 10, "ab", (1, 1)), ShardInfo("s1", 3, 20, "cd", (3, 0))),
        "report": {"lines": ["µ is kept"]},
        "asked": {"seed": 0, "layer": None},
    }
    return Manifest(**{**content, **changes})


def rewrite(folder: Path, change, honest: bool = True) -> None:
    """Changes the file, with a checksum that fits if honest."""
    path = folder / FILE_NAME
    content = json.loads(path.read_text("utf-8"))
    checksum = content.pop("checksum")
    change(content)
    content["checksum"] = _checksum(content) if honest else checksum
    path.write_text(json.dumps(content), "utf-8")


def test_comes_back_the_same(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    assert Manifest.load(tmp_path) == manifest()
    assert Manifest.load(tmp_path).cells_per_source == [4, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema_version=SCHEMA_VERSION + 1), "newer than schema"),
        (lambda c: c["shards"][0].update(file="../secret"), "not within the folder"),
        (lambda c: c["shards"][0].update(file="/etc/passwd"), "not within the folder"),
        (lambda c: c["shards"][0].update(file=".."), "not within the folder"),
        (lambda c: c["modalities"]["rna"].update(vocabulary="a\\b"), "not within the folder"),
        (lambda c: c["shards"][0].update(file="s1"), "a file twice"),
        (lambda c: c.update(n_cells=6), "do not add up to 6 cells"),
        (lambda c: c["shards"][0].update(n_cells=3), "s0 do not add up"),
        (lambda c: c["shards"][0].update(cells_per_source=[2]), "1 sources"),
        (lambda c: c["modalities"]["rna"].update(max_nonzeros=9), "9 nonzeros of 8 genes"),
        (lambda c: c["modalities"]["rna"].update(value_dtype="int7"), "unknown types"),
        (lambda c: c["modalities"]["rna"].update(units="apples"), "unknown units"),
        (lambda c: c["modalities"].clear(), "no modality 'rna'"),
        (lambda c: c.update(compression="zip"), "unknown compression"),
        (lambda c: c.update(coverage=[1.0, 1.5]), "shares from 0 to 1"),
        (lambda c: c.update(coverage=[1.0]), "the coverage of 1 sources"),
        (lambda c: c.pop("labels"), "expected content"),
        (lambda c: c["shards"][0].pop("sha256"), "expected content"),
        (lambda c: c.pop("schema_version"), "no manifest"),
    ],
)
def test_what_does_not_hold_together_is_refused(tmp_path: Path, change, message: str) -> None:
    manifest().save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(InputError, match=message):
        Manifest.load(tmp_path)


def test_a_change_by_hand_is_noticed(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    rewrite(tmp_path, lambda content: content["sources"].reverse(), honest=False)
    with pytest.raises(InputError, match="changed or damaged"):
        Manifest.load(tmp_path)


def test_what_a_later_minor_version_adds_is_passed_over(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    rewrite(tmp_path, lambda content: content.update(more="of the same schema"))
    assert Manifest.load(tmp_path) == manifest()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "no manifest"), ("\xff", "cannot be read")],
)
def test_not_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        Manifest.load(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no records"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        Manifest.load(tmp_path / "elsewhere")
    (tmp_path / "plan.json").touch()
    with pytest.raises(InputError, match="unfinished"):
        Manifest.load(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        Manifest.load(tmp_path / "plan.json")
