"""`tools/checks.py` catches what it is there for, and the versions that judge the code are one."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import checks

ROOT = Path(__file__).resolve().parents[2]


def problems(folder: Path, **files: str) -> set[str]:
    """What is wrong with a package of these files: a__b for a/b.py."""
    for name, text in files.items():
        path = folder / "house" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return set(checks.House(folder, "house").problems())


def test_the_package_is_as_it_should_be() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "tools" / "checks.py"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_exception_that_is_not_needed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(checks, "ALLOWED", checks.ALLOWED | {"house/a.py: length"})
    assert checks.main() == 1
    assert "house/a.py: length: is as it should be" in capsys.readouterr().out


@pytest.mark.parametrize(
    "guarded",
    ["{}", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}", "def f():\n    {}"],
    ids=["plain", "types", "later"],
)
@pytest.mark.parametrize(
    "line", ["from house.a import x", "import house.a", "from house import a", "from . import a"]
)
def test_circle(tmp_path: Path, line: str, guarded: str) -> None:
    files = {"a": "from house.b import y", "b": "", "c": "import house.a"}
    assert problems(tmp_path / "without", **files) == set()
    files["b"] = guarded.format(line)
    assert problems(tmp_path / "with", **files) == {"circle a > b > a"}


def test_two_circles(tmp_path: Path) -> None:
    files = {"a": "import house.b", "b": "import house.c", "c": "import house.a, house.d"}
    files["d"] = "import house.c"
    assert problems(tmp_path, **files) == {"circle a > b > c > a", "circle c > d > c"}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from house.low.one import _own", "_own"),
        ("from house.low import one\none._own()", "_own"),
        ("def f(thing):\n    return thing._inner", "_inner"),
        ("def f(thing):\n    return getattr(thing, '_inner')", "_inner"),
        ("def f(thing):\n    return hasattr(thing, '_inner')", "_inner"),
    ],
)
def test_private_name_of_another_folder(tmp_path: Path, line: str, name: str) -> None:
    own = "def _own(): ...\nclass One:\n    def __init__(self): self._inner = 1\n"
    assert problems(tmp_path / "far", low__one=own, high__two=line) == {
        f"house/high/two.py: {name}"
    }
    near = line.replace("house.low", "house.high")
    assert problems(tmp_path / "near", high__one=own, high__two=near) == set()


def test_private_names_that_are_ones_own(tmp_path: Path) -> None:
    own = (
        "from house._shared import f\n"
        "class One(Other):\n"
        "    def g(self): return super()._h() + self._of_base + self.__class__.__name__\n"
    )
    assert problems(tmp_path, a__one=own, _shared="def f(): ...") == set()


def test_long_file(tmp_path: Path) -> None:
    assert problems(tmp_path, a="x = 1\n" * 400) == set()
    assert problems(tmp_path, a="x = 1\n" * 401) == {"house/a.py: length"}


def test_long_signature(tmp_path: Path) -> None:
    names = ", ".join(f"a{i}" for i in range(9))
    ten, eleven = f"(self, {names}, *, b): ...\n", f"(self, {names}, *, b, c): ...\n"
    method = f"class A:\n    def f{ten}\n    def g{eleven}\n    def __init__{eleven}"
    assert problems(
        tmp_path,
        cli__commands="def train(): ...\ndef _helper(): ...",
        cli__analysis_commands="def score(): ...",
        tasks__train=f"def train{eleven}def helper{eleven}def _helper{eleven}",
        tasks__score=f"def score{eleven}",
        models__a=method,
        records__a=f"def f{eleven}",
    ) == {
        "house/tasks/train.py: helper()",
        "house/tasks/train.py: _helper()",
        "house/models/a.py: g()",
    }


def test_one_version_for_all() -> None:
    """What judges the code gives the same answer here, before a commit and anywhere else."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extra = config["options.extras_require"]["test"]
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", extra, re.MULTILINE))
    assert set(pinned) == {"import-linter", "mypy", "ruff"}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    named = dict(re.findall(r"(ruff|mypy|import-linter)==([\d.]+)", hooks))
    assert named and named.items() <= pinned.items()


def test_citation_is_of_this_version() -> None:
    from concerto_tf._version import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_files_of_trials_are_there() -> None:
    folder = ROOT / "tools" / "trials"
    named = set(
        re.findall(r"`([\w-]+\.(?:jsonl|tsv|png|py))`", (folder / "README.md").read_text("utf-8"))
    )
    assert {"quality.jsonl", "mapping.tsv"} <= named
    assert [name for name in sorted(named) if not (folder / name).exists()] == []


def test_lint_says_what_it_does() -> None:
    ran = subprocess.run(
        ["bash", ROOT / "tools" / "lint", "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0 and "--fix" in ran.stdout and "mypy" in ran.stdout
    ran = subprocess.run(
        ["bash", ROOT / "tools" / "lint", "--fast"], capture_output=True, text=True
    )
    assert ran.returncode == 2 and "--fast" in ran.stderr
