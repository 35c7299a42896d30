"""The package imports, and what it does on every system works, where Unix's own modules lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What other packages do at import is theirs; they have versions of their own for each system.
UNLIKE_UNIX = """
import ast, errno, importlib, os, pathlib, pkgutil, signal, sys

def imported(file):
    for node in ast.walk(ast.parse(pathlib.Path(file).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module

unix = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}
package = pathlib.Path("concerto_tf")
for name in sorted({name for file in package.rglob("*.py") for name in imported(file)}):
    if name.split(".")[0] not in unix | {"concerto_tf"}:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # an extra that is not installed

for name in unix:
    sys.modules[name] = None
for name in ("fork", "sched_getaffinity", "getuid", "geteuid", "killpg", "uname", "statvfs"):
    delattr(os, name)
for name in ("EDQUOT", "ESTALE"):
    delattr(errno, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGQUIT"):
    delattr(signal, name)
"""


PROGRAM = """
import io, json, logging
from contextlib import redirect_stderr
import concerto_tf
folder = pathlib.Path(sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(["concerto_tf"], "concerto_tf.")]
for name in names:
    if name.rpartition(".")[2] != "__main__":
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            if error.name.split(".")[0] in unix | {"concerto_tf"}:
                raise

from concerto_tf._files import write_json
from concerto_tf.cli import main
from concerto_tf._threads import processors
from concerto_tf.tasks.run import _peak_memory
said = []
listener = logging.Handler()
listener.emit = lambda record: said.append(record.getMessage())
log = logging.getLogger("concerto_tf")
log.addHandler(listener)
log.setLevel(logging.INFO)
memory = _peak_memory()
write_json(folder / "about.json", {"cells": 3})
with redirect_stderr(io.StringIO()) as errors:
    code = main(["convert", str(folder / "missing.h5ad"), "-o", str(folder / "records")])
print(json.dumps([names, processors(), memory, said, code, errors.getvalue()]))
"""


@pytest.fixture(scope="module")
def unlike_unix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process finds that has nothing of what only Unix has."""
    folder = tmp_path_factory.mktemp("portable")
    ran = subprocess.run(
        [sys.executable, "-c", UNLIKE_UNIX + PROGRAM, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    keys = ("modules", "processors", "memory", "said", "code", "errors")
    found = dict(zip(keys, json.loads(ran.stdout.splitlines()[-1]), strict=True))
    return found | {"written": (folder / "about.json").read_bytes()}


def test_every_module_imports(unlike_unix: dict[str, Any]) -> None:
    assert {"concerto_tf.tasks.run", "concerto_tf.cli.commands"} <= set(unlike_unix["modules"])


def test_what_cannot_be_had_is_left_out(unlike_unix: dict[str, Any]) -> None:
    assert unlike_unix["processors"] >= 1
    assert unlike_unix["memory"] == {}
    assert any("does not tell how much memory" in line for line in unlike_unix["said"])


def test_the_command_explains_itself(unlike_unix: dict[str, Any]) -> None:
    assert unlike_unix["code"] == 2
    assert "no such file" in unlike_unix["errors"]


def test_files_have_the_same_bytes_on_every_system(unlike_unix: dict[str, Any]) -> None:
    assert unlike_unix["written"] == b'{\n "cells": 3\n}\n'
