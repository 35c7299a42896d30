"""Malformed records and models, and arguments: a line that says so, and no output left."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

HUGE = 10**15
# What takes the place of a number, a text, a list or an object in a description.
OTHERS: tuple[Any, ...] = (None, -1, 2.5, HUGE, "x", [], {}, [None], True)


def sealed(content: dict[str, Any]) -> bytes:
    """A manifest with a checksum that fits, as a forger writes it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**content, "checksum": digest}).encode()


def change(content: Any, place: str, value: Any) -> None:
    """Sets what lies at a place such as "shards/0/file"."""
    *way, last = [int(part) if part.isdecimal() else part for part in place.split("/")]
    for part in way:
        content = content[part]
    content[last] = value


# Place in the manifest, and which of OTHERS mean something there or nothing anywhere.
MANIFEST: dict[str, tuple[Any, ...]] = {
    "schema_version": (-1, True),
    "n_cells": (),
    "modalities": (),
    "modalities/rna": (),
    "modalities/rna/vocabulary": (),
    "modalities/rna/n_genes": (),
    "modalities/rna/gene_dtype": (),
    "modalities/rna/value_dtype": (),
    "modalities/rna/max_nonzeros": (),
    "modalities/rna/units": (),
    "modalities/rna/sha256": (),
    "sources": (),
    "labels": ({},),
    "inputs": ([], {}),
    "compression": (),
    "shards": (),
    "shards/0": (),
    "shards/0/file": (),
    "shards/0/n_cells": (),
    "shards/0/bytes": (),
    "shards/0/sha256": (),
    "shards/0/cells_per_source": (),
}
FORGED = [
    (place, value)
    for place, harmless in MANIFEST.items()
    for value in OTHERS
    if not any(value is x or (value == x and type(value) is type(x)) for x in harmless)
] + [
    (place, value)
    for place in ("shards/0/file", "modalities/rna/vocabulary")
    for value in ("../x", "/etc/passwd", "a/b", "..", ".", "", "C:\\x", "a\0b", "manifest.json")
]


def sampled(cases: list[Any], every: int) -> Any:
    """Some of the cases by default, and all of them where slow tests are asked for."""
    return pytest.mark.parametrize(
        "cases", [cases[::every], pytest.param(cases, marks=pytest.mark.slow)], ids=["some", "all"]
    )


@pytest.fixture(scope="module")
def places(given) -> dict[str, Path]:
    return {
        "CELLS": given / "cells.h5ad",
        "RECORDS": given / "records",
        "MODEL": given / "model",
    }


@sampled(FORGED, 12)
def test_forged_manifests_are_refused(cases: list, call, judge, places, tmp_path: Path) -> None:
    shutil.copytree(places["RECORDS"], bad := tmp_path / "records")
    whole = (bad / "manifest.json").read_text("utf-8")
    for place, value in cases:
        content = json.loads(whole)
        del content["checksum"]
        change(content, place, value)
        (bad / "manifest.json").write_bytes(sealed(content))
        judge(*call(["inspect", bad, "--verify", "--quiet"]))


def rewritten(edit: Callable[[dict[str, bytes]], Any]) -> Callable[[Path], None]:
    """Changes the members of a `.keras` file."""

    def harm(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        edit(parts)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)

    return harm


def config(place: str, value: Any) -> Callable[[Path], None]:
    def edit(parts: dict[str, bytes]) -> None:
        content = json.loads(parts["config.json"])
        change(content, place, value)
        parts["config.json"] = json.dumps(content).encode()

    return rewritten(edit)


def weights(edit: Callable[[h5py.File, list[str]], Any]) -> Callable[[Path], None]:
    """Changes the weights of a model; `edit` is given the names of the arrays, largest first."""

    def inside(parts: dict[str, bytes]) -> None:
        file = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(file, "r+") as opened:
            sizes: dict[str, int] = {}
            opened.visititems(
                lambda name, item: (
                    sizes.update({name: item.size}) if isinstance(item, h5py.Dataset) else None
                )
            )
            edit(opened, sorted(sizes, key=lambda name: -sizes[name]))
        parts["model.weights.h5"] = file.getvalue()

    return rewritten(inside)


def swap(file: h5py.File, name: str, array: Any, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, data=array, **options)


def endless(file: h5py.File, names: list[str]) -> None:
    del file[names[0]]
    file.create_dataset(names[0], (HUGE,), "f4", chunks=(1024,))


MODELS: dict[str, Callable[[Path], None]] = {
    **{
        f"{place} is {value!r}": config(place, value)
        for place in (
            "class_name",
            "registered_name",
            "config",
            "config/vocabulary",
            "config/sources",
            "config/units",
            "config/genes",
            "config/target_sum",
            "config/loss",
            "config/modality",
        )
        for value in OTHERS
        # Keras goes by the registered name, and these are arguments that a model may have.
        if (place, str(value))
        not in {("class_name", str(other)) for other in OTHERS} | {("config/genes", "None")}
        and place != "config/target_sum"
    },
    "an argument nobody knows": config("config/surprise", 1),
    "a class of Python": config("registered_name", "os>system"),
    "no config": rewritten(lambda parts: parts.pop("config.json")),
    "no weights": rewritten(lambda parts: parts.pop("model.weights.h5")),
    "config is no text": rewritten(lambda parts: parts.update({"config.json": b"\xff\xfe"})),
    "config is a list": rewritten(lambda parts: parts.update({"config.json": b"[]"})),
    "config is deep": rewritten(
        lambda parts: parts.update({"config.json": b"[" * 100_000 + b"]" * 100_000})
    ),
    "weights are text": rewritten(lambda parts: parts.update({"model.weights.h5": b"weights"})),
    "weights cut": rewritten(
        lambda parts: parts.update({"model.weights.h5": parts["model.weights.h5"][:5000]})
    ),
    "a weight is missing": weights(lambda file, names: file.pop(names[0])),
    "a weight is longer": weights(lambda file, names: swap(file, names[0], np.zeros(9))),
    "a weight is text": weights(lambda file, names: swap(file, names[0], b"weight")),
    "a weight without end": weights(endless),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@sampled(list(MODELS.items()), 12)
def test_malformed_models_are_refused(cases: list, call, judge, places, tmp_path: Path) -> None:
    for _, harm in cases:
        shutil.copytree(places["MODEL"], bad := tmp_path / "model")
        harm(bad / "model.keras")
        line = ["embed", bad, places["RECORDS"], "-o", tmp_path / "out.h5ad", "--quiet"]
        judge(*call(line))
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        # In words it may be told of, but never with a fault.
        judge(*call(["inspect", bad, "--quiet"]), lambda: True)
        shutil.rmtree(bad)


ARGUMENTS = [
    *(
        ["convert", "CELLS", *more]
        for more in (
            ["--shards", "0"],
            ["--shards", "-1"],
            ["--shards", "99"],
            ["--shards", str(HUGE)],
            ["--workers", "0"],
            ["--layer", ""],
            ["--layer", "../X"],
            ["--source-key", ""],
            ["--label-key", "\x00"],
            ["--modality", "=x"],
            ["--modality", "rna=obsm:X_spatial"],
            ["--modality", "a/b=obsm:X_spatial"],
            ["--modality", "p=obsm:../X"],
            ["--modality", "p=layer:no"],
            ["--modality", "p=nonsense"],
            ["--like", "nowhere"],
            ["--like", "CELLS"],
            ["--orthologs", "nowhere"],
            ["--orthologs", "CELLS"],
            ["--seed", "1e3"],
            ["--seed", "-1"],
            ["--compression", "lzma"],
        )
    ),
    *(
        ["train", "RECORDS", *more]
        for more in (
            ["--genes", "hvg:0"],
            ["--genes", "hvg:-5"],
            ["--genes", "hvg:x"],
            ["--genes", "nowhere"],
            ["--genes", "CELLS"],
            ["--ensemble", "0"],
            ["--ensemble", "-1"],
            ["--epochs", str(-HUGE)],
            ["--batch-size", "-1"],
            ["--learning-rate", "-inf"],
            ["--modality", "no"],
            ["--from", "nowhere"],
            ["--from", "RECORDS"],
            ["--from", "CELLS"],
            ["--preset", ""],
            ["--optimizer", ""],
        )
    ),
    *(
        ["embed", *two]
        for two in (
            ["nowhere", "CELLS"],
            ["MODEL", "nowhere"],
            ["CELLS", "MODEL"],
            ["RECORDS", "RECORDS"],
            ["MODEL", "MODEL"],
            ["MODEL", ""],
            ["", "CELLS"],
            ["MODEL", "/dev/null"],
            ["/dev/null", "CELLS"],
            ["MODEL", "CELLS\x00"],
        )
    ),
    *(["export", "MODEL", *more] for more in (["--alpha", "2"], ["--alpha", "nan"])),
]


@sampled(ARGUMENTS, 4)
def test_unsuitable_arguments_leave_nothing(
    cases: list, call, judge, places, tmp_path: Path
) -> None:
    for line in cases:
        judge(*call([*(places.get(part, part) for part in line), "-o", tmp_path / "out"]))
        assert not any(tmp_path.iterdir()), line
