"""Nothing that a call writes takes the place of what it reads, or of a model's or records' file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from concerto_tf._paths import as_path, is_remote, is_zarr
from concerto_tf.errors import InputError

_P = ParamSpec("_P")
_R = TypeVar("_R")
#: Arguments that name what is written.
_OUTPUTS = ("out", "figure")
#: What marks a folder, what lies there is called, and which files in it are its own.
_OWN = {
    "manifest.json": ("records", ("manifest.json", "vocabulary*.tsv", "shard-*.tfrecord*")),
    "plan.json": ("records", ("plan.json", "shard-*.tfrecord*")),
    "model.keras": ("a model", ("model.keras", "training.json", "training.csv", "MODEL_CARD.md")),
    "reference.json": ("a reference", ("reference.json", "*.npy")),
    "saved_model.pb": ("an exported model", ("*.pb", "MODEL_CARD.md")),
    "run.json": ("a run", ("run.json", "metrics.json")),
}


def keeps_inputs(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a call refuse outputs that would replace its inputs, before it does anything.

    What it writes are its arguments `out` and `figure`; all others that are names of files are
    what it reads. Files of models, records, references and runs are never written over.

    Args:
        call: A function with an argument `out`.

    Example:
        >>> import tempfile
        >>> @keeps_inputs
        ... def double(cells, out=None):
        ...     pass
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     double(file.name, file.name)
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: ...: is read by this very call and would be lost; ...
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = signature.bind(*args, **kwargs).arguments
        written = [(name, given[name]) for name in _OUTPUTS if given.get(name) is not None]
        read = [path for name, held in given.items() if name not in _OUTPUTS for path in _of(held)]
        for name, out in written:
            if isinstance(out, str | Path):
                _check(as_path(out), read, name)
        places = [as_path(out) for _, out in written if isinstance(out, str | Path)]
        if len(places) == 2 and _same(*places):
            raise InputError(f"{places[0]}: is to be written twice; name two files", "figure")
        return call(*args, **kwargs)

    return checked


def _check(out: Path, read: list[Path], argument: str) -> None:
    for path in read:
        if _same(out, path):
            raise InputError(
                f"{out}: is read by this very call and would be lost; name another place",
                argument,
            )
        if not is_remote(path) and path.is_dir() and is_zarr(path) and _is_within(out, path):
            raise InputError(
                f"{out}: lies in {path}, which is read by this very call; name another place",
                argument,
            )
    whose = None if is_remote(out) else _owner(out)
    if whose:
        raise InputError(
            f"{out}: is a file of {whose}, which would be lost; name another place", argument
        )


def _owner(out: Path) -> str | None:
    """What a file is a part of, if it is there and a part of something of ours."""
    with suppress(OSError, ValueError):
        if not out.is_file():
            return None
        for mark, (noun, names) in _OWN.items():
            if (out.parent / mark).exists() and any(fnmatch(out.name, name) for name in names):
                return noun
        if out.suffix == ".keras":
            return "a model"
    return None


def _of(held: Any) -> Iterator[Path]:
    """The files and folders that an argument names, or that what is given is read from."""
    if isinstance(held, list | tuple):
        for item in held:
            yield from _of(item)
        return
    if not isinstance(held, str | Path):
        held = getattr(held, "path", None) or getattr(held, "filename", None)
    if isinstance(held, str | Path) and str(held):
        path = as_path(held)
        with suppress(OSError, ValueError):  # what cannot be a name
            if is_remote(path) or path.exists():
                yield path


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one file or folder."""
    if is_remote(one) or is_remote(other):
        return str(one) == str(other)
    with suppress(OSError, ValueError):
        if one.exists() and other.exists():
            return one.samefile(other)
        return one.resolve() == other.resolve()
    return False


def _is_within(out: Path, folder: Path) -> bool:
    with suppress(OSError, ValueError):
        return folder.resolve() in out.resolve().parents
    return False
