"""Names as figures show them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def short_name(name: str, most: int = 40) -> str:
    """A name that takes no more room than there is."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order that people count in.

    Example:
        >>> in_order(["10", "2", "0", "T10", "T9"])
        ['0', '2', '10', 'T9', 'T10']
    """

    def parts(name: str) -> list[tuple[int, int, str]]:
        found = re.split(r"(\d+)", name)
        return [(0, int(of), "") if of.isdecimal() else (1, 0, of) for of in found if of]

    return sorted(names, key=parts)
