"""Pseudotime on embeddings against the known order of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.tasks.pseudotime import PSEUDOTIME
from concerto_tf.tasks.pseudotime import pseudotime as infer
from protocols.baselines import cells_of, log_normalized
from protocols.charts import strips
from protocols.data_sets import labels_of, prepare
from protocols.embeddings import COMPARED, checked_variants
from protocols.order_scores import order_scores
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.records import Records

SHOWN = {
    "spearman_stage": "Spearman, known stage",
    "spearman_root": "Spearman, order from the root",
    "reached": "cells with a pseudotime",
}


def pseudotime(
    cells: str | Path | AnnData,
    out: str | Path,
    *,
    label_key: str,
    root: str | None = None,
    order_key: str | None = None,
    order: Mapping[str, float | str] | None = None,
    source_key: str | None = None,
    layer: str | None = None,
    methods: Sequence[str] = COMPARED,
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Orders cells by diffusion pseudotime on embeddings, and correlates with what is known.

    PAGA and diffusion pseudotime as `concerto_tf.tasks.pseudotime` does them, from the same root
    on every embedding. Spearman's correlation is taken

    - ``spearman_stage``: with the known stage, where ``order_key`` or ``order`` gives one;
    - ``spearman_root``: with the order of the types from the root: by one minus the correlation
      of their mean log-normalized profile with that of the root's type, without any embedding.

    Args:
        cells: Anything that `convert` takes.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models and scores are kept.
        label_key: Column of obs with types or stages, the groups of PAGA.
        root: A type, which begins at the cell in its midst, or the name of a cell. By default the
            type that most cells of the earliest known stage have.
        order_key: Column of obs with the stage as a number.
        order: Type to rank, in place of ``order_key``; types that it leaves out, as those of
            another branch, are not judged by it.
        source_key: Column of obs with the sources.
        layer: Layer that holds the counts.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy) and ``pca``.
        presets: Presets to run beside the defaults, such as ``paper``.
        seeds: Each method is run with each.
        **training: Further arguments of `train`, for every method.

    Returns:
        What ``result.json`` holds: by method the mean and the standard deviation over the seeds
        of the correlations, and of ``reached``, the share of cells that have a pseudotime; the
        ``root``; and ``from_root``, the types in the order of ``spearman_root``.

    Raises:
        InputError: There is no such root or column, nothing says where to begin, or an argument
            is unsuitable.

    Reference:
        CLEAR, pseudotime inference, figure 4. Haghverdi et al., Nature Methods 13:845 (2016).
    """
    chosen = checked_variants(training, seeds, methods, presets)
    if order_key is not None and order:
        raise InputError("the order is given twice; name a column, or ranks of the types")
    if root is None and order_key is None and not order:
        raise InputError("nothing says where to begin; name a root, or a column with the order")
    out = check_folder(out)
    records = prepare(
        cells,
        out / "records",
        label_key=label_key,
        source_key=source_key,
        layer=layer,
        further_keys=[order_key] if order_key else [],
    )
    names, labels = records.obs()["cell"], labels_of(records, label_key)
    stage = _stages(records, labels, label_key, order_key, order)
    root = _root(names, labels, stage, root, label_key)
    first = root if root in set(labels) else labels[names == root][0]
    types = _from_root(records, labels, first)
    place = {name: float(i) for i, name in enumerate(types)}
    from_root = np.array([place.get(label, np.nan) for label in labels])
    score = partial(_score, names=names, labels=labels, root=root, stage=stage, far=from_root)
    scores = Scores(out, "pseudotime", root=root, order=order, order_key=order_key)
    for seed in seeds:
        scores.add(chosen, records, seed, partial(score, seed=seed), training=training)
    table = scores.table()
    result = {
        "root": root,
        "from_root": types,
        "seeds": list(seeds),
        "methods": summary(table, ["method"]),
    }
    return leave(out, table, result, strips(table.assign(data=label_key), "data", SHOWN))


def _score(
    z: np.ndarray,
    names: np.ndarray,
    labels: np.ndarray,
    root: str,
    stage: np.ndarray | None,
    far: np.ndarray,
    seed: int,
) -> dict[str, float]:
    """Correlations of the pseudotime of one embedding."""
    time = _time(z, names, labels, root, seed)
    found = {"spearman_root": order_scores(time, far)["spearman"]}
    if stage is not None:
        found["spearman_stage"] = order_scores(time, stage)["spearman"]
    return {**found, "reached": float(np.isfinite(time).mean())}


def _stages(
    records: Records,
    labels: np.ndarray,
    label_key: str,
    order_key: str | None,
    order: Mapping[str, float | str] | None,
) -> np.ndarray | None:
    """The known stage of each cell, NaN where it is not known; None if nothing tells."""
    if order_key is None and not order:
        return None
    if order_key is not None:
        given = {name: name for name in records.labels[order_key]}
        values, where = labels_of(records, order_key), f"column {order_key!r}"
    else:
        given, values, where = dict(order), labels, "the order"
        strange = [name for name in given if name not in set(labels)]
        if strange:
            known = ", ".join(sorted(set(labels) - {None}))
            raise InputError(f"{label_key!r} has no {strange[0]!r} to rank (there are: {known})")
    try:
        rank = {name: float(value) for name, value in given.items()}
    except ValueError as error:
        raise InputError(
            f"{where}: a stage is not a number ({error}); name a numeric column, or give the ranks "
            "of the types as NAME=RANK"
        ) from error
    stage = np.array([rank.get(value, np.nan) for value in values])
    if len(np.unique(stage[np.isfinite(stage)])) < 2:
        raise InputError(f"{where}: tells fewer than two stages apart; there is no order in it")
    return stage


def _root(
    names: np.ndarray,
    labels: np.ndarray,
    stage: np.ndarray | None,
    root: str | None,
    label_key: str,
) -> str:
    """The cell or the type to begin at."""
    if root is None:
        first = labels[stage == np.nanmin(stage)]
        found, count = np.unique([str(x) for x in first if x is not None], return_counts=True)
        if not len(found):
            raise InputError(f"no cell of the earliest stage has a {label_key!r}; name a root")
        return str(found[count.argmax()])
    root = str(root)
    if root in set(labels):
        return root
    if root not in set(names):
        known = ", ".join(sorted(set(labels) - {None}))
        raise InputError(
            f"root {root!r} is neither a cell nor a type of {label_key!r} (there are: {known})"
        )
    if labels[names == root][0] is None:
        raise InputError(f"root {root!r} has no {label_key!r}; name another cell, or a type")
    return root


def _from_root(records: Records, labels: np.ndarray, first: str) -> list[str]:
    """Types by how far their mean profile is from that of the first."""
    x = log_normalized(cells_of(records), records.scales_with_depth).X
    types = sorted(set(labels) - {None})
    means = np.array([np.asarray(x[labels == name].mean(axis=0)).ravel() for name in types])
    means = means[:, means.std(axis=0) > 0]
    distance = 1 - np.corrcoef(means)[types.index(first)]
    return [types[i] for i in np.argsort(distance, kind="stable")]


def _time(z: np.ndarray, names: np.ndarray, labels: np.ndarray, root: str, seed: int) -> np.ndarray:
    """Pseudotime [n] of the cells of an embedding, NaN where there is none."""
    import pandas as pd
    from anndata import AnnData

    told = np.array([label is not None for label in labels])
    obs = pd.DataFrame({"type": labels[told].astype(str)}, index=names[told].astype(str))
    adata = AnnData(obs=obs.astype("category"), obsm={"X_concerto": z[told]})
    infer(adata, root=root, groupby="type", seed=seed)
    time = np.full(len(z), np.nan)
    time[told] = adata.obs[PSEUDOTIME]
    return time
