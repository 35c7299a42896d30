"""The package's exceptions: what the user can mend, and what can be continued."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Argument:
    """An argument as a message names it: in Python's spelling, which the command line renders.

    Attributes:
        name: The argument's name in the Python call.
        value: What to give it; None: that is for the caller to say.
        of: The Python call that takes it, where that is another than the one that raises.

    Example:
        >>> print(Argument("genes", "all"), Argument("reference"))
        genes='all' reference=...
    """

    name: str
    value: Any = None
    of: str | None = None

    def __str__(self) -> str:
        if self.name == "import":  # a statement in Python, an option on the command line
            return f"import {self.value}"
        return f"{self.name}={'...' if self.value is None else repr(self.value)}"


class InputError(ValueError):
    """The input, an argument or a file is unsuitable, and the user can mend it.

    The message is one or two lines: what is wrong, where, and what to do about it. The command
    line prints it without a traceback and ends with exit code 2.

    Args:
        message: The message, which names no argument by its spelling.
        argument: The argument that mends it: its name, or an `Argument` with a value. Python's
            spelling follows the message in parentheses; the command line writes its own option.

    Example:
        >>> raise InputError("counts.h5ad: has no raw counts; name their layer", "layer")
        Traceback (most recent call last):
        ...
        concerto_tf.errors.InputError: counts.h5ad: has no raw counts; name their layer (layer=...)
    """

    def __init__(self, message: str, argument: str | Argument | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.argument = Argument(argument) if isinstance(argument, str) else argument

    def __str__(self) -> str:
        return self.message if self.argument is None else f"{self.message} ({self.argument})"


def choices(key: str, there: Iterable[str]) -> str:
    """Names what is there in place of what is not, the most similar first.

    Args:
        key: The name that was asked for.
        there: The names to choose from.

    Returns:
        The end of a message, as "did you mean 'cell_type'? There are: batch, cell_type".

    Example:
        >>> choices("celltype", ["batch", "cell_type"])
        "did you mean 'cell_type'? There are: batch, cell_type"
        >>> choices("celltype", [])
        'there are none'
    """
    names = [str(name) for name in there]
    if not names:
        return "there are none"
    near = difflib.get_close_matches(key.lower(), [name.lower() for name in names], n=1)
    original = next((name for name in names if near and name.lower() == near[0]), None)
    hint = f"did you mean {original!r}? T" if original else "t"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{hint}here are: {', '.join(names[:12])}{more}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for use within a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def checked_whole(name: str, value: float, least: int = 1) -> int:
    """Checks a whole number, and gives it as one.

    Args:
        name: What to call it in the message.
        value: The number.
        least: What it is at least.

    Returns:
        The number.

    Raises:
        InputError: It is none, or less.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or int(value) != value or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return int(value)


def checked_positive(name: str, value: float) -> float:
    """Checks a number above 0, and gives it as a float.

    Args:
        name: What to call it in the message.
        value: The number.

    Returns:
        The number.

    Raises:
        InputError: It is none, or not above 0.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}; it must be a number above 0")
    return float(value)


def checked_share(name: str, value: float, below_one: bool = False) -> float:
    """Checks a fraction or probability, and gives it as a float.

    Args:
        name: What to call it in the message.
        value: The number.
        below_one: Whether 1 itself is too much.

    Returns:
        The number.

    Raises:
        InputError: It lies outside [0, 1], or [0, 1).
    """
    if not isinstance(value, Real) or not 0 <= value <= 1 or (below_one and value == 1):
        raise InputError(f"{name} must lie in [0, 1{')' if below_one else ']'}, not {value!r}.")
    return float(value)


class Interrupted(RuntimeError):
    """Work was stopped from outside, and the same call continues it.

    The command line prints it without a traceback and ends with exit code 130.
    """
