"""The page about a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.pl.figures import history_columns
from concerto_tf.records import Records
from concerto_tf.report import Curve, Facts, Part, Section, Table, Text, write_page
from concerto_tf.tasks.io.embedded import open_embedded
from concerto_tf.tasks.io.provenance import KEY, steps_in, without_places
from concerto_tf.tasks.io.run_folder import RECORDS, RESULT
from concerto_tf.tasks.markers import MARKERS, marker_table
from concerto_tf.tasks.reporting import common

if TYPE_CHECKING:
    import pandas as pd

_CLUSTER = "concerto_cluster"
_MARKERS_SHOWN = 6
#: What is drawn of a training: column, title, and what is normal.
_CURVES = (
    ("loss", "Loss", "Normal: it falls quickly, then levels off."),
    (
        "alignment",
        "Alignment",
        "How far apart two views of one cell are. Normal: it falls or stays level.",
    ),
    (
        "uniformity",
        "Uniformity",
        "How evenly cells spread; lower is more even. Normal: it falls, then levels off.",
    ),
    (
        "effective_rank",
        "Effective rank",
        "Dimensions that the embedding uses. Normal: well above 1, where all cells look alike.",
    ),
)
#: What is told of the agreement with labels, and of mixing.
_SCORES = {
    "ari_clusters": "Agreement of the clusters with the labels (adjusted Rand index; 1 is equal)",
    "nmi_clusters": "The same as normalized mutual information",
    "knn_accuracy": "Cells whose label their nearest neighbours tell (held out in turn)",
    "asw_label": "Silhouette of the labels (-1 to 1)",
    "ari_leiden": "Best agreement of ten resolutions (uses the labels)",
    "kbet": "kBET: neighbourhoods with the sources of the whole (1 is mixed)",
    "ilisi": "iLISI: mixing of sources (1 is mixed)",
    "cilisi": "CiLISI: mixing of sources within labels (1 is mixed)",
    "graph_connectivity": "Labels that hang together in the neighbour graph (1 is all)",
}


def write_report(
    folder: Path,
    asked: Mapping[str, Any],
    metrics: Mapping[str, Any],
    records: Records | None = None,
) -> None:
    """Writes the page about a run into its folder.

    Args:
        folder: The folder, with all results but ``metrics.json``.
        asked: What was asked for: ``source_key`` and ``label_key`` among it.
        metrics: What ``metrics.json`` is to hold.
        records: Those in the folder, where they are open.
    """
    adata = open_embedded(folder / RESULT, backed=True)
    try:
        obs, steps = adata.obs, steps_in(adata.uns.get(KEY))
        label, source = asked.get("label_key"), _source(obs, asked)
        label = label if label in obs else None
        if records is None and (folder / RECORDS).is_dir():
            records = Records(folder / RECORDS)
        clusters = common.coded(obs[_CLUSTER])
        titles = {_CLUSTER: "cluster"} | {key: str(key) for key in (label, source) if key}
        further = [key for key in obs if key.startswith(f"{_CLUSTER}_")]
        titles |= {key: key.removeprefix("concerto_").replace("_", " ") for key in further}
        sections = [
            common.warned(step.get("warnings", "") for step in steps),
            Section("Map of the cells", [_map(obs, adata.obsm["X_umap"], titles)]),
            _clusters(obs, clusters, label, further, adata.uns.get(MARKERS)),
        ]
        if source and "distances" in adata.obsp:
            groups = common.coded(obs[label]) if label else clusters
            noun = str(label) if label else "cluster"
            near, of = adata.obsp["distances"], common.coded(obs[source])
            sections.append(common.mixing(near, groups, of, noun))
        found = {
            told: f"{metrics[key]:.3f}"
            for key, told in _SCORES.items()
            if isinstance(metrics.get(key), float)
        }
        sections += [
            Section("Scores", [Facts(found)] if found else []),
            Section("Training", _training(folder / "model")),
            Section("Cells and genes", _data(records, metrics, steps)),
            _next(folder.absolute().name, asked, label, source),
            common.done(steps, _seconds(metrics)),
        ]
        names = list(steps[0].get("inputs", {})) if steps else []
        figures = {
            "cells": int(metrics["cells"]),
            "genes": int(metrics["genes"]),
            "clusters": len(clusters[1]),
            "sources": len(common.coded(obs[source])[1]) if source else None,
            "cell types (labels)": len(common.coded(obs[label])[1]) if label else None,
        }
        lead = (
            f"{int(metrics['cells']):,} cells embedded, clustered and mapped to two dimensions by "
            f"concerto run."
        )
        title = ", ".join(names) or "concerto run"
        page = common.page(title, lead, figures, sections)
        write_page(page, folder / common.REPORT, about=RESULT)
    finally:
        if adata.isbacked:
            adata.file.close()


def _source(obs: pd.DataFrame, asked: Mapping[str, Any]) -> str | None:
    """The column that tells sources; that of the inputs where they are several."""
    for key in (asked.get("source_key"), "concerto_input"):
        if key is not None and key in obs and obs[key].nunique() > 1:
            return str(key)
    return None


def _map(obs: pd.DataFrame, xy: np.ndarray, titles: Mapping[str, str]) -> Any:
    note = (
        "UMAP of the Concerto embedding. Drag to move, scroll to zoom, double-click to see all; "
        "click names at the side to see them alone. Distances between groups and sizes of gaps are "
        "no measure of how different cells are."
    )
    return common.cell_map(obs, np.asarray(xy), titles, note)


def _clusters(
    obs: pd.DataFrame,
    clusters: tuple[np.ndarray, list[str]],
    label: str | None,
    further: Sequence[str],
    markers: Any,
) -> Section:
    """Clusters with sizes, what else is known of them, and genes that mark them."""
    codes, names = clusters
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    columns: dict[str, list[Any]] = {
        "cluster": list(names),
        "cells": sizes.tolist(),
        "share": [f"{100 * size / max(len(codes), 1):.1f}%" for size in sizes],
    }
    for key in further:
        if obs[key].dtype.kind == "f":
            means = obs[key].groupby(obs[_CLUSTER].astype(str)).mean()
            columns[key.removeprefix(f"{_CLUSTER}_")] = [float(means[name]) for name in names]
    notes = ["Clusters are numbered by size."]
    if "support" in columns:
        notes.append(
            "Support says how well a cluster differs from its nearest one in held-out genes: near "
            "1 it does, about 0.5 to 0.65 both are pieces of one cell type."
        )
    if label:
        columns[f"mostly ({label})"] = common.composition(clusters, common.coded(obs[label]))
    if markers is not None:
        table = marker_table(markers)
        best = table[table["rank"] <= _MARKERS_SHOWN].groupby("cluster", observed=True)["gene"]
        genes = {str(name): ", ".join(map(str, of)) for name, of in best}
        columns["markers"] = [genes.get(name, "none") for name in names]
        notes.append(
            "Markers are genes that are higher there than in all other cells (scanpy's t-test with "
            "overestimated variance), the best first; more are in markers.tsv. The clusters were "
            "found in the same values, so p-values order genes and are no tests."
        )
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Section("Clusters", [Table(list(columns), rows, " ".join(notes))])


def _training(folder: Path) -> list[Part]:
    """How training went, or that there was none."""
    try:
        told = json.loads((folder / "training.json").read_text("utf-8"))
        columns = history_columns(folder / "training.csv")
    except (OSError, ValueError):  # an InputError is one, too
        told, columns = {}, {}
    if not columns or not told.get("epochs"):
        return [
            Text(["Nothing was trained: the model embeds as its PCA initialization sets it up."])
        ]
    rounds = len(next(iter(columns.values())))
    passes = columns.get("passes", np.arange(1.0, rounds + 1))
    parts: list[Part] = [
        Text(
            [
                f"{told['epochs']:g} passes over the cells in {told.get('steps', 0):,} steps of "
                f"{told.get('batch_size', 0):,} cells."
            ]
        )
    ]
    for name, title, note in _CURVES:
        if name in columns and np.isfinite(columns[name]).any():
            lines = {"training": columns[name]}
            held_out = columns.get(f"val_{name}", np.zeros(0))
            if np.isfinite(held_out).any():
                lines["held out"] = held_out
            parts.append(Curve(title, passes, lines, "passes over the cells", note))
    return parts


def _data(
    records: Records | None, metrics: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
) -> list[Part]:
    """What was read, what was left out, and how genes were taken."""
    if records is None:
        return []
    report = records.report
    of = {str(item["name"]): int(item["n_cells"]) for item in records.manifest.inputs}
    rows = {
        "cells read": ", ".join(f"{name}: {n:,}" for name, n in of.items()),
        "cells without counts": f"{report.get('cells_dropped', 0):,} left out",
        "genes": f"{records.n_genes:,} ({records.vocabulary.kind})",
        "genes that the model looks at": next(
            (str(step["options"]["genes"]) for step in steps if "genes" in step["options"]), ""
        ),
        "values": str(records.units),
    }
    if metrics.get("cells_lost"):
        rows["damaged cells"] = f"{int(metrics['cells_lost']):,} left out"
    lines = [without_places(str(line)) for line in report.get("lines", ())]
    return [Facts({name: told for name, told in rows.items() if told}), Text(lines)]


def _next(name: str, asked: Mapping[str, Any], label: str | None, source: str | None) -> Section:
    """Commands that lead on from here."""
    rows = [
        ["Finer clusters, without training again", f"concerto cluster {name} --resolution 1.0"],
        ["Coarser clusters", f"concerto cluster {name} --resolution 0.3"],
    ]
    if source is None:
        rows.append(
            [
                "Cells of several batches, donors or technologies in one map",
                "concerto run INPUT -o DIR --source-key COLUMN",
            ]
        )
    if label:
        rows.append(
            [
                "Teach these labels to the model, to label other cells",
                f"concerto finetune {name}/model {name}/records --label-key {label} -o typed",
            ]
        )
    else:
        rows.append(
            [
                "Labels from a reference whose cell types are known",
                f"concerto map {name}/model --reference REFERENCE --query {name}/records "
                "--label-key COLUMN -o mapped.h5ad",
            ]
        )
    rows += [
        [
            "What differs between conditions, type by type",
            f"concerto compare {name}/result.h5ad --condition COLUMN --control VALUE -o compared",
        ],
        [
            "The order of cells along a development",
            f"concerto pseudotime {name}/result.h5ad --root CLUSTER -o ordered.h5ad",
        ],
        ["All of it in Python", f'scanpy.read_h5ad("{name}/result.h5ad")'],
    ]
    return common.to_try(rows)


def _seconds(metrics: Mapping[str, Any]) -> dict[str, float]:
    mark = "seconds_"
    return {key.removeprefix(mark): of for key, of in metrics.items() if key.startswith(mark)}
