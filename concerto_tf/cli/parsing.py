"""The parser of the command line, and the types of its values."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NoReturn

from concerto_tf.cli.output import UNSUITABLE


class _Once(argparse.Action):
    """An option that takes one value and says so when it is given two."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "given twice; it takes one value")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, and takes options by their full name."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today could mean two options tomorrow.
        super().__init__(**options, allow_abbrev=False)
        self.register("action", None, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(self._values_told_apart(given), namespace)

    def _values_told_apart(self, given: list[str]) -> list[str]:
        """Leaves the words that a command needs to it, where an option may go without its value.

        argparse gives ``--vote model cells.h5ad`` the model as its value, and misses the cells.
        """
        named = self._option_string_actions
        words = sum(not action.option_strings for action in self._actions)
        open_ended, takes = None, 0
        for i, text in enumerate(given):
            option = named.get(text)
            if text == "--":
                break
            if option is not None:
                takes = 1 if option.nargs is None else 0
                if option.nargs == "?":
                    open_ended = i
            elif takes:
                takes -= 1
            elif not text.startswith("-"):
                words -= 1
        bare = open_ended is not None and words >= 0
        return [f"{text}=" if bare and i == open_ended else text for i, text in enumerate(given)]

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(UNSUITABLE)


def modality(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PLACE, as in protein=obsm:protein")
    return name, place


def vote(text: str) -> str | bool:
    """Name of a column; True without one."""
    return text or True


def option(text: str) -> tuple[str, Any]:
    """An argument of a model: a name and a number, a truth, a list, nothing or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, as in dropout=0.3")
    return name, _value(value)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return [_value(part) for part in text.split(",")] if "," in text else text


def epochs(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers, as in 3,2,1") from None


def resolution(text: str) -> float | str:
    """A number, or ``auto``."""
    return text if text == "auto" else float(text)


def threads(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)
