"""A method in a package of its own: installed, trained, asked and exported by the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from concerto_tf.errors import InputError
from concerto_tf.models import METHODS, DenseModel, load_model
from concerto_tf.records import convert
from concerto_tf.simulate import SplatParams, simulate_cells

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "barlow-twins"
#: All in one process, because each imports TensorFlow anew.
COMMANDS = """
import sys, json, os
from pathlib import Path
from concerto_tf.cli import main
from concerto_tf.models.batch_model import BatchModel

BatchModel.use_xla = False  # which takes seconds for each step

folder, imported = Path(sys.argv[1]), sys.argv[2:]
os.chdir(folder)
common = [*imported, "--quiet"]
commands = [
    ["run", "cells.h5ad", "-o", "run", "--label-key", "group", "--method", "barlow-twins",
     "--epochs", "2", *common],
    ["inspect", "run/model", "--json", *common],
    ["finetune", "run/model", "run/records", "--label-key", "group", "-o", "fine", "--epochs", "2",
     *common],
    ["annotate", "fine", "cells.h5ad", "-o", "annotated.h5ad", *common],
    ["map", "run/model", "--reference", "cells.h5ad", "--query", "cells.h5ad", "--label-key",
     "group", "-o", "mapped.h5ad", *common],
    ["export", "fine", "-o", "served", *common],
]
codes = [main(command) for command in commands]
print(codes)
sys.exit(max(codes))
"""


def python(code: str, *arguments: str, path: Path | None) -> subprocess.CompletedProcess[str]:
    places = [str(place) for place in (path, ROOT) if place is not None]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("barlow")
    params = SplatParams.droplet(n_cells=150, n_genes=80, group_sizes=(1, 1), seed=3)
    simulate_cells(params).write_h5ad(folder / "cells.h5ad")
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "barlow-twins")
    how = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target"]
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "install", *how, folder, source],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def trained(cells: Path, installed: Path) -> Path:
    ran = python(COMMANDS, str(cells), path=installed)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [0] * 6
    return cells


@pytest.mark.slow
def test_an_installed_method_is_used_by_the_command_line(trained: Path) -> None:
    import anndata
    import tensorflow as tf

    assert "concerto_label" in anndata.io.read_h5ad(trained / "annotated.h5ad").obs
    assert "concerto_label" in anndata.io.read_h5ad(trained / "mapped.h5ad").obs
    assert "X_concerto" in anndata.io.read_h5ad(trained / "run" / "result.h5ad").obsm
    # What is exported needs the package no more than ours.
    served = tf.saved_model.load(str(trained / "served")).signatures["serving_default"]
    answer = served(genes=tf.constant([["Gene1", "Gene2"]]), values=tf.constant([[2.0, 1.0]]))
    assert answer["label"].shape == (1,)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["run/model", "fine"])
def test_a_missing_import_is_named(trained: Path, folder: str) -> None:
    assert "barlow-twins" not in METHODS
    with pytest.raises(InputError, match=r"no imported module.*\(import barlow_twins\)"):
        load_model(trained / folder)


@pytest.mark.slow
def test_the_command_line_imports_what_it_is_told(trained: Path, concerto) -> None:
    answer = concerto("inspect", trained / "fine")
    answer.mendable("import its module first (--import barlow_twins)")
    answer = concerto("inspect", trained / "fine", "--import", "no_such_module")
    answer.mendable("module no_such_module cannot be imported")
    code = "import sys; from concerto_tf.cli import main; sys.exit(main(sys.argv[1:]))"
    asked = ["inspect", str(trained / "fine"), "--import", "barlow_twins", "--json"]
    ran = python(code, *asked, path=EXAMPLE)  # the module alone: no entry point is installed
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["labels"] == ["Group1", "Group2"]


@pytest.mark.slow
def test_the_example_passes_its_own_test(installed: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, EXAMPLE / "tests"],
        env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout


def test_a_fault_of_a_method_is_not_said_to_be_ours(
    cells: Path, concerto, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(DenseModel):
        def __init__(self, vocabulary, **kwargs):
            super().__init__(vocabulary, backbone=(4,), **kwargs)
            raise ValueError("too late")

    monkeypatch.setitem(METHODS, "late", Late)
    convert(cells / "cells.h5ad", cells / "records")
    answer = concerto("train", cells / "records", "-o", cells / "late", "--method", "late")
    assert answer.code == 1
    whose = __name__.partition(".")[0]
    assert f"concerto: a fault of the package {whose}: ValueError: too late" in answer.err


def test_the_documentation_shows_the_example() -> None:
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    for name in ("barlow_twins.py", "pyproject.toml"):
        assert (EXAMPLE / name).read_text("utf-8") in page, f"{name} is not as in docs/extending.md"
