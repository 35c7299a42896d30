"""Output of the commands: names and values in two columns, and exit codes."""

from __future__ import annotations

import argparse
from typing import Any

# Exit codes: done, a fault of ours, the user can mend it, interrupted.
DONE, FAULT, UNSUITABLE, INTERRUPTED = 0, 1, 2, 130


def say(options: argparse.Namespace, *lines: str) -> None:
    """Prints lines, unless the user wants none or JSON."""
    if not options.quiet and not options.json:
        print(*lines, sep="\n")


def table(found: dict[str, Any]) -> str:
    """Names and values in two columns."""
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:<{width}}  {_text(value)}" for name, value in found.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
