"""A page as one HTML file, with all that it needs inside."""

from __future__ import annotations

import base64
import gzip
import json
import re
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

from concerto_tf._files import atomic
from concerto_tf._paths import as_path
from concerto_tf.pl.palette import MISSING_COLOR
from concerto_tf.report.parts import Bars, CellMap, Code, Curve, Heat, Page, Part, Table, Text

_HERE = Path(__file__).parent
_DRAWN = (CellMap, Curve, Bars, Heat)
#: Bytes of a page that say what it is about.
_HEAD = 4096


def write_page(page: Page, path: str | Path, about: str = "") -> None:
    """Writes a page, whole or not at all.

    Args:
        page: The page.
        path: The file.
        about: The file of results that it is about, for `about`.

    Example:
        >>> import tempfile
        >>> from concerto_tf.report import Page, Section, Table, write_page
        >>> path = Path(tempfile.mkdtemp()) / "report.html"
        >>> table = Table(["cluster", "cells"], [["0", 12], ["1", 7]])
        >>> write_page(Page("PBMC", "Clusters.", sections=[Section("Clusters", [table])]), path)
        >>> "<td>1</td>" in path.read_text()
        True
    """
    with atomic(path) as temporary:
        temporary.write_text(render(page, about), "utf-8", newline="\n")


def about(path: str | Path) -> str:
    """The file of results that a page is about; empty where it is none of ours, or says nothing."""
    with as_path(path).open("rb") as file:
        found = re.search(
            r'<meta name="about" content="([^"]*)">', file.read(_HEAD).decode("utf-8", "replace")
        )
    return "" if found is None else unescape(found[1])


def render(page: Page, about: str = "") -> str:
    """A page as HTML.

    Whatever text it is given is shown as text. The browser is told to make no request. Figures
    are drawn by plotly's script, which is inside as are the data, both compressed.

    Args:
        page: The page.
        about: The file of results that it is about.

    Returns:
        The document.
    """
    figures: list[dict[str, Any]] = []
    sections = [
        {"title": section.title, "parts": [_part(part, figures) for part in section.parts]}
        for section in page.sections
    ]
    data = json.dumps({"figures": figures, "missing": MISSING_COLOR}, separators=(",", ":"))
    return _template().render(
        page=page,
        about=about,
        sections=sections,
        style=_read("style.css"),
        script=_read("script.js") if figures else "",
        data=_packed(data) if figures else "",
        plotly=_plotly() if figures else "",
    )


def _part(part: Part, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """A part as the template takes it; what is drawn is added to the figures."""
    kind = type(part).__name__.lower()
    if isinstance(part, _DRAWN):
        drawn, note = part.drawn()
        figures.append(drawn)
        return {"kind": "figure", "of": drawn["kind"], "number": len(figures) - 1, "note": note}
    if isinstance(part, Table):
        rows = [[_cell(value) for value in row] for row in part.rows]
        return {"kind": kind, "columns": part.columns, "rows": rows, "note": part.note}
    if isinstance(part, Text):
        return {"kind": kind, "paragraphs": part.paragraphs, "tone": part.tone}
    return {"kind": kind, "rows": part.rows}


def _cell(value: Any) -> tuple[str, str]:
    """A cell of a table as text, and what kind of text it is."""
    if value is None:
        return "", ""
    if isinstance(value, Code):
        return value, "code"
    if isinstance(value, str | bool):
        return str(value), ""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}", "number"
    return ("" if value != value else f"{value:.3g}"), "number"


def _packed(text: str) -> str:
    """Text compressed, in characters that need no escaping; the same for the same text."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())


def _read(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    # Everything is escaped but our own style and script.
    room = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return room.from_string(_read("page.html"))
