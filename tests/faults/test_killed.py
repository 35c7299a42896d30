"""Commands that are killed anywhere: run again, they end as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from concerto_tf._lock import LOCK

Victim = Callable[..., dict[str, Any]]
# What has this beginning is being written, and what is in these folders belongs to work that is
# not finished.
TEMPORARY, UNFINISHED = ".tmp-", ("spool", "checkpoint")


Content = dict[str, bytes]


def of_records(folder: Path) -> Content:
    return {path.name: path.read_bytes() for path in files_of(folder)}


def of_model(folder: Path) -> Content:
    """Weights and what is told of the training, but for how long it took."""
    content: Content = {}
    for path in files_of(folder):
        if path.name == "model.keras":
            content["model.keras"] = weights_of(path)
        elif path.name == "training.json":
            told = json.loads(path.read_text())
            for name in ("seconds", "files", "checksum"):  # which rest on when it was
                del told[name]
            content["training.json"] = json.dumps(told).encode()
    return content


def weights_of(path: Path) -> bytes:
    values: list[bytes] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values.append(name.encode() + np.asarray(item).tobytes())

    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as weights:
        with h5py.File(weights) as file:
            file.visititems(visit)
    assert len(values) > 10
    return b"".join(values)


def of_embedding(path: Path) -> Content:
    if not path.exists():
        return {}
    with h5py.File(path) as file:
        return {"X": file["X/data"][()].tobytes(), "z": file["obsm/X_concerto"][()].tobytes()}


def of_export(folder: Path) -> Content:
    """Variables and names of the files; the graph is written in another order every time."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if "variables" in path.parts else b""
        for path in files_of(folder)
    }


def files_of(folder: Path) -> list[Path]:
    """Files under their final names."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.startswith(TEMPORARY)
        and path.name not in ("plan.json", LOCK)
        and not {*path.parent.relative_to(folder.parent).parts} & {*UNFINISHED}
    ]


# Command, what it is given, its output, what is in that, and which file is written last of all.
COMMANDS: dict[str, tuple[Callable[[Path], list], str, Callable[[Path], Content], str | None]] = {
    "convert": (
        lambda given: [
            given / "cells.h5ad",
            *"--source-key batch --label-key kind --shards".split(),
            3,
        ],
        "records",
        of_records,
        "manifest.json",
    ),
    "overwrite": (
        lambda given: [given / "cells.h5ad", "--label-key", "kind", "--overwrite"],
        "records",
        of_records,
        "manifest.json",
    ),
    "train": (
        lambda given: [given / "records", "--epochs", 4, "--batch-size", 30],
        "model",
        of_model,
        "training.json",
    ),
    "embed": (lambda given: [given / "model", given / "cells.h5ad"], "out.h5ad", of_embedding, "z"),
    "export": (lambda given: [given / "model"], "served", of_export, "saved_model.pb"),
}


def points(n: int) -> list[Any]:
    """How often each command is killed; `convert` is the quickest."""
    shares = {"convert": 0.3, "overwrite": 0.2, "train": 0.2, "embed": 0.15, "export": 0.15}
    return [
        pytest.param(name, round(n * share), id=f"{name}-{n}") for name, share in shares.items()
    ]


@pytest.mark.parametrize(
    ("command", "n"),
    [*points(10), *(pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) for p in points(200))],
)
def test_killed_and_run_again(
    command: str, n: int, victim: Victim, given: Path, tmp_path: Path, count: Callable
) -> None:
    arguments, name, content, last = COMMANDS[command]
    before = {path: path.stat().st_mtime_ns for path in given.rglob("*")}

    def call(folder: Path, **when: Any) -> dict[str, Any]:
        line = [command.replace("overwrite", "convert"), *arguments(given), "-o", folder / name]
        line.append("--quiet")
        return victim(*line, folder=folder, **when)

    def prepare(folder: Path) -> None:
        folder.mkdir()
        if command == "overwrite":
            shutil.copytree(given / "records", folder / name)

    prepare(tmp_path / "whole")
    old = content(tmp_path / "whole" / name)
    undisturbed = call(tmp_path / "whole")
    assert undisturbed["code"] == 0
    whole = content(tmp_path / "whole" / name)
    assert last in whole

    rng, killed = np.random.default_rng(n), 0
    while killed < n:
        folder = tmp_path / "killed"
        prepare(folder)
        if killed % 2:
            when = {"seconds": rng.uniform(0, undisturbed["seconds"])}
        else:
            when = {"event": int(rng.integers(1, undisturbed["events"] + 1))}
        code = call(folder, **when)["code"]
        left = content(folder / name)
        if code == 0:  # done before the time was over
            assert left == whole
        else:
            assert code == -9, when
            killed += 1
            # What bears a final name is whole, and with the last of them all is.
            assert left.items() <= whole.items() | old.items(), when
            assert last not in left or left in (whole, old), when
            again = call(folder)["code"]
            if command == "export" and left:
                assert again == 2  # does not write over what is there
            else:
                assert again == 0, when
        assert content(folder / name) == whole, when
        count("harmless")
        if command not in ("embed", "export"):
            assert not [p for p in (folder / name).rglob("*") if p.name.startswith(TEMPORARY)]
            assert not any((folder / name / part).exists() for part in (*UNFINISHED, "plan.json"))
        shutil.rmtree(folder)
    # Nothing is lost of what was given.
    assert before == {path: path.stat().st_mtime_ns for path in given.rglob("*")}
