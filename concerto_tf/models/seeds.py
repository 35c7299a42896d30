"""Seeds of the parts of a model."""

from __future__ import annotations


class Seeds:
    """A sequence of seeds that follow from one.

    Args:
        seed: The one.
    """

    def __init__(self, seed: int) -> None:
        self._next = seed * 10_007

    def __call__(self) -> int:
        """The next seed."""
        self._next += 1
        return self._next
