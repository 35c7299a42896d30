"""What the pages of several commands say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._version import __version__
from concerto_tf.pl.naming import in_order
from concerto_tf.pl.palette import MISSING_COLOR
from concerto_tf.report import (
    CellMap,
    Code,
    Facts,
    Page,
    Section,
    Table,
    Text,
    about,
    by_category,
    by_number,
    write_page,
)
from concerto_tf.tasks.io.provenance import as_read

if TYPE_CHECKING:
    import pandas as pd

REPORT = "report.html"
#: Sources that are told one by one in a table.
_FEW_SOURCES = 4
_FOOT = "Made by concerto_tf {}. This page loads nothing from elsewhere."


def write_beside(page: Page, out: Path) -> Path:
    """Writes the page about a file of results into its folder.

    Args:
        page: The page.
        out: The file.

    Returns:
        The page's file: ``report.html``; where that is about another file, the name of ``out`` and
        ``.report.html``, as in ``cells.report.html``.
    """
    path = out.with_name(REPORT)
    if path.exists() and about(path) != out.name:
        path = out.with_name(f"{out.name.removesuffix('.h5ad')}.{REPORT}")
    write_page(page, path, about=out.name)
    return path


def page(title: str, lead: str, figures: Mapping[str, Any], sections: Sequence[Section]) -> Page:
    """A page; sections without parts are left out."""
    told = {name: _number(of) for name, of in figures.items() if of is not None}
    kept = [section for section in sections if section.parts]
    return Page(title, lead, told, kept, _FOOT.format(__version__))


def warned(texts: Iterable[str]) -> Section:
    """What was warned of, in one line or several each."""
    lines = dict.fromkeys(line for text in texts for line in str(text).splitlines())
    return Section("Warnings", [Text([line], "warning") for line in lines])


def cell_map(
    obs: pd.DataFrame,
    xy: np.ndarray,
    columns: Mapping[str, str],
    note: str = "",
    gray: str | None = None,
) -> CellMap:
    """A map of cells by columns of obs.

    Args:
        obs: Their table.
        xy: Their places [n, 2].
        columns: What a column is called on the page, by its name; those that are not there are left
            out. Numbers are colored by size, all else by category.
        note: What to know when looking at it.
        gray: A category that is no group of its own.
    """
    colors = {}
    for column, name in columns.items():
        if column in obs:
            values = obs[column]
            numeric = values.dtype.kind == "f"
            colors[name] = by_number(values.to_numpy()) if numeric else by_category(*coded(values))
            if gray in colors[name].get("categories", ()):
                colors[name]["shades"][colors[name]["categories"].index(gray)] = MISSING_COLOR
    return CellMap(xy, list(obs.index.astype(str)), colors, note)


def coded(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Codes [n], -1 where missing, and names of the categories in the order people count in."""
    column = values.astype("category").cat.remove_unused_categories()
    names = [str(name) for name in column.cat.categories]
    order = in_order(names)
    place = np.array([order.index(name) for name in names] + [-1])
    return place[column.cat.codes.to_numpy()], order


def composition(
    groups: tuple[np.ndarray, list[str]], of: tuple[np.ndarray, list[str]]
) -> list[str]:
    """The largest categories of each group's cells and their shares, as text."""
    (group, names), (code, kinds) = groups, of
    known = (group >= 0) & (code >= 0)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (group[known], code[known]), 1)
    told = []
    for row in counts:
        total = max(row.sum(), 1)
        best = [i for i in np.argsort(-row, kind="stable")[:2] if row[i] / total >= 0.1]
        told.append(", ".join(f"{kinds[i]} {100 * row[i] / total:.0f}%" for i in best))
    return told


def mixing(
    neighbours: Any,
    groups: tuple[np.ndarray, list[str]],
    sources: tuple[np.ndarray, list[str]],
    noun: str,
) -> Section:
    """How sources mix within each group of cells.

    Args:
        neighbours: Distances to the nearest cells, sparse [n, n].
        groups: Code of each cell [n] and names.
        sources: Likewise.
        noun: What the groups are.
    """
    found = np.full(len(groups[1]), np.nan)
    graph = neighbours.tocoo()
    near, other = graph.row, graph.col
    (group, names), (source, origins) = groups, sources
    same = (group[near] == group[other]) & (group[near] >= 0)
    same &= (source[near] >= 0) & (source[other] >= 0)
    near, other = near[same], other[same]
    total = np.bincount(group[near], minlength=len(names))
    apart = np.bincount(group[near], source[near] != source[other], minlength=len(names))
    counts = np.zeros((len(names), len(origins)))
    known = (group >= 0) & (source >= 0)
    np.add.at(counts, (group[known], source[known]), 1)
    n = counts.sum(axis=1)
    chance = (n**2 - (counts**2).sum(axis=1)) / np.maximum(n * (n - 1), 1)
    can = (total > 0) & (chance > 0)
    found[can] = apart[can] / total[can] / chance[can]
    shown = np.argsort(-counts.sum(axis=0), kind="stable")[:_FEW_SOURCES]
    rows = [
        [name, int(n[i]), int((counts[i] > 0).sum()), float(found[i])]
        + [f"{100 * counts[i, j] / max(n[i], 1):.0f}%" for j in shown]
        for i, name in enumerate(names)
    ]
    return Section(
        "Mixing of sources",
        [
            Text(
                [
                    "Sources are batches, donors or technologies. Within each "
                    f"{noun}, mixing compares how often a cell's nearest neighbours are of another "
                    "source with how often they would be by chance: 1 is fully mixed, 0 is apart. "
                    "Low values are normal where a state of cells belongs to one source."
                ]
            ),
            Table(
                [noun, "cells", "sources", "mixing", *(origins[j] for j in shown)],
                rows,
                f"The {len(shown)} largest of {len(origins)} sources have columns."
                if len(shown) < len(origins)
                else "",
            ),
        ],
    )


def to_try(rows: Sequence[Sequence[str]]) -> Section:
    """Questions, and the commands that answer them."""
    told = [[question, Code(command)] for question, command in rows]
    return Section("What to try next", [Table(["question", "command"], told)])


def done(steps: Sequence[Mapping[str, Any]], seconds: Mapping[str, float] | None = None) -> Section:
    """What was done, with what, and how long it took."""
    parts: list[Any] = []
    for n, raw in enumerate(steps, 1):
        step = as_read(raw)
        rows = {"command": f"{n}. {step['command']}" if len(steps) > 1 else step["command"]}
        rows["date"] = step["date"].replace("T", " ").replace("+00:00", " UTC")
        for name, of in step.get("inputs", {}).items():
            rows[of["as"] + (f" {name}" if of["as"] in rows else "")] = (
                f"{name} (SHA-256 {of['sha256']})"
            )
        for name in ("model", "reference"):
            if name in step:
                rows[name] = ", ".join(f"{key} {of}" for key, of in step[name].items())
        rows["options"] = "; ".join(f"{key} = {_told(of)}" for key, of in step["options"].items())
        rows["seed"] = str(step["seed"])
        if n == len(steps) or step["versions"] != as_read(steps[-1])["versions"]:
            rows["versions"] = ", ".join(f"{key} {of}" for key, of in step["versions"].items())
        parts.append(Facts(rows))
    if seconds:
        times = ", ".join(f"{stage} {_time(of)}" for stage, of in seconds.items())
        parts.append(Facts({"time by stage": times}))
    if parts:
        parts.append(
            Text(["Options are the values used, defaults included; none marks one not given."])
        )
    return Section("What was done", parts)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={of}" for name, of in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
