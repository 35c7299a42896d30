"""What was done to cells, kept with them: ``uns["concerto"]`` of every `.h5ad` that a task writes.

A Python call that may write cells is decorated with `recorded`, which notes its name and its
arguments, defaults included. What an option came to that was left open is told by `taken`, by
whoever decides it. `write_h5ad` and `concerto_tf.tasks.io.result` put the note into the file. A
call within another one belongs to that: `run` clusters, and its result tells of `run` alone.

An entry holds no folder, no user and no machine: files are told by their name and checksum.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from concerto_tf._files import atomic
from concerto_tf._paths import as_path
from concerto_tf._progress import stage
from concerto_tf._version import __version__
from concerto_tf.tasks.io.checksums import sha256_of_cells

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.records.inputs.input import Input
    from concerto_tf.reference.cells import Reference

KEY, _EARLIER, _NONE = "concerto", "earlier", "none"
_ORDER = ("command", "date", "inputs", "model", "reference", "options", "seed", "versions")
#: Arguments that name cells; those that results do not rest on, or that may name a machine.
_CELLS = ("inputs", "cells", "query", "reference")
_ASIDE = (*_CELLS, "model", "out", "progress", "callbacks", "workers", "dask", "overwrite")
_PACKAGES = ("tensorflow", "scanpy", "anndata", "numpy")
# What looks like a place on this machine: from the root, from home, of a drive.
_PLACE = re.compile(r"(?:^|(?<=[\s'\"(=,]))(?:~|[A-Za-z]:)?[/\\][^\s'\",;:()]*")

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger("concerto_tf")
_now: ContextVar[Step | None] = ContextVar("step", default=None)


class Step:
    """One call of a task: what it was asked for, and what came to light since.

    Args:
        command: Name of the call.
        arguments: Its arguments by name.

    Attributes:
        arguments: Likewise; what was read in the place of an argument may be put here.
        options: What options came to that were left open.
        facts: Models, references and the like, each a dictionary.
        warnings: What was warned of so far.
        matrices: Which matrix of a file was read, by the file's name, where it is not X.
    """

    def __init__(self, command: str, arguments: Mapping[str, Any]) -> None:
        self.command, self.arguments = command, dict(arguments)
        self.options: dict[str, Any] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []
        self.matrices: dict[str, str] = {}

    @functools.cached_property
    def inputs(self) -> dict[str, dict[str, str]]:
        """The cells that were read: by their name without its folder, their role and checksum."""
        found: dict[str, dict[str, str]] = {}
        for role in _CELLS:
            given = self.arguments.get(role)
            for cells in given if isinstance(given, list | tuple) else [given]:
                with stage("checksum of what was read"):
                    name, checksum = sha256_of_cells(cells)
                if checksum:
                    taken, n = name, 1
                    while taken in found:
                        taken, n = f"{name} ({n + 1})", n + 1
                    found[taken] = {"as": "input" if role == "inputs" else role, "sha256": checksum}
                    if name in self.matrices:
                        found[taken]["matrix"] = self.matrices[name]
        return found

    def entry(self) -> dict[str, Any]:
        """All of it as `uns` takes it: text, numbers and dictionaries of these."""
        options: dict[str, Any] = {}
        for name, value in {**self.arguments, **self.options}.items():
            if name in _ASIDE:
                continue
            if is_dataclass(value) and not isinstance(value, type):
                options |= {of.name: _plain(getattr(value, of.name)) for of in fields(value)}
            else:
                options[name] = _plain(value)
        return {
            "command": self.command,
            "options": {name: of for name, of in options.items() if name != "seed"},
            "seed": options.get("seed", _NONE),
            "date": _date(),
            "versions": versions(),
            "inputs": self.inputs,
            **self.facts,
            **({"warnings": "\n".join(dict.fromkeys(self.warnings))} if self.warnings else {}),
        }


def recorded(command: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Notes a call and its arguments for the files that it writes.

    Args:
        command: Name of the command that the call is.

    Returns:
        A decorator. Calls within the call are part of it and not noted.
    """

    def decorate(call: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(call)

        @functools.wraps(call)
        def noted(*args: P.args, **kwargs: P.kwargs) -> R:
            if _now.get() is not None:
                return call(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments |= arguments.pop(name)
            step = Step(command, arguments)
            listener = _Listener(step)
            before = _now.set(step)
            _log.addHandler(listener)
            try:
                return call(*args, **kwargs)
            finally:
                _log.removeHandler(listener)
                _now.reset(before)

        return noted

    return decorate


def current() -> Step | None:
    """The call that is at work, if it is one that is noted."""
    return _now.get()


def taken(**options: Any) -> None:
    """Says what options came to that the caller left open."""
    if (step := _now.get()) is not None:
        step.options |= options


def found_out(**facts: dict[str, Any]) -> None:
    """Notes what readers of the file have to know, such as the units of values in it."""
    if (step := _now.get()) is not None:
        step.facts |= facts


def reads(**cells: Any) -> None:
    """Says which cells are read in the place of an argument."""
    if (step := _now.get()) is not None:
        step.arguments |= cells


def reads_matrix(cells: Input, say: bool = False) -> None:
    """Notes which matrix of an input is read, where it is another than X.

    Args:
        cells: The open input.
        say: Whether to log what there is to say of how it was opened, too.
    """
    for note in cells.notes if say else ():
        _log.info(note)
    step = _now.get()
    if step is not None and cells.layer not in (None, "X"):
        step.matrices[cells.name] = "raw.X" if cells.layer == "raw" else f"layers/{cells.layer}"


def uses_model(model: Any) -> None:
    """Notes the model that is asked, by its fingerprint, as `inspect` prints it."""
    if (step := _now.get()) is not None and "model" not in step.facts:
        from concerto_tf.models.fingerprint import fingerprint

        method = type(getattr(model, "encoder", model)).__name__
        step.facts["model"] = {"method": method, "fingerprint": fingerprint(model)}


def uses_reference(reference: Reference) -> None:
    """Notes the reference that is compared with, by a checksum of its embeddings and labels."""
    if (step := _now.get()) is not None:
        step.facts["reference"] = {
            "cells": reference.n_cells,
            "fingerprint": _fingerprint(reference),
        }


def with_step(before: Any) -> Any:
    """What `uns` of a file is to hold: the call at work, and what was done to the cells earlier.

    Args:
        before: What it holds so far, if anything.

    Returns:
        The entry; what is there so far where no call is noted.
    """
    if (step := _now.get()) is None:
        return before
    earlier = dict(enumerate(steps_in(before), 1))
    return {
        **step.entry(),
        **({_EARLIER: {str(n): of for n, of in earlier.items()}} if earlier else {}),
    }


def steps_in(entry: Any) -> list[dict[str, Any]]:
    """What was done to cells, the first step first.

    Args:
        entry: ``uns["concerto"]``, or None.
    """
    if not isinstance(entry, Mapping) or "command" not in entry:
        return []
    earlier = entry.get(_EARLIER, {})
    last = {key: value for key, value in entry.items() if key != _EARLIER}
    return [*(dict(earlier[n]) for n in sorted(earlier, key=int)), last]


def as_read(entry: Any) -> Any:
    """A step as a file gave it back, in Python's own types, in the order that people read."""
    if isinstance(entry, Mapping):
        order = [name for name in _ORDER if name in entry]
        order += sorted(set(entry) - set(order))
        return {name: as_read(entry[name]) for name in order}
    return entry.item() if isinstance(entry, np.generic) else entry


def in_words(step: Mapping[str, Any]) -> list[str]:
    """A step in a few lines.

    Args:
        step: One of `steps_in`.

    Example:
        >>> in_words({"command": "cluster", "date": "2026-11-30", "seed": 0,
        ...           "options": {"resolution": 0.6, "k": "none"},
        ...           "inputs": {"a.h5ad": {"as": "cells", "sha256": "12ab"}}})
        ['cluster, 2026-11-30', 'cells: a.h5ad, sha256 12ab', 'options: resolution 0.6', 'seed: 0']
    """
    lines = [f"{step['command']}, {step['date']}"]
    for name, of in step.get("inputs", {}).items():
        matrix = f", {of['matrix']}" if "matrix" in of else ""
        lines.append(f"{of['as']}: {name}{matrix}, sha256 {of['sha256']}")
    for name in ("model", "reference"):
        if name in step:
            told = [f"{key} {value}" for key, value in step[name].items()]
            lines.append(f"{name}: {', '.join(told)}")
    given = {name: of for name, of in step["options"].items() if of not in (_NONE, False, {}, "")}
    lines.append("options: " + ", ".join(f"{name} {_short(of)}" for name, of in given.items()))
    lines.append(f"seed: {step['seed']}")
    if "versions" in step:
        lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in step["versions"].items()))
    return [*lines, *(f"warning: {line}" for line in step.get("warnings", "").splitlines())]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={of}" for name, of in value.items())
    return "yes" if value is True else str(value)


def write_h5ad(adata: AnnData, out: str | Path) -> None:
    """Writes cells, whole or not at all, with what was done to them."""
    with atomic(out) as temporary:
        entry = with_step(adata.uns.get(KEY))
        if entry is not None:
            adata.uns[KEY] = entry
        adata.write_h5ad(temporary)


def versions() -> dict[str, str]:
    """Versions of what results may depend on."""
    found = {"concerto_tf": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def without_places(text: str) -> str:
    """A message without the folders of this machine: of a path its last name is left.

    Example:
        >>> without_places("/home/me/data/pbmc.h5ad: has no 'batch'")
        "pbmc.h5ad: has no 'batch'"
        >>> without_places("CD4+/CD25 T cells: 3 of 10 are unknown")
        'CD4+/CD25 T cells: 3 of 10 are unknown'
    """
    return _PLACE.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


class _Listener(logging.Handler):
    """Keeps what is warned of during a step."""

    def __init__(self, step: Step) -> None:
        super().__init__(logging.WARNING)
        self._step = step

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for value in self._step.arguments.values():
            if isinstance(value, str | Path) and os.sep in str(value):
                text = text.replace(str(value), as_path(value).name)
        self._step.warnings.append(without_places(text))


def _fingerprint(reference: Reference) -> str:
    """SHA-256 of the embeddings and the labels of a reference."""
    digest = hashlib.sha256()
    parts = [reference.embedded.unit, reference.embedded.lengths]
    for key, labels in sorted(reference.labels.items()):
        digest.update("\n".join([key, *labels.names]).encode())
        parts.append(labels.codes)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _date() -> str:
    """The time in UTC; that of SOURCE_DATE_EPOCH where the same bytes are to come out again."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now(UTC)
    return now.isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """A value as text, a number, or a dictionary of these, without the folders of files."""
    if value is None:
        return _NONE
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        path = value.startswith("~") or "://" in value or os.path.isabs(value)
        if path or (os.sep in value and os.path.exists(value)):
            return as_path(value).name
        return value
    if isinstance(value, Mapping):
        return {str(key).replace("/", "_"): _plain(of) for key, of in value.items()}
    if isinstance(value, Sequence | np.ndarray):
        return ",".join(str(_plain(of)) for of in value)
    return type(value).__name__
