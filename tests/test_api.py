"""The face of the package: the names it shows, where they lead, and how quickly it imports."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import concerto_tf
from concerto_tf.cli import arguments

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("data") / "api.txt"
SUBPACKAGES = (
    "export",
    "layers",
    "losses",
    "metrics",
    "models",
    "models.extending",
    "pl",
    "records",
    "simulate",
)


def public_names() -> list[str]:
    """What users may rely on: the names of the face and those its subpackages list."""
    names = [f"concerto_tf.{name}" for name in dir(concerto_tf)]
    for package in SUBPACKAGES:
        listed = import_module(f"concerto_tf.{package}").__all__
        names += [f"concerto_tf.{package}.{name}" for name in listed]
    return sorted(names)


def test_public_names_are_those_listed() -> None:
    listed = GOLDEN.read_text("utf-8").split()
    assert public_names() == listed, (
        "public names changed: users depend on them. If it is meant, say so in CHANGELOG.md and "
        "run python tests/test_api.py > tests/data/api.txt"
    )


@pytest.mark.parametrize("name", public_names())
def test_name_is_there(name: str) -> None:
    package, _, attribute = name.rpartition(".")
    assert getattr(sys.modules[package], attribute) is not None


def test_commands_without_a_model_start_without_tensorflow() -> None:
    tasks = ("cluster", "evaluate", "score", "compare", "pseudotime", "simulate", "io.result")
    code = "; ".join(
        [
            "import sys, concerto_tf.cli.arguments",
            *(f"import concerto_tf.tasks.{name}" for name in tasks),
            "sys.exit('tensorflow' in sys.modules)",
        ]
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'concerto_tf' has no attribute 'concert'"):
        concerto_tf.concert  # noqa: B018


def test_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(concerto_tf.__file__).read_text("utf-8"))
    (guarded,) = (
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: getattr(import_module(node.module), alias.name)
        for node in guarded
        for alias in node.names
    }
    assert seen == {
        name: getattr(concerto_tf, name)
        for name in concerto_tf.__all__
        if name not in ("InputError", "__version__")
    }


def test_every_command_has_a_call() -> None:
    (commands,) = (
        action
        for action in arguments.make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert set(commands.choices) <= set(concerto_tf.__all__)


def test_import_is_quick_and_light() -> None:
    program = """
import sys, time
began = time.process_time()  # whatever else the machine is doing
import concerto_tf
seconds = time.process_time() - began
heavy = {"tensorflow", "keras", "numpy", "pandas", "scipy", "sklearn", "h5py", "anndata", "scanpy"}
print(seconds, *sorted(heavy & set(sys.modules)))
"""
    fastest = 1.0
    for _ in range(3):
        seconds, *heavy = run(program).split()
        assert heavy == []
        fastest = min(fastest, float(seconds))
    assert fastest < 0.2


def test_export_is_the_function_and_a_subpackage() -> None:
    program = """
from concerto_tf.export import export
import concerto_tf.export.saved_model
from concerto_tf.export.saved_model import export as same
import concerto_tf
print(concerto_tf.export is export is same)
"""
    assert run(program) == "True"


def run(program: str) -> str:
    """What a program of its own process prints."""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


if __name__ == "__main__":
    print(*public_names(), sep="\n")
