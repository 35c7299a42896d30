#!/usr/bin/env python3
"""Habits of the house that no linter knows: run by `tools/lint`, by hand as `tools/checks.py`.

- No import circle, also when imports for the type checker alone count.
- No private name (one underscore in front) used from another folder.
- No file of the package above 400 lines.
- No function of more than 10 parameters in models/ and tasks/, other than the Python call of a
  command and a constructor.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "concerto_tf"
MOST_LINES = 400
MOST_PARAMETERS = 10

# What is not as it should be yet, as the checks print it without the reason. One that is no
# longer needed is an error too, so that this can only shrink.
ALLOWED = frozenset({})

# Files of cli/ whose functions are the commands.
_OF_COMMANDS = ("commands", "analysis_commands")

# Others' names, for which they give no public one.
_OF_OTHERS = {"_actions", "_asdict", "_exit", "_fields", "_flatten_layers", "_replace"}


class House:
    """The files of the package, or of a folder like it, as syntax trees.

    Args:
        root: The folder that holds the package.
        package: Its name.
    """

    def __init__(self, root: Path = ROOT, package: str = PACKAGE) -> None:
        self.package = package
        self.files = {
            path.relative_to(root): path.read_text("utf-8")
            for path in sorted((root / package).rglob("*.py"))
        }
        self.trees = {path: ast.parse(text) for path, text in self.files.items()}
        self.modules = {_module(path): path for path in self.files}

    def problems(self) -> dict[str, str]:
        """What is not as it should be: where, and what it is."""
        found: dict[str, str] = {}
        for check in (self.circles, self.private_names, self.long_files, self.long_signatures):
            found.update(check())
        return found

    def circles(self) -> Iterator[tuple[str, str]]:
        """Modules that import each other in a circle, through whichever imports."""
        graph = {name: set(self._imports(name)) for name in self.modules}
        while True:
            try:
                TopologicalSorter(graph).prepare()
            except CycleError as error:
                circle = error.args[1][::-1]  # each imports the next
                start = circle.index(min(circle))
                turned = [*circle[start:-1], *circle[:start], circle[start]]
                short = [name.removeprefix(f"{self.package}.") for name in turned]
                yield f"circle {' > '.join(short)}", "imports go round"
                graph[circle[0]].discard(circle[1])
            else:
                return

    def private_names(self) -> Iterator[tuple[str, str]]:
        """Names with an underscore that are defined in another folder only."""
        own: dict[Path, set[str]] = {}
        for path, tree in self.trees.items():
            own.setdefault(path.parent, set()).update(_defined(tree))
        for path, tree in self.trees.items():
            for line, name, certain in _used(tree, self.package, path.parent):
                if certain or name not in own[path.parent]:
                    yield f"{path}: {name}", f"line {line}: private to another folder"

    def long_files(self) -> Iterator[tuple[str, str]]:
        """Files that hold two ideas."""
        for path, text in self.files.items():
            lines = text.count("\n")
            if lines > MOST_LINES:
                yield f"{path}: length", f"{lines} lines, more than {MOST_LINES}"

    def long_signatures(self) -> Iterator[tuple[str, str]]:
        """Functions of models and tasks that want to know too much."""
        commands = self._commands()
        for path, tree in self.trees.items():
            folder = path.parts[1]
            if folder not in ("models", "tasks"):
                continue
            top = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            for node in ast.walk(tree):
                if not isinstance(node, ast.FunctionDef) or node.name == "__init__":
                    continue
                if folder == "tasks" and node.name in commands and node.name in top:
                    continue
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [of.arg for of in arguments if of.arg not in ("self", "cls")]
                if len(names) > MOST_PARAMETERS:
                    yield f"{path}: {node.name}()", f"{len(names)} parameters"

    def _commands(self) -> set[str]:
        """Names of the commands: the functions of cli/commands.py and cli/analysis_commands.py."""
        files = [Path(self.package, "cli", f"{name}.py") for name in _OF_COMMANDS]
        nodes = [node for path in files if path in self.trees for node in self.trees[path].body]
        names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        return {name for name in names if not name.startswith("_")}

    def _imports(self, module: str) -> Iterator[str]:
        path = self.modules[module]
        here = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(self.trees[path]):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = here.split(".")[: len(here.split(".")) - node.level + 1]
                base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
                # A module of this name, or a name of the package's own file.
                names = [
                    full if (full := f"{base}.{alias.name}") in self.modules else base
                    for alias in node.names
                ]
            else:
                continue
            yield from (name for name in names if name in self.modules and name != module)


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _OF_OTHERS | {"_"}


def _defined(tree: ast.Module) -> Iterator[str]:
    """Private names that a file gives to something: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self" | "cls")):
                pass
            case _:
                continue
        if _private(name):
            yield name


def _used(tree: ast.Module, package: str, folder: Path) -> Iterator[tuple[int, str, bool]]:
    """Private names that a file takes from elsewhere: line, name, whether that is sure."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=aliases) if module.startswith(package):
                for alias in aliases:
                    if _private(alias.name) and module != package:
                        near = module.rpartition(".")[0] == ".".join(folder.parts)
                        if not near and module != ".".join(folder.parts):
                            yield node.lineno, alias.name, True
            case ast.Attribute(attr=name, value=value) if _private(name):
                if not isinstance(value, ast.Name) or value.id not in ("self", "cls"):
                    if not _is_super(value):
                        yield node.lineno, name, False
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if _private(name):
                yield node.lineno, name, False


def _is_super(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and getattr(value.func, "id", "") == "super"


def main() -> int:
    problems = House().problems()
    bad = {where: what for where, what in problems.items() if where not in ALLOWED}
    stale = sorted(ALLOWED - set(problems))
    for where, what in bad.items():
        print(f"{where}: {what}")
    for where in stale:
        print(f"{where}: is as it should be; take it out of ALLOWED in tools/checks.py")
    if not bad and not stale:
        print(f"all as it should be, but for {len(ALLOWED)} exceptions")
    return int(bool(bad or stale))


if __name__ == "__main__":
    sys.exit(main())
