"""How the command line spells the arguments that a message names: as the command's options."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from concerto_tf.errors import Argument, InputError

# Arguments of the Python calls whose option has another name.
_RENAMED = {
    "cells": "input",
    "inputs": "input",
    "label_keys": "label_key",
    "modalities": "modality",
    "out": "output",
}


def spelled(argument: Argument, commands: argparse.Namespace) -> str | None:
    """An argument as the user of a command gives it.

    Args:
        argument: The argument, in Python's spelling.
        commands: What `make_parser().parse_args` returned.

    Returns:
        ``--genes all``, ``-o DIR``, ``input``; None if the command has no such option.

    Example:
        >>> from concerto_tf.cli.arguments import make_parser
        >>> asked = make_parser().parse_args(["train", "records", "-o", "model"])
        >>> spelled(Argument("genes", "all"), asked), spelled(Argument("out"), asked)
        ('--genes all', '-o MODEL')
        >>> spelled(Argument("label_keys", ["type"], of="convert"), asked)
        '--label-key type'
    """
    parser = commands.parsers[argument.of or commands.command]
    actions = {action.dest: action for action in parser._actions}
    action = actions.get(argument.name) or actions.get(_RENAMED.get(argument.name, ""))
    if action is None:
        return None
    if not action.option_strings:
        return action.dest
    option = action.option_strings[0]
    if action.nargs == 0:
        return option
    if argument.value is None:
        choices = action.choices and "|".join(map(str, action.choices))
        return f"{option} {action.metavar or choices or action.dest.upper()}"
    return " ".join(f"{option} {value}" for value in _values(argument.value))


def message(error: InputError, commands: argparse.Namespace) -> str:
    """The message of an error, with the option that mends it."""
    option = None if error.argument is None else spelled(error.argument, commands)
    return error.message if option is None else f"{error.message} ({option})"


def line(record: logging.LogRecord, commands: argparse.Namespace) -> str:
    """What a log says, with the options of the command for the arguments that it names."""
    if not isinstance(record.args, tuple):
        return record.getMessage()
    words = [
        (spelled(word, commands) or word) if isinstance(word, Argument) else word
        for word in record.args
    ]
    return str(record.msg) % tuple(words) if words else record.getMessage()


def _values(value: Any) -> list[str]:
    """What is given after an option, each time that it is given."""
    if isinstance(value, dict):
        return [f"{name}={place}" for name, place in value.items()]
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [str(value)]
