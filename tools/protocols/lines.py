"""Results as JSON lines: each is written as it comes, and a stop cuts short no more than one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_log = logging.getLogger("concerto_tf")


class Lines(dict[Any, dict[str, Any]]):
    """Results by their keys, as a file of JSON lines keeps them; what is in it is not done again.

    Args:
        path: A file with one JSON object a line; need not exist.
        key: What tells a result apart. Objects without what it looks at are passed over.
    """

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self._path, self._key = path, key
        for row in read_lines(path):
            with suppress(KeyError):
                self[key(row)] = row

    def add(self, row: dict[str, Any]) -> None:
        """Writes a result down."""
        append_line(self._path, row)
        self[self._key(row)] = row


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in their order; none where there is no file.

    Args:
        path: A file with one JSON object a line. What is no such line, as a stop leaves it, is
            passed over and named in a warning.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            _log.warning(
                "%s: line %d is no whole result, as a stop leaves it; passed over", path, number
            )
    return rows


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Adds one object to a file, on a line of its own also where the last line is cut short."""
    with open(path, "a+b") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        torn = file.read() not in (b"", b"\n")
        # One write, so that lines of two processes do not mix.
        file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
