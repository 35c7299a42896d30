"""What every public call checks before it does anything: types of options, inputs and outputs.

Nothing that a call writes takes the place of what it reads, or of a model's or records' file. What
is neither a file nor a folder would be waited for without end.
"""

from __future__ import annotations

import functools
import inspect
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from concerto_tf._paths import as_path, is_remote, is_zarr
from concerto_tf.errors import InputError

_P = ParamSpec("_P")
_R = TypeVar("_R")
#: Arguments that name what is written.
_OUTPUTS = ("out", "figure")
#: Types of options by their annotation, and what they are called.
_TYPES: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool | np.bool_, "True or False"),
    "str": (str, "text"),
}
#: What marks a folder, what lies there is called, and which files in it are its own.
_OWN = {
    "manifest.json": ("records", ("manifest.json", "vocabulary*.tsv", "shard-*.tfrecord*")),
    "plan.json": ("records", ("plan.json", "shard-*.tfrecord*")),
    "model.keras": ("a model", ("model.keras", "training.json", "training.csv", "MODEL_CARD.md")),
    "reference.json": ("a reference", ("reference.json", "*.npy")),
    "saved_model.pb": ("an exported model", ("*.pb", "MODEL_CARD.md")),
    "run.json": ("a run", ("run.json", "metrics.json")),
}


def checked(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a call refuse options of another type than it says, and outputs that replace inputs.

    What it writes are its arguments `out` and `figure`; all others that are names of files are
    what it reads. Files of models, records, references and runs are never written over.

    Args:
        call: A public function; numbers, texts and truth values among its arguments are told by
            their annotations.

    Example:
        >>> import tempfile
        >>> @checked
        ... def double(cells, out=None):
        ...     pass
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     double(file.name, file.name)
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: ...: is read by this very call and would be lost; ...
    """
    signature = inspect.signature(call)
    kinds = {name: str(one.annotation) for name, one in signature.parameters.items()}

    @functools.wraps(call)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return call(*args, **kwargs)  # which says it better
        for name, value in given.items():
            _check_type(name, value, kinds[name])
        written = [(name, given[name]) for name in _OUTPUTS if given.get(name) is not None]
        read = [path for name, held in given.items() if name not in _OUTPUTS for path in _of(held)]
        for path in [*read, *(as_path(out) for _, out in written if isinstance(out, str | Path))]:
            check_file(path)
        for name, out in written:
            if isinstance(out, str | Path):
                _check(as_path(out), read, name)
        places = [as_path(out) for _, out in written if isinstance(out, str | Path)]
        if len(places) == 2 and _same(*places):
            raise InputError(f"{places[0]}: is to be written twice; name two files", "figure")
        return call(*args, **kwargs)

    return checked


def check_file(path: Path) -> None:
    """Raises InputError for a pipe, a socket or a device."""
    mode = None
    with suppress(OSError, ValueError):
        mode = None if is_remote(path) else path.stat().st_mode
    if mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is a pipe or a device; give a file or a folder")


def _check_type(name: str, value: Any, kind: str) -> None:
    """Raises InputError if an option has another type than its annotation says."""
    optional, kind = kind.endswith(" | None"), kind.removesuffix(" | None")
    if kind not in _TYPES or (optional and value is None):
        return
    accepted, words = _TYPES[kind]
    truth = isinstance(value, bool | np.bool_)
    if not isinstance(value, accepted) or (truth and kind != "bool"):
        raise InputError(f"{name} is {value!r}; it must be {words}", name)
    if name == "seed" and not 0 <= int(value) < 2**32:
        raise InputError(f"seed is {value!r}; it must be from 0 to {2**32 - 1}", name)


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
