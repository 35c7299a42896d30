"""Types that the reference lacks: are their cells rejected, and those of known types not?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.records import convert
from concerto_tf.tasks.annotate import agreement_of, annotate
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.labels import known_labels
from protocols.baselines import cells_of
from protocols.embeddings import check_training
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = ("auroc_novelty", "auroc", "rejected_unseen", "rejected_seen", "accuracy")


def rejection(
    cells: str | Path,
    out: str | Path,
    *,
    label_key: str,
    groups: Sequence[Sequence[str]] | None = None,
    leave_out: Sequence[str] = (),
    source_key: str | None = None,
    layer: str | None = None,
    alpha: float = 0.05,
    test: float = 0.25,
    seeds: Sequence[int] = (0,),
    training: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Takes types out of a reference, trains on the rest, and annotates them.

    For each group of types: a part of all other cells is put aside, pre-training and fine-tuning
    see the rest, and the part put aside (types seen) and the group (unseen) are annotated.

    Args:
        cells: Anything that `convert` takes.
        out: Folder for ``table.tsv``, ``result.json`` and ``figure.png``.
        label_key: Column of obs with the types.
        groups: Types to take out together; by default each type in turn.
        leave_out: Types to leave out altogether, doublets for example.
        source_key: Column of obs that names the sources.
        layer: Layer that holds the counts.
        alpha: As for `annotate`.
        test: Share of the cells of the other types that is put aside.
        seeds: Seeds of the parts and of the models.
        training: Further arguments of `train`.
        finetuning: Further arguments of `finetune`.

    Returns:
        What ``result.json`` holds: by group the means over the seeds of ``auroc`` (of the
        confidence), ``rejected_unseen``, ``rejected_seen`` (alpha, if all is well) and
        ``accuracy`` of the seen ones, and the means over the groups.

    Raises:
        InputError: A group names a type that is not there, or leaves fewer than two types; or an
            argument is unsuitable.

    Reference:
        Concerto, Results, "none of the above" study.
    """
    import pandas as pd

    check_training(training)
    check_training(finetuning, "label_key", of=finetune)
    out = check_folder(out)
    if not 0 < test < 1 or not seeds:
        raise InputError(f"test is {test}; put aside a share between 0 and 1, with a seed or more")
    rows, curves = [], {}
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        records = convert(
            cells, Path(folder) / "all", source_key=source_key, label_keys=[label_key], layer=layer
        )
        classes, codes = known_labels(records, label_key)
        names = [name for name in classes if name not in leave_out]
        chosen = [[name] for name in names] if groups is None else [list(g) for g in groups]
        for group in chosen:
            strange = [name for name in group if name not in names]
            if strange or not group or len(names) - len(set(group)) < 2:
                raise InputError(
                    f"{cells}: types {', '.join(group)} cannot be taken out of "
                    f"{label_key!r} ({', '.join(names)}); name types that are there, and leave two"
                )
        adata = cells_of(records)
        labels = np.array([*classes, None], object)[codes]
        kept = np.isin(labels, names)
        adata, labels = adata[kept].copy(), labels[kept]
        for seed in seeds:
            for i, group in enumerate(chosen):
                aside = put_aside(labels, test, seed) | np.isin(labels, group)
                work = Path(folder) / f"{seed}-{i}"
                work.mkdir()
                reference = convert(
                    adata[~aside].copy(),
                    work / "records",
                    source_key="source",
                    label_keys=[label_key],
                )
                model = train(reference, work / "pretrained", seed=seed, **dict(training or {}))
                fine = finetune(
                    model,
                    reference,
                    work / "model",
                    label_key=label_key,
                    seed=seed,
                    **dict(finetuning or {}),
                )
                table = annotate(fine, adata[aside].copy(), alpha=alpha, source_key="source")
                found = agreement_of(table, labels[aside], fine.classes)
                name = " + ".join(group)
                rows.append(
                    {
                        "seed": seed,
                        "unseen": name,
                        "calibration_cells": len(fine.calibration),
                        **{key: found[key] for key in ("cells", "cells_unseen", *_SHOWN)},
                    }
                )
                unseen = np.isin(labels[aside], group)
                p_value = table["novelty"].to_numpy()
                curves.setdefault(name, []).append((p_value[~unseen], p_value[unseen]))
    table = pd.DataFrame(rows)
    means = table.groupby("unseen", sort=False)[list(_SHOWN)].mean()
    result = {
        "alpha": alpha,
        "seeds": list(seeds),
        "unseen": {name: row.to_dict() for name, row in means.iterrows()},
        "mean": means.mean().to_dict(),
    }
    return leave(out, table, result, _figure_of(curves, result, alpha))


def put_aside(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A random share of the cells of every type; each keeps at least one.

    Args:
        labels: Types of cells [n].
        share: Share to put aside.
        seed: Of the choice.

    Returns:
        Whether each cell is put aside [n].

    Example:

    >>> int(put_aside(np.array(["B", "B", "T"]), 0.5, 0).sum())
    1
    """
    rng = np.random.default_rng(seed)
    aside = np.zeros(len(labels), bool)
    for name in sorted(set(labels)):
        own = np.flatnonzero(labels == name)
        n = min(round(share * len(own)), len(own) - 1)
        aside[rng.permutation(own)[:n]] = True
    return aside


def _figure_of(
    curves: Mapping[str, list[tuple[np.ndarray, np.ndarray]]],
    result: Mapping[str, Any],
    alpha: float,
) -> Figure:
    """Densities of the novelty p-value of types seen (validation) and unseen (test), by group."""
    from concerto_tf.pl.figures import PALETTE, new_figure, short_name

    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = new_figure(0.6 + 2.8 * columns, 0.8 + 2.0 * rows, rows, columns)
    bins = np.linspace(0, 1, 41)
    for axis, (name, pairs) in zip(axes, curves.items(), strict=False):
        for i, label in enumerate(("types seen", "unseen")):
            values = np.concatenate([pair[i] for pair in pairs])
            axis.hist(
                values,
                bins,
                density=True,
                histtype="stepfilled",
                alpha=0.5,
                color=PALETTE[i],
                label=label,
            )
        axis.axvline(alpha, color="black", lw=0.8, ls="--", label=f"alpha {alpha:g}")
        auroc = result["unseen"][name]["auroc_novelty"]
        axis.set_title(f"{short_name(name, 30)}\nAUROC {auroc:.2f}", size=9)
        axis.set_yticks([])
        axis.set_xlim(0, 1)
        axis.set_xlabel("novelty p-value", fontsize=9)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure
