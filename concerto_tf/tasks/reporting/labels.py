"""The page about labels that cells were given, by a model or from a reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._paths import as_path, open_hdf5
from concerto_tf.expected import in_words
from concerto_tf.novelty import UNKNOWN
from concerto_tf.report import Facts, Part, Section, Table, Text
from concerto_tf.tasks.io.provenance import steps_in, without_places
from concerto_tf.tasks.io.result import what_was_done
from concerto_tf.tasks.neighbours import umap
from concerto_tf.tasks.reporting import common

if TYPE_CHECKING:
    import pandas as pd

    from concerto_tf.reference.cells import Reference

_log = logging.getLogger("concerto_tf")
#: Cells that are mapped to two dimensions for the page, at most: what takes half a minute.
MOST_MAPPED = 20_000
#: Share of unknown cells past which reasons are told.
_MUCH_UNKNOWN = 0.2
#: Groups of a vote that are told.
_GROUPS = 20
_OWN = "concerto_"
_MAP = (
    "Drag to move, scroll to zoom, double-click to see all; click names at the side to see them "
    "alone. Distances between groups are no measure of how different cells are."
)


def write_report(
    out: str | Path,
    table: pd.DataFrame,
    z: np.ndarray,
    *,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Writes the page about labels beside the file that holds them.

    Args:
        out: The `.h5ad`, written.
        table: What `annotate` or `map` returns.
        z: Embeddings of the cells [n, d].
        facts: What was compared with, by what it is.
        notes: How genes were matched, and the like.
        seed: Seed of the map.

    Returns:
        The page: ``report.html`` in the folder of ``out``, or where that is about another file,
        the name of ``out`` and ``.report.html``.
    """
    from anndata.io import read_elem

    out = as_path(out)
    steps = steps_in(what_was_done(out))
    with open_hdf5(out) as file:
        obs = read_elem(file["obs"])
        places = file.get("obsm/X_umap")
        own = None if places is None or places.shape[0] != len(obs) else np.asarray(places)[:, :2]
    last = steps[-1] if steps else {"options": {}}
    source = last["options"].get("source_key", "none")
    titles = {"concerto_label": "label", "concerto_confidence": "confidence"}
    titles |= {
        key: key.removeprefix(_OWN).replace("_", " ")
        for key in obs
        if key.startswith(("concerto_label_", "concerto_vote", "concerto_cluster"))
        and not key.endswith("_share")
    }
    titles |= {key: key for key in (source, "source") if key in obs and obs[key].nunique() > 1}
    sections = [
        common.warned(step.get("warnings", "") for step in steps[-1:]),
        Section("Map of the cells", [_map(obs, z, own, titles, seed)]),
    ]
    figures: dict[str, Any] = {"cells": len(table)}
    if "label" in table:
        unknown = (table["label"] == UNKNOWN).to_numpy()
        figures["cell types given"] = int(table["label"][~unknown].nunique())
        figures["unknown"] = f"{100 * unknown.mean() if len(table) else 0.0:.1f}%"
        if unknown.any() or len(table):
            figures["median confidence"] = float(table["confidence"].median())
        sections.append(Section("Labels", _labels(table, last["options"].get("alpha"))))
        sections.append(Section("Votes of groups", _votes(table)))
    sections += [
        Section("What it rests on", [Facts(facts), *_texts(notes)] if facts or notes else []),
        _next(out.name, steps),
        common.done(steps),
    ]
    names = [name for name, of in last.get("inputs", {}).items() if of["as"] in ("cells", "query")]
    command = last.get("command", "annotate")
    how = {
        "annotate": "labelled by a model that was taught cell types (concerto annotate)",
        "map": "labelled by reference cells (concerto map)",
    }
    done = how.get(command, command) if "label" in table else "embedded by concerto map"
    page = common.page(
        ", ".join(names) or out.name, f"{len(table):,} cells {done}.", figures, sections
    )
    return common.write_beside(page, out)


def told_of(reference: Reference, keys: Sequence[str]) -> dict[str, str]:
    """What there is to say of a reference, by what it is."""
    named = {f"labels ({key})": ", ".join(reference.labels_of(key).names) for key in keys}
    return {"reference": f"{reference.n_cells:,} cells", **named}


def _map(
    obs: pd.DataFrame, z: np.ndarray, own: np.ndarray | None, titles: Mapping[str, str], seed: int
) -> Any:
    """The cells in two dimensions: as they came, or by UMAP of a part of them."""
    if own is not None and np.isfinite(own).all():
        note = f"The UMAP is the one that the cells came with. {_MAP}"
        return common.cell_map(obs, own, titles, note, UNKNOWN)
    from anndata import AnnData

    chosen = np.sort(np.random.default_rng(seed).permutation(len(z))[:MOST_MAPPED])
    _log.info("map of %s cells for the report", f"{len(chosen):,}")
    mapped = AnnData(obsm={"X_concerto": np.asarray(z[chosen], np.float32)})
    umap(mapped, seed=seed)
    note = f"UMAP of the Concerto embedding. {_MAP}"
    if len(chosen) < len(z):
        note = f"{len(chosen):,} of the {len(z):,} cells, chosen at random. {note}"
    return common.cell_map(obs.iloc[chosen], mapped.obsm["X_umap"], titles, note, UNKNOWN)


def _labels(table: pd.DataFrame, alpha: Any) -> list[Part]:
    """Each label with its cells and how sure it is, and what is unknown."""
    unknown = table["label"] == UNKNOWN
    rows: list[list[Any]] = []
    for name, part in table.groupby("predicted", observed=True):
        given = part[part["label"] != UNKNOWN]
        rows.append(
            [
                str(name),
                len(given),
                f"{100 * len(given) / max(len(table), 1):.1f}%",
                float(given["confidence"].median()),
                float(given["confidence"].quantile(0.1)),
                len(part) - len(given),
            ]
        )
    rows.sort(key=lambda row: -row[1])
    share = float(unknown.mean()) if len(table) else 0.0
    told = [
        f"{int(unknown.sum()):,} of {len(table):,} cells ({100 * share:.1f}%) are unknown: no "
        "known type is like them."
    ]
    rates = table.attrs.get("expected") or {"known_lost": alpha}
    if isinstance(rates["known_lost"], float):
        told.append(f"To be expected at this alpha: {in_words(rates)}.")
    if share > _MUCH_UNKNOWN:
        told.append(
            "That is many. Either there are cell types that are not known, or these cells differ "
            "from the known ones as a whole: other technology, other tissue, few shared genes."
        )
    note = (
        "Confidence runs from 0 to 1: the geometric mean of a label's probability among the known "
        "types and of the novelty p-value. It orders cells; it is not the share that is right. "
        "Nearest type of unknown cells: what they would have been called."
    )
    columns = ["label", "cells", "share", "median confidence", "lowest tenth below"]
    parts: list[Part] = [Text(told), Table([*columns, "unknown, nearest to it"], rows, note)]
    sets = table.attrs.get("sets")
    if sets and sets["mean_size"]:
        parts.append(
            Text(
                [
                    f"Sets of types that cannot be excluded hold {sets['mean_size']:.2f} types on "
                    f"average; {100 * sets['coverage']:g}% of cells like the known ones have their "
                    "type in it (column concerto_set)."
                ]
            )
        )
    return parts


def _votes(table: pd.DataFrame) -> list[Part]:
    """What the groups of a vote are called."""
    rows = table.attrs.get("vote") or []
    if not rows:
        return []
    shown = [
        [
            str(row["group"]),
            int(row["cells"]),
            str(row["label"]),
            f"{100 * row['share']:.0f}%",
            row["expected_error"],
        ]
        for row in rows[:_GROUPS]
    ]
    note = (
        "Expected error: one minus the mean probability that the group's cells give to the label."
    )
    if len(rows) > _GROUPS:
        note = f"The largest {_GROUPS} of {len(rows)} groups. {note}"
    return [Table(["group", "cells", "label of most", "agree", "expected error"], shown, note)]


def _next(name: str, steps: Sequence[Mapping[str, Any]]) -> Section:
    """Commands that lead on from here."""
    command = steps[-1]["command"] if steps else "annotate"
    again = "concerto map" if command == "map" else "concerto annotate"
    voted = bool(steps and steps[-1]["options"].get("vote", False))
    vote = ["One label for each group of alike cells", f"{again} ... --vote"]
    return common.to_try(
        [
            *([] if voted else [vote]),
            ["Fewer or more unknown cells", f"{again} ... --alpha X (a smaller X: fewer)"],
            [
                "Clusters among these cells, also the unknown ones",
                f"concerto cluster {name} -o clustered.h5ad",
            ],
            [
                "What differs between conditions, type by type",
                f"concerto compare {name} --condition COLUMN --control VALUE -o compared",
            ],
            ["All of it in Python", f'scanpy.read_h5ad("{name}")'],
        ],
    )


def _texts(notes: Sequence[str]) -> list[Part]:
    lines = [without_places(str(line)) for line in dict.fromkeys(notes)]
    return [Text(lines)] if lines else []
