"""The floors of the package hold: import-linter's contracts in setup.cfg, and quick imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of `setup.cfg` on the package in `folder`."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package that a test may break."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "concerto_tf", tmp_path / "concerto_tf", ignore=ignore)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_contracts_hold() -> None:
    checked = lint(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


FLOORS = "A file imports only from floors below it"
NUMPY_ONLY = "Numerics, metrics and simulation need no TensorFlow"


@pytest.mark.parametrize(
    ("additions", "contract"),
    [
        ({"errors.py": "import concerto_tf.records"}, FLOORS),
        ({"losses/__init__.py": "import concerto_tf.layers"}, FLOORS),
        ({"records/__init__.py": "import concerto_tf.models"}, FLOORS),
        ({"a_file_without_a_floor.py": ""}, FLOORS),
        ({"numerics/__init__.py": "import concerto_tf.records"}, FLOORS),
        ({"numerics/__init__.py": "import keras"}, NUMPY_ONLY),
        ({"metrics/__init__.py": "import tensorflow"}, NUMPY_ONLY),
        ({"simulate/__init__.py": "import keras"}, NUMPY_ONLY),
        (
            {"errors.py": "import concerto_tf._files", "_files.py": "import concerto_tf.errors"},
            "No circles",
        ),
    ],
)
def test_contracts_catch(copy: Path, additions: dict[str, str], contract: str) -> None:
    for file, line in additions.items():
        with open(copy / "concerto_tf" / file, "a", encoding="utf-8") as handle:
            handle.write(f"\n{line}\n")
    checked = lint(copy)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert f"{contract} BROKEN" in checked.stdout


@pytest.mark.parametrize(
    "module",
    [
        "concerto_tf",
        "concerto_tf.numerics.alignment",
        "concerto_tf.numerics.spread",
        "concerto_tf.metrics",
        "concerto_tf.simulate",
    ],
)
def test_imports_no_tensorflow(module: str) -> None:
    program = f"import sys, {module}; print(*({{'tensorflow', 'keras'}} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == ""
