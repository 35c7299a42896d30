"""What every public call checks before it does anything: types of options, inputs and outputs.

Nothing that a call writes takes the place of what it reads, or of a model's or records' file. What
is neither a file nor a folder would be waited for without end.
"""

from __future__ import annotations

import functools
import inspect
import os
import stat
from collections.abc import Callable, Iterator, Mapping
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
#: Types of arguments by their annotation, and what they are called.
_TYPES: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool | np.bool_, "True or False"),
    "str": (str, "text"),
    "Path": (os.PathLike, "a path"),
    "None": (type(None), "None"),
    "Sequence": (list | tuple | np.ndarray | str, "a list"),
    "Mapping": (Mapping, "a dictionary"),
    "dict": (dict, "a dictionary"),
}
_OF_A_MODEL = ("model.keras", "training.*", "MODEL_CARD.md", "tensorboard/*")
#: What marks a folder, what lies there is called, and which files in it are its own.
_OWN = {
    "manifest.json": ("records", ("manifest.json", "vocabulary*.tsv", "shard-*.tfrecord*")),
    "plan.json": ("records", ("plan.json", "shard-*.tfrecord*")),
    "model.keras": ("a model", _OF_A_MODEL),
    "reference.json": ("a reference", ("reference.json", "*.npy")),
    "saved_model.pb": ("an exported model", ("*.pb", "MODEL_CARD.md", "variables/*", "assets/*")),
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
    kinds = {
        name: "Any" if one.annotation is one.empty else str(one.annotation)
        for name, one in signature.parameters.items()
    }

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
        places = [as_path(out) for _, out in written]
        for path in (*read, *places):
            check_file(path)
        for (name, _), out in zip(written, places, strict=True):
            _check(out, read, name)
            if name == "figure":  # a table of what it shows may lie beside it
                _check(out.with_suffix(".tsv"), read, name)
        if len(places) == 2 and _same(*places):
            raise InputError(f"{places[0]}: is to be written twice; name two files", "figure")
        return call(*args, **kwargs)

    return checked


def check_file(path: Path) -> None:
    """Raises InputError for a pipe, a socket or a device; in a folder that is read, too."""
    if is_remote(path):
        return
    _check_mode(path)
    read = (*_OWN, "matrix.mtx", "matrix.mtx.gz")
    if path.is_dir() and (is_zarr(path) or any((path / name).exists() for name in read)):
        for entry in _odd_entries(path):
            _check_mode(entry)


def _odd_entries(folder: Path | str) -> Iterator[Path]:
    """What is neither a file nor a folder within a folder, links among it."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:  # which tell what they are without being asked one by one
            if entry.is_dir(follow_symlinks=False):
                yield from _odd_entries(entry.path)
            elif not entry.is_file():
                yield Path(entry.path)


def _check_mode(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # what is not there, or cannot be a name
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is a pipe or a device; give a file or a folder")


def check_folder(folder: Path, noun: str) -> None:
    """Raises InputError where results cannot go: a file, or a folder of something else of ours.

    Args:
        folder: Where they are to go.
        noun: What they are called.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder for the {noun}", "out")
    for mark, (whose, _) in _OWN.items():
        if (folder / mark).exists():
            raise InputError(f"{folder}: is the folder of {whose}; name another folder", "out")


def _check_type(name: str, value: Any, kind: str) -> None:
    """Raises InputError if an argument has another type than its annotation says."""
    if not _fits(value, kind):
        said = [_TYPES[of][1] if of in _TYPES else of for of in map(_outer, _either(kind))]
        words = " or ".join(dict.fromkeys(said))
        raise InputError(f"{name} is {repr(value)[:80]}; it must be {words}", name)
    for text in value if isinstance(value, list | tuple) else [value]:
        _check_text(text)
    if name == "seed" and not 0 <= int(value) < 2**32:
        raise InputError(f"seed is {value!r}; it must be from 0 to {2**32 - 1}", name)


def _check_text(text: Any) -> None:
    """Raises InputError for a name that cannot be written down with the results."""
    if isinstance(text, str | os.PathLike):
        try:
            os.fsencode(text).decode()
        except UnicodeError:
            raise InputError(
                f"{os.fspath(text)!r}: is not text that UTF-8 can hold; rename it"
            ) from None


def _fits(value: Any, kind: str) -> bool:
    """Whether a value may be of the type that an annotation says."""
    kinds = _either(kind)
    if any(_is_a(value, one) for one in kinds):
        return True
    # Cells may come in several parts.
    cells = "AnnData" in kinds and isinstance(value, list | tuple)
    return cells and bool(value) and all(_fits(part, kind) for part in value)


def _is_a(value: Any, kind: str) -> bool:
    outer = _outer(kind)
    if outer == "Any":
        return True
    plain = type(value).__module__ in ("builtins", "numpy")
    if outer not in _TYPES:  # anybody's class may have the members that are asked for
        return not plain or callable(value)
    if outer == "Sequence" and not plain:
        return True  # as an index of pandas
    if not isinstance(value, _TYPES[outer][0]):
        return False
    if isinstance(value, bool | np.bool_):
        return outer == "bool"
    within = _either(kind[len(outer) + 1 : -1], ", ") if kind != outer else []
    if outer == "Sequence":
        return all(_fits(item, within[0]) for item in value)
    if within:
        return all(_fits(key, within[0]) and _fits(of, within[1]) for key, of in value.items())
    return True


def _outer(kind: str) -> str:
    return kind.partition("[")[0]


def _either(kind: str, between: str = " | ") -> list[str]:
    """The parts of an annotation, of which some may have parts of their own in brackets."""
    parts: list[str] = []
    for piece in kind.split(between):
        if parts and parts[-1].count("[") > parts[-1].count("]"):
            parts[-1] += between + piece
        else:
            parts.append(piece)
    return parts


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
        for folder in list(out.absolute().parents)[:3]:
            own = out.absolute().relative_to(folder).as_posix()
            for mark, (noun, names) in _OWN.items():
                if any(fnmatch(own, name) for name in names) and (folder / mark).exists():
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
