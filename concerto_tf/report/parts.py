"""What a page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.pl.palette import PALETTE

#: Points of a map at most; of more cells so many are drawn, chosen at random.
MOST_POINTS = 100_000
#: Places along an axis of a map: finer than a screen shows, also when zoomed.
_STEPS = 20_000
#: Numbers that color cells keep as many significant digits.
_DIGITS = 3


@dataclass(frozen=True)
class Text:
    """Paragraphs.

    Attributes:
        paragraphs: Plain text.
        tone: ``plain``, or ``warning`` for what readers must not miss.
    """

    paragraphs: Sequence[str]
    tone: str = "plain"


class Code(str):
    """Text to be typed into a terminal, for a `Table`."""


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns."""

    rows: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Headings.
        rows: Text, `Code` and numbers; numbers are aligned to the right.
        note: What to know when reading it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class CellMap:
    """Cells in two dimensions, colored by what the reader chooses.

    Attributes:
        xy: Places [n, 2].
        names: Names of the cells [n].
        colors: From `by_category` or `by_number`, by the name that the reader chooses by.
        note: What to know when looking at it.
    """

    xy: np.ndarray
    names: Sequence[str]
    colors: Mapping[str, Mapping[str, Any]]
    note: str = ""

    def __post_init__(self) -> None:
        n = len(self.xy)
        sizes = {"names": len(self.names)}
        sizes |= {name: len(of["values"]) for name, of in self.colors.items()}
        for name, size in sizes.items():
            if size != n:
                raise InputError(f"{name} has {size} values for {n} cells")

    def drawn(self) -> tuple[dict[str, Any], str]:
        """What is drawn, as JSON holds it, and the note."""
        n, note = len(self.xy), self.note
        # In random order, so that none of the sources hides the others.
        chosen = np.random.default_rng(0).permutation(n)[:MOST_POINTS]
        if n > MOST_POINTS:
            note = (
                f"{MOST_POINTS:,} of the {n:,} cells are drawn, chosen at random; everything else "
                f"on this page is of all of them. {note}"
            ).strip()
        xy = np.asarray(self.xy, float)
        low = xy.min(axis=0) if n else np.zeros(2)
        step = max(float((xy.max(axis=0) - low).max()), 1e-9) / _STEPS if n else 1.0
        places = np.round((xy[chosen] - low) / step).astype(int)
        names = np.asarray(self.names, object)[chosen]
        return {
            "kind": "map",
            "x": places[:, 0].tolist(),
            "y": places[:, 1].tolist(),
            "names": [str(name) for name in names],
            "colors": [
                {
                    **{key: value for key, value in of.items() if key != "values"},
                    "name": name,
                    "values": _taken(of["values"], chosen),
                }
                for name, of in self.colors.items()
            ],
        }, note


def by_category(codes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Cells colored by category.

    Args:
        codes: Category of each cell, int [n]; -1 where it has none.
        names: Name of each category, in the order of the legend.

    Returns:
        For `CellMap`.
    """
    codes = np.asarray(codes, int)
    return {
        "categories": [str(name) for name in names],
        "sizes": np.bincount(codes[codes >= 0], minlength=len(names)).tolist(),
        "missing": int((codes < 0).sum()),
        "shades": [PALETTE[i % len(PALETTE)] for i in range(len(names))],
        "values": codes,
    }


def by_number(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Cells colored by a number [n]; NaN where a cell has none.

    Shares and p-values are colored from 0 to 1, so that .99 does not look like the least.
    """
    values = np.asarray(values, float)
    known = values[np.isfinite(values)]
    return {"values": values, "share": bool(((known >= 0) & (known <= 1)).all())}


@dataclass(frozen=True)
class Curve:
    """A quantity over the course of something.

    Attributes:
        title: What it is.
        x: Where it was measured [n].
        y: Values [n], or by name where several are drawn.
        axis: What ``x`` is.
        note: One sentence on what is normal.
    """

    title: str
    x: np.ndarray
    y: Mapping[str, np.ndarray]
    axis: str
    note: str = ""

    def drawn(self) -> tuple[dict[str, Any], str]:
        """What is drawn, as JSON holds it, and the note."""
        lines = [
            {"name": name, "y": _numbers(of), "shade": PALETTE[i % len(PALETTE)]}
            for i, (name, of) in enumerate(self.y.items())
        ]
        kind = {"kind": "curve", "title": self.title, "axis": self.axis}
        return {**kind, "x": _numbers(self.x), "lines": lines}, self.note


@dataclass(frozen=True)
class Bars:
    """Bars side by side, a group of them for each category.

    Attributes:
        categories: Names along the axis.
        series: Heights [categories] by name.
        axis: What the heights are.
        stacked: Whether they stand upon each other.
        note: What to know when looking at it.
    """

    categories: Sequence[str]
    series: Mapping[str, np.ndarray]
    axis: str
    stacked: bool = False
    note: str = ""

    def drawn(self) -> tuple[dict[str, Any], str]:
        """What is drawn, as JSON holds it, and the note."""
        bars = [
            {"name": str(name), "y": _numbers(of), "shade": PALETTE[i % len(PALETTE)]}
            for i, (name, of) in enumerate(self.series.items())
        ]
        kind = {"kind": "bars", "axis": self.axis, "stacked": self.stacked}
        return {**kind, "x": [str(name) for name in self.categories], "bars": bars}, self.note


@dataclass(frozen=True)
class Heat:
    """Numbers as colors, in rows and columns; blue below zero and red above.

    Attributes:
        rows: Names of the rows, from above.
        columns: Names of the columns.
        values: Numbers [rows, columns]; NaN stays empty.
        axis: What they are.
        note: What to know when looking at it.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    axis: str
    note: str = ""

    def drawn(self) -> tuple[dict[str, Any], str]:
        """What is drawn, as JSON holds it, and the note."""
        values = np.asarray(self.values, float)
        there = np.abs(values[np.isfinite(values)])
        return {
            "kind": "heat",
            "axis": self.axis,
            "rows": [str(name) for name in self.rows],
            "columns": [str(name) for name in self.columns],
            "values": [_numbers(row) for row in values],
            "limit": float(there.max()) if len(there) and there.max() > 0 else 1.0,
        }, self.note


Part = Text | Facts | Table | CellMap | Curve | Bars | Heat


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: What it is about.
        lead: One or two sentences on what was done.
        figures: The few numbers that matter most, by what they are.
        sections: All else.
        foot: What made it, in a line.
    """

    title: str
    lead: str
    figures: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    foot: str = ""


def _taken(values: np.ndarray, chosen: np.ndarray) -> list[Any]:
    values = np.asarray(values)[chosen]
    return values.tolist() if values.dtype.kind in "iu" else _numbers(values)


def _numbers(values: Any) -> list[float | None]:
    """Numbers as JSON holds them: short, and None for what is none."""
    listed = np.asarray(values, float).tolist()
    return [float(f"{x:.{_DIGITS + 1}g}") if np.isfinite(x) else None for x in listed]
