"""What is released: one version in all places, the recipe of conda, and (slow) sdist and wheel."""

from __future__ import annotations

import configparser
import json
import re
import site
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from concerto_tf import __version__
from concerto_tf.models.shipped import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "tools" / "conda" / "recipe.yaml"
DOCKERFILE = ROOT / "examples" / "Dockerfile"
#: By what name conda-forge has them.
CONDA = {"igraph": "python-igraph", "matplotlib": "matplotlib-base"}


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def test_one_version() -> None:
    places = {
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## \[(\d.+?)\]",
        "tools/conda/recipe.yaml": r"^  version: (.+)$",
    }
    for name, pattern in places.items():
        found = re.search(pattern, (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert found is not None and found[1] == __version__, name


def test_requirements_of_conda_are_those_of_pip(setup: configparser.ConfigParser) -> None:
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))["requirements"]
    python, *run = [line.split() for line in recipe["run"]]
    lines = setup["options"]["install_requires"].strip().splitlines()
    wanted = [re.match(r"([\w-]+)(.+)", line) for line in lines if not line.startswith("#")]
    assert [(CONDA.get(m[1], m[1]), m[2]) for m in wanted if m] == [tuple(line) for line in run]
    assert python == ["python", setup["options"]["python_requires"]] and python in [
        line.split() for line in recipe["host"]
    ]


def test_images_take_extras_and_a_python_that_there_are(setup: configparser.ConfigParser) -> None:
    text = DOCKERFILE.read_text("utf-8")
    named = re.findall(r'whl\)\[([^"]+)\]"', text)
    extras = {name for line in named for name in re.findall(r"[a-z]+", line)}
    assert len(named) == 2 and extras <= set(setup["options.extras_require"])
    python = re.findall(r"^ARG PYTHON=([\d.]+)$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python[0]}" in setup["metadata"]["classifiers"]
    for path in re.findall(r"^COPY ([^-\n]+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in path.split())


def test_readme_names_every_extra(setup: configparser.ConfigParser) -> None:
    for page in ("README.md", "docs/start/installation.md"):
        named = set(re.findall(r"`([\w-]+)`", (ROOT / page).read_text("utf-8")))
        assert set(setup["options.extras_require"]) <= named, page


@pytest.mark.slow
def test_sdist_and_wheel(tmp_path: Path) -> None:
    ran = subprocess.run(
        [ROOT / "tools" / "release", "--borrow", site.getsitepackages()[0], tmp_path],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert f"concerto_tf {__version__}" in lines
    labels = json.loads(next(line for line in lines if line.startswith("{")))["labels"]
    assert sum(labels.values()) == 100 and len(labels) > 3

    with tarfile.open(tmp_path / f"concerto_tf-{__version__}.tar.gz") as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
    beside = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    top = {name.partition("/")[0] for name in files}
    assert top == {"", "concerto_tf", "concerto_tf.egg-info", *beside}
    with tarfile.open(tmp_path / f"concerto_tf-{__version__}.tar.gz") as sdist:
        told = sdist.extractfile(f"concerto_tf-{__version__}/PKG-INFO")
        page = told.read().decode() if told else ""
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links and all("://" in link for link in links), "an index has no files beside README"
    assert "What next" in page and "docs/" in page
    with zipfile.ZipFile(tmp_path / f"concerto_tf-{__version__}-py3-none-any.whl") as wheel:
        installed = set(wheel.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "concerto_tf"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {f"concerto_tf/models/shipped/{name}/model.keras" for name in SHIPPED} < set(tracked)
    for name in tracked:
        assert name in installed and name in files, name
    assert {name for name in installed if ".dist-info/" not in name} == set(tracked)
