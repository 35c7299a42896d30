"""Query to reference: accuracy of transferred labels, and rejection of types it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError, choices
from concerto_tf.novelty import UNKNOWN
from concerto_tf.tasks.map import ALPHA, map
from protocols.embeddings import check_training
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

#: Arguments of `concerto_tf.map` by name of the way that cells are mapped.
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"adapt": "none"},
    "batch-aware": {"adapt": "source"},
    "adapted": {},
    "fine-tuned": {"finetune": True},
}


def mapping(
    cells: str | Path | AnnData,
    out: str | Path,
    *,
    label_key: str,
    query: str | Path | AnnData | None = None,
    source_key: str | None = None,
    reference_sources: Sequence[str] = (),
    query_sources: Sequence[str] = (),
    absent: Sequence[str | None] = (None,),
    ways: Sequence[str] = ("frozen",),
    seeds: Sequence[int] = (0,),
    k: int = 5,
    alpha: float = ALPHA,
    **training: Any,
) -> dict[str, Any]:
    """Trains on reference cells alone, maps query cells, and compares with the query's own labels.

    Types of the query that the reference lacks should come out as unknown: those that it lacks by
    itself, and those that ``absent`` takes out of it, one after another, before training.

    Leaves ``table.tsv`` (one row per query, type taken out, way and seed), ``result.json`` (means
    over the seeds) and ``figure.png`` in ``out``.

    Args:
        cells: An `.h5ad` or AnnData with counts: the reference, or reference and query together.
        out: Folder of the report.
        label_key: Column of obs with the labels.
        query: The query, where it is a file of its own.
        source_key: Column of obs that tells reference and queries apart where they are one file.
            Without it and without ``query`` the cells are halved at random, by the seed.
        reference_sources: Sources of the reference; by default the first one.
        query_sources: Sources to map, each for itself; by default all others.
        absent: Types to leave out of the reference in turn; None leaves out none. ``("each",)``
            stands for every type of the reference.
        ways: Of `WAYS`.
        seeds: Seeds of training.
        k: Number of neighbours that vote.
        alpha: As in `concerto_tf.map`.
        **training: Further arguments of `concerto_tf.train`.

    Returns:
        What ``result.json`` holds.

    Raises:
        InputError: A column or a source is not there, or nothing is left to map.
    """
    import pandas as pd

    check_training(training)
    out = check_folder(out)
    for way in ways:
        if way not in WAYS:
            raise InputError(f"there is no way {way!r} to map; choose of {', '.join(WAYS)}")
    rows, scores = [], []
    for seed in seeds:
        reference, queries = _split(
            cells, query, label_key, source_key, reference_sources, query_sources, seed
        )
        if list(absent) == ["each"]:
            taken = sorted(reference.obs[label_key].astype(str).unique())
        else:
            taken = list(absent)
        for name in taken:
            found = _map_all(reference, queries, name, label_key, ways, seed, k, alpha, training)
            for (which, way), (truth, known, table) in found.items():
                row = score(truth, known, table)
                rows.append({"query": which, "absent": name, "way": way, "seed": seed, **row})
                scores.append((known, table["confidence"].to_numpy()))
    table = pd.DataFrame(rows)
    keys = ["query", "absent", "way"]
    means = table.drop(columns="seed").groupby(keys, dropna=False, sort=False).mean()
    result = {
        "k": k,
        "alpha": alpha,
        "seeds": list(seeds),
        "means": means.reset_index().astype({"absent": object}).to_dict("records"),
    }
    return leave(out, table, result, new_figure(scores))


def score(truth: np.ndarray, known: np.ndarray, table: pd.DataFrame) -> dict[str, float]:
    """Scores a mapping.

    Args:
        truth: Labels of the query cells [n].
        known: Whether the reference holds them [n].
        table: What `concerto_tf.map` returned.

    Returns:
        Number of known and unseen cells; of the known ones ``accuracy`` and ``macro_f1`` (rejected
        counts as wrong), ``accuracy_unrejected`` (of the label before rejection) and
        ``rejected_known``; of the unseen ones ``rejected_unseen``; and ``auroc`` of the confidence
        for known against unseen. NaN where there are no such cells.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    label, before = table["label"].to_numpy(), table["predicted"].to_numpy()
    confidence = table["confidence"].to_numpy()
    found = dict.fromkeys(
        (
            "accuracy",
            "macro_f1",
            "accuracy_unrejected",
            "rejected_known",
            "rejected_unseen",
            "auroc",
        ),
        float("nan"),
    )
    if known.any():
        found["accuracy"] = float((label == truth)[known].mean())
        found["macro_f1"] = float(
            f1_score(
                truth[known],
                label[known],
                labels=np.unique(truth[known]),
                average="macro",
                zero_division=0,
            )
        )
        found["accuracy_unrejected"] = float((before == truth)[known].mean())
        found["rejected_known"] = float((label == UNKNOWN)[known].mean())
    if (~known).any():
        found["rejected_unseen"] = float((label == UNKNOWN)[~known].mean())
        if known.any():
            found["auroc"] = float(roc_auc_score(known, confidence))
    return {"known": int(known.sum()), "unseen": int((~known).sum()), **found}


def _map_all(
    reference: AnnData,
    queries: Mapping[str, AnnData],
    absent: str | None,
    label_key: str,
    ways: Sequence[str],
    seed: int,
    k: int,
    alpha: float,
    training: Mapping[str, Any],
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, pd.DataFrame]]:
    """Trains on the reference without a type and maps every query in every way."""
    import tempfile

    from concerto_tf.records import convert
    from concerto_tf.tasks.train import train

    labels = reference.obs[label_key].astype(str).to_numpy()
    if absent is not None and absent not in labels:
        raise InputError(f"the reference has no cells of type {absent!r} to leave out")
    rest = reference[labels != absent].copy()
    held = set(labels[labels != absent])
    found = {}
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        records = convert(rest, f"{folder}/records", label_keys=[label_key])
        model = train(records, f"{folder}/model", seed=seed, **training)
        for name, cells in queries.items():
            truth = cells.obs[label_key].astype(str).to_numpy()
            known = np.isin(truth, list(held))
            for way in ways:
                table = map(
                    model,
                    cells,
                    reference=records,
                    label_key=label_key,
                    k=k,
                    alpha=alpha,
                    seed=seed,
                    **WAYS[way],
                )
                found[name, way] = (truth, known, table)
    return found


def _split(
    cells: str | Path | AnnData,
    query: str | Path | AnnData | None,
    label_key: str,
    source_key: str | None,
    reference_sources: Sequence[str],
    query_sources: Sequence[str],
    seed: int,
) -> tuple[AnnData, dict[str, AnnData]]:
    """The reference, and the queries by name; all with a label."""
    whole = labelled(cells, label_key, source_key)
    if query is not None:
        return whole, {"query": labelled(query, label_key)}
    if source_key is None:
        first = np.zeros(whole.n_obs, bool)
        first[np.random.default_rng(seed).permutation(whole.n_obs)[: whole.n_obs // 2]] = True
        return whole[first].copy(), {"other half": whole[~first].copy()}
    source = whole.obs[source_key].astype(str).to_numpy()
    names = list(dict.fromkeys(source))
    for name in (*reference_sources, *query_sources):
        if name not in names:
            raise InputError(f"{source_key!r} has no {name!r} (there are: {', '.join(names)})")
    references = list(reference_sources) or names[:1]
    queries = list(query_sources) or [name for name in names if name not in references]
    if not queries:
        raise InputError(f"{source_key!r}: all sources are the reference; none is left to map")
    return (
        whole[np.isin(source, references)].copy(),
        {name: whole[source == name].copy() for name in queries},
    )


def labelled(cells: str | Path | AnnData, label_key: str, source_key: str | None = None) -> AnnData:
    """Cells in memory, without those that have no label.

    Args:
        cells: An `.h5ad`, or an AnnData.
        label_key: Column of obs with the labels.
        source_key: A column that must be there, too.

    Raises:
        InputError: There is no such column.
    """
    from concerto_tf.tasks.io.embedded import open_embedded

    adata = open_embedded(cells, backed=False) if isinstance(cells, str | Path) else cells
    for key in (label_key, source_key):
        if key is not None and key not in adata.obs:
            raise InputError(f"no column {key!r} in obs; {choices(key, adata.obs)}")
    return adata[adata.obs[label_key].notna().to_numpy()].copy()


def new_figure(scores: Sequence[tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Confidence of known and of unseen cells, over all mappings."""
    from concerto_tf.pl.figures import PALETTE, new_figure

    known = np.concatenate([of for of, _ in scores])
    confidence = np.concatenate([of for _, of in scores])
    figure, [axes] = new_figure(5.0, 3.2)
    bins = np.linspace(0, 1, 41)
    for of, name, color in ((known, "type in the reference", 0), (~known, "type not in it", 1)):
        if of.any():
            axes.hist(
                confidence[of],
                bins,
                density=True,
                histtype="stepfilled",
                alpha=0.55,
                color=PALETTE[color],
                label=f"{name} ({of.sum():,} cells)",
            )
    axes.set_xlabel("confidence")
    axes.set_ylabel("density of cells")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
