"""Small cells, records and models to be harmed, and what came of every case, counted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf import Records, convert

#: What came of every case of the suite; said in one line at the end.
OUTCOMES = ("noticed", "harmless", "lost", "silent", "tracebacks", "hangs")
_counted: Counter[str] = Counter()
VICTIM = Path(__file__).with_name("victim.py")
SECONDS = 120

#: What commands are given, each made when it is first needed: its line, with names of others.
GIVEN: dict[str, list[Any]] = {
    "cells.h5ad": [],
    "genes.txt": [],
    "records": ["convert", "cells.h5ad", "--label-key", "kind", "--shards", 2],
    "model": ["train", "records", "--epochs", 1],
    "fine": ["finetune", "model", "records", "--label-key", "kind", "--epochs", 1],
    "embedded.h5ad": ["embed", "model", "cells.h5ad"],
    "clustered.h5ad": ["cluster", "embedded.h5ad"],
    "mapped.h5ad": ["map", "model", "--reference", "cells.h5ad", "--query", "cells.h5ad"]
    + ["--label-key", "kind"],
    "run": ["run", "cells.h5ad", "--epochs", 1, "--label-key", "kind"],
    "both": ["convert", "both.h5ad", "--modality", "protein=obsm:protein"],
    "both.h5ad": [],
    "model2": ["train", "both", "--epochs", 1],
}
#: Every command that writes: its line, and the name of what it writes. OUT stands for that where
#: it is begun with, or rewritten.
COMMANDS: dict[str, tuple[list[Any], str]] = {
    "convert": (["convert", "cells.h5ad", "--source-key", "batch", "--shards", 3], "records"),
    "overwrite": (["convert", "cells.h5ad", "--label-key", "kind", "--overwrite"], "records"),
    "train": (["train", "records", "--epochs", 4, "--batch-size", 30], "model"),
    "finetune": (GIVEN["fine"], "fine"),
    "run": (GIVEN["run"], "run"),
    "embed": (["embed", "model", "cells.h5ad"], "out.h5ad"),
    "annotate": (["annotate", "fine", "cells.h5ad"], "out.h5ad"),
    "map": (GIVEN["mapped.h5ad"], "out.h5ad"),
    "impute": (["impute", "model2", "--reference", "both", "--query", "cells.h5ad"], "out.h5ad"),
    "explain": (["explain", "model", "cells.h5ad", "--groupby", "kind"], "out.tsv"),
    "export": (["export", "model"], "served"),
    "cluster": (["cluster", "embedded.h5ad"], "out.h5ad"),
    "cluster run": (["cluster", "OUT", "--resolution", 2], "run"),
    "score": (["score", "cells.h5ad", "--set", "genes.txt"], "out.h5ad"),
    "pseudotime": (["pseudotime", "clustered.h5ad", "--root", "cell0"], "out.h5ad"),
    "compare": (
        ["compare", "cells.h5ad", "--condition", "batch", "--control", "a"]
        + ["--label-key", "kind", "--min-cells", 2],
        "compared",
    ),
    "simulate": (["simulate", "--cells", 40, "--genes", 60], "out.h5ad"),
    "simulate records": (["simulate", "--cells", 40, "--genes", 60], "records"),
}
#: What lies in the place of the output before.
BEGUN = {"overwrite": "records", "cluster run": "run"}
_TEMPORARY = ".tmp-"


def counts(n_cells: int = 90, n_genes: int = 30, seed: int = 0) -> AnnData:
    """Counts of two sources with labels, of which every cell has some."""
    rng = np.random.default_rng(seed)
    values = rng.poisson(0.7, (n_cells, n_genes)).astype("float32")
    values[:, 0] += 1
    obs = pd.DataFrame(
        {
            "batch": np.array(["a", "b"])[np.arange(n_cells) % 2],
            "kind": np.array(["T", "B", "NK"])[np.arange(n_cells) % 3],
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"AB{i}C" for i in range(n_genes)])
    return AnnData(sp.csr_matrix(values), obs, var)


@pytest.fixture(scope="session")
def cells() -> AnnData:
    return counts()


@pytest.fixture(scope="session", params=["none", "gzip"])
def whole(request, cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Records of three shards, plain and gzipped. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole") / "records"
    return convert(
        cells, folder, source_key="batch", label_keys=["kind"], shards=3, compression=request.param
    )


@pytest.fixture
def copied(whole: Records, tmp_path: Path) -> Callable[[], Path]:
    """Makes a fresh copy of the records, in the same place every time."""

    def copy() -> Path:
        shutil.rmtree(tmp_path / "records", ignore_errors=True)
        return Path(shutil.copytree(whole.path, tmp_path / "records"))

    return copy


class Victim:
    """The program that runs commands and kills them; see `victim.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(VICTIM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=VICTIM.parents[2],
            env={**os.environ, "PYTHONPATH": str(VICTIM.parents[2])},
        )

    def __call__(self, *arguments: Any, folder: Path, **harm: Any) -> dict[str, Any]:
        harm["rival"] = harm.get("rival") and [str(part) for part in harm["rival"]]
        order = {"arguments": [str(part) for part in arguments], "folder": str(folder), **harm}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


@pytest.fixture(scope="session")
def victim() -> Iterator[Victim]:
    started = Victim()
    yield started
    started.close()


class Late(BaseException):
    """Ends what does not end; nothing takes it for an error of a file."""


class Given:
    """A folder of what commands are given, and the lines of the commands. Not to be changed."""

    def __init__(self, folder: Path, victim: Victim) -> None:
        self.folder, self._victim = folder, victim
        self._undisturbed: dict[str, dict[str, Any]] = {}

    def __truediv__(self, name: str) -> Path:
        """The path of a part, which is made if need be."""
        path = self.folder / name
        if path.exists():
            return path
        if name == "genes.txt":
            path.write_text("AB1C\nAB2C\nAB3C\n")
        elif name in ("cells.h5ad", "both.h5ad"):
            cells = counts()
            if name == "both.h5ad":
                features = pd.DataFrame(cells.X[:, :4].toarray(), cells.obs_names, list("PQRS"))
                cells.obsm["protein"] = features
            cells.write_h5ad(path)
        else:
            told = self._victim(*self.line(GIVEN[name], path), folder=self.folder)
            assert told["code"] == 0, (name, told)
        return path

    def line(self, line: list[Any], out: Path) -> list[Any]:
        """A command line with paths for names."""
        filled = [
            out if part == "OUT" else self / part if part in GIVEN else part for part in line[1:]
        ]
        return [line[0], *filled, *([] if "OUT" in line else ["-o", out]), "--quiet"]

    def command(self, name: str, folder: Path) -> tuple[list[Any], Path]:
        """Line and output of a command that writes into a folder, which is made for it."""
        line, written = COMMANDS[name]
        folder.mkdir()
        if name in BEGUN:
            shutil.copytree(self / BEGUN[name], folder / written)
        return self.line(line, folder / written), folder / written

    def undisturbed(self, name: str) -> dict[str, Any]:
        """What the victim tells of a command that nothing happens to, with `content`."""
        if name not in self._undisturbed:
            folder = self.folder / f"whole {name}"
            line, out = self.command(name, folder)
            old = content(out)
            told = self._victim(*line, folder=folder)
            assert told["code"] == 0, (name, told)
            sizes = [path.stat().st_size for path in folder.rglob("*")]
            told |= {"content": content(out), "old": old, "largest": max(sizes)}
            shutil.rmtree(folder)
            self._undisturbed[name] = told
        return self._undisturbed[name]


@pytest.fixture(scope="session")
def given(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"), victim)


def content(out: Path) -> dict[str, bytes | str]:
    """What is there under final names, without what differs from time to time."""
    files = sorted(out.rglob("*")) if out.is_dir() else [out]
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    unfinished = {"spool", "checkpoint"}
    files = [path for path in files if not unfinished & {*path.relative_to(out.parent).parts}]
    return {
        str(path.relative_to(out.parent)): _told_by(path)
        for path in files
        if path.name != "plan.json"
        and ".changed" not in path.name
        and "tensorboard" not in path.parts
    }


def _told_by(path: Path) -> bytes | str:
    if path.suffix == ".keras":
        try:
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as weights:
                return _arrays(weights)
        except (zipfile.BadZipFile, zlib.error, OSError):
            return "damaged"
    if path.suffix == ".h5ad":
        return _arrays(path)
    if path.suffix == ".json" and path.name != "manifest.json":
        try:
            held = json.loads(path.read_text("utf-8"))
        except ValueError:
            return "damaged"
        changing = ("seconds", "files", "checksum", "cells_per_second", "peak", "version")
        return repr([(key, of) for key, of in held.items() if not key.startswith(changing)])
    if path.suffix in (".html", ".png", ".csv", ".md", ".pb"):
        return ""  # with times, or in an order of its own
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _arrays(file: Any) -> str:
    """A checksum of the arrays of an HDF5 file; what was done to it is told with times."""
    digest = hashlib.sha256()

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("uns/"):
            values = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
            held = np.asarray(values)
            digest.update(name.encode())
            digest.update(repr(held.tolist()).encode() if held.dtype == "O" else held.tobytes())

    with h5py.File(file, "r") as opened:
        opened.visititems(add)
    return digest.hexdigest()


@pytest.fixture(scope="session")
def content_of() -> Callable[[Path], dict[str, bytes | str]]:
    return content


@pytest.fixture(scope="session")
def flip() -> Callable[[Path, np.random.Generator], bytes]:
    """Flips a bit anywhere in a file, and gives what it held."""

    def harm(path: Path, rng: np.random.Generator) -> bytes:
        content = path.read_bytes()
        harmed = bytearray(content)
        harmed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(harmed)
        return content

    return harm


@pytest.fixture(scope="session")
def count() -> Callable[[str], None]:
    """Counts a case by what came of it."""

    def add(outcome: str) -> None:
        assert outcome in OUTCOMES
        _counted[outcome] += 1

    return add


@pytest.fixture(scope="session")
def judge(count: Callable[[str], None]) -> Callable[..., str]:
    """Counts what came of a command, and fails unless harm was noticed or did none.

    Its arguments are the exit code, None where the command did not end; what it said; and whether
    what it left is as it would be without any harm.
    """

    def add(code: int | None, said: str, right: Callable[[], bool] = lambda: False) -> str:
        if code is None or code == -signal.SIGKILL:
            found = "hangs"
        elif code not in (0, 2) or "Traceback" in said or "a fault of ours" in said:
            found = "tracebacks"
        elif code == 2:
            found = "noticed"
        else:
            found = "harmless" if right() else "silent"
        count(found)
        assert found in ("noticed", "harmless"), (found, code, said)
        return found

    return add


@pytest.fixture(scope="session")
def call(concerto: Callable[..., Any]) -> Callable[[list[Any]], tuple[int | None, str]]:
    """Exit code of a command in this process and what it said; None where it did not end."""

    def run(line: list[Any]) -> tuple[int | None, str]:
        def ring(*_: Any) -> None:
            raise Late

        before = signal.signal(signal.SIGALRM, ring)
        signal.alarm(SECONDS)
        try:
            answer = concerto(*line)
            return answer.code, answer.out + answer.err
        except Late:
            return None, ""
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    return run


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a process of several counted goes to the one that tells it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = dict(_counted)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _counted.update(getattr(node, "workeroutput", {}).get("faults", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line: cases, and what came of them. The goal is none of the last four."""
    if _counted:
        found = ", ".join(f"{_counted[name]} {name}" for name in OUTCOMES)
        terminalreporter.write_line(f"faults: {sum(_counted.values())} cases, {found}")
