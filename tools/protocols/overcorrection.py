"""Whether mixing the sources merges a cell type that only one of them has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.metrics import ilisi, kbet
from concerto_tf.metrics.graph import leiden, nearest_others, scanpy_graph
from concerto_tf.records import convert
from protocols.baselines import cells_of
from protocols.embeddings import checked_variants, embed_by
from protocols.integration import METHODS
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

#: Cells that a type must have in the source that keeps it.
FEWEST_CELLS = 5
#: Share of a type's neighbours, or of its cluster, below which it is no longer on its own.
MERGED = 0.5
_NEIGHBOURS = 15


def overcorrection(
    cells: str | Path | AnnData | Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    source_key: str | None,
    label_key: str,
    types: Sequence[str] | None = None,
    layer: str | None = None,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Removes a cell type from all sources but one, embeds anew, and looks what became of it.

    The type stays in the source that has most of its cells. An embedding of what is left is held
    against that of all cells, both looked at on the cells that are left. Of the type's cells are
    taken

    - ``silhouette``: their mean silhouette width among all types (Euclidean);
    - ``neighbours``: the share of their 15 nearest neighbours (or as many as the type has others)
      that are of the type;
    - ``cluster``: the share of the type in the Leiden cluster (resolution 1) that most of them
      are in.

    A type is called merged where ``neighbours`` or ``cluster`` is below 0.5.

    Args:
        cells: One or several of what `convert` takes.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models are not trained again.
        source_key: Column of obs with the sources; ``None`` makes each input one.
        label_key: Column of obs with cell types. Cells without one stay, and are not judged.
        types: The types to remove in turn; by default all that several sources have.
        layer: Layer that holds the counts.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy) and ``pca``.
        seeds: Each method is run with each.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: by method the means over types and seeds of ``silhouette``
        before and after and of the rest, with ``fell`` and ``merged``, the number of cases in
        which the silhouette fell by more than 0.05, or the type was merged; and ``cases``.

    Raises:
        InputError: No type is in two sources, or an argument is unsuitable.

    Reference:
        Concerto, Results, the test with beta cells of the pancreas in one technology only.
    """
    import pandas as pd

    embedders = checked_variants(training, seeds, methods)
    out = check_folder(out)
    records = convert(
        cells,
        out / "records" / "all",
        source_key=source_key,
        layer=layer,
        label_keys=[label_key],
        overwrite=True,
    )
    whole = cells_of(records)
    chosen = _types(whole, label_key, types)
    rows = []
    for number, (name, source) in enumerate(chosen.items()):
        of_type = (whole.obs[label_key] == name).to_numpy()
        kept = ~of_type | (whole.obs["source"] == source).to_numpy()
        left = whole[kept].copy()
        part = convert(
            left,
            out / "records" / f"without{number}",
            source_key="source",
            label_keys=[label_key],
            overwrite=True,
        )
        for seed in seeds:
            folder = out / "models" / f"seed{seed}"
            for variant in embedders:
                model = folder / variant.name
                before = embed_by(variant, records, seed, model / "all", training)
                after = embed_by(variant, part, seed, model / f"without{number}", training)
                row = {"type": name, "source": source, "cells": int((of_type & kept).sum())}
                row |= {"method": variant.name, "seed": seed}
                for when, z in (("before", before[kept]), ("after", after)):
                    scores = judge(z, left.obs[label_key], name, seed)
                    scores["kbet"] = kbet(z, left.obs["source"], seed=seed)
                    scores["ilisi"] = ilisi(z, left.obs["source"], seed=seed)
                    row |= {f"{key}_{when}": value for key, value in scores.items()}
                rows.append(row)
    table = pd.DataFrame(rows)
    table["fell"] = table["silhouette_after"] < table["silhouette_before"] - 0.05
    table["merged"] = table[["neighbours_after", "cluster_after"]].min(axis=1) < MERGED
    result: dict[str, Any] = {"types": chosen, "seeds": list(seeds), "methods": {}}
    for method, own in table.groupby("method", sort=False):
        means = own.filter(regex="_(before|after)$").mean().to_dict()
        counts = {key: int(own[key].sum()) for key in ("fell", "merged")}
        result["methods"][method] = {**means, **counts, "cases": len(own)}
    return leave(out, table, result, _figure_of(table))


def judge(z: np.ndarray, labels: Any, name: str, seed: int = 0) -> dict[str, float]:
    """How much a type is on its own in an embedding.

    Args:
        z: Embedding [n, d].
        labels: Name of the type of each cell [n]; None where it is not known.
        name: The type.
        seed: Seed of the clusters.

    Returns:
        ``silhouette``, ``neighbours`` and ``cluster``, see `overcorrection`.
    """
    import pandas as pd
    from sklearn.metrics import silhouette_samples

    labels = np.asarray(labels, object)
    known = ~pd.isna(labels)
    z, labels = np.asarray(z)[known], labels[known].astype(str)
    own = labels == name
    widths = silhouette_samples(z, labels)[own]
    k = min(_NEIGHBOURS, int(own.sum()) - 1)
    around = own[nearest_others(z, k)[1][own]]
    clusters = np.asarray(leiden(scanpy_graph(z, seed=seed), 1.0, seed))
    names, sizes = np.unique(clusters[own], return_counts=True)
    return {
        "silhouette": float(widths.mean()),
        "neighbours": float(around.mean()),
        "cluster": float(own[clusters == names[sizes.argmax()]].mean()),
    }


def _types(whole: AnnData, key: str, types: Sequence[str] | None) -> dict[str, str]:
    """The types to remove in turn, and the source that keeps each."""
    import pandas as pd

    sizes = pd.crosstab(whole.obs[key], whole.obs["source"])
    if len(sizes) < 2:
        raise InputError(f"{key!r} tells fewer than two cell types apart; nothing could be merged")
    several = sizes[(sizes > 0).sum(axis=1) > 1]
    if types is None:
        types = list(several.index[several.max(axis=1) >= FEWEST_CELLS])
        if not types:
            raise InputError(
                f"no type of {key!r} is in two sources, with at least {FEWEST_CELLS} cells in one; "
                "there is nothing to remove"
            )
    for name in types:
        if name not in several.index or several.loc[name].max() < FEWEST_CELLS:
            known = ", ".join(several.index) or "none"
            raise InputError(
                f"{key!r}: {name!r} is not in two sources with at least {FEWEST_CELLS} cells in "
                f"one (in several sources are: {known})"
            )
    return {name: str(several.loc[name].idxmax()) for name in types}


def _figure_of(table: pd.DataFrame) -> Figure:
    """The type's silhouette before against after, and how pure its surroundings stayed."""
    from matplotlib.figure import Figure

    from concerto_tf.pl.figures import PALETTE, short_name

    figure = Figure((9, 1.4 + 0.35 * table["type"].nunique() + 1.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    titles = {"neighbours": "own type among neighbours", "cluster": "own type in cluster"}
    names = list(dict.fromkeys(table["type"]))
    methods = list(dict.fromkeys(table["method"]))
    of = table.groupby(["type", "method"])
    for ax, key in zip(axes, ("silhouette", "neighbours", "cluster"), strict=True):
        before, after = of[f"{key}_before"].mean(), of[f"{key}_after"].mean()
        for i, method in enumerate(methods):
            for at, name in enumerate(names):
                y = at + 0.2 * (i - (len(methods) - 1) / 2)
                ends = before[name, method], after[name, method]
                ax.plot(ends, [y, y], color=PALETTE[i], lw=1.2)
                ax.plot(ends[0], y, "o", ms=4.5, mfc="white", color=PALETTE[i])
                ax.plot(
                    ends[1], y, "o", ms=4.5, color=PALETTE[i], label=method if at == 0 else None
                )
        if key != "silhouette":
            ax.axvline(MERGED, color="0.6", lw=0.8, ls=":")
            ax.set_xlim(-0.03, 1.03)
        ax.set_title(titles.get(key, key), fontsize=9, loc="left")
        ax.grid(color="0.93")
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), [short_name(str(name), 24) for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("hollow: in all sources; full: in one source only", fontsize=8, color="0.35")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure
