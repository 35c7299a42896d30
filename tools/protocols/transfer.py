"""Labels carried to cells that were measured otherwise: another technology, donor or species."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.novelty import UNKNOWN
from concerto_tf.records import Records, convert
from concerto_tf.records.batch import RNA
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.map import map
from concerto_tf.tasks.train import train
from protocols.annotation import scores
from protocols.baselines import cells_of
from protocols.charts import dots
from protocols.delivered_peers import labels_by
from protocols.embeddings import check_seeds, check_training
from protocols.mapping import labelled
from protocols.quality_cells import LABEL
from protocols.report import check_folder, leave

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Ours: `map`, `finetune`, and this with ``target``, the query's cells without labels. Peers.
OURS, PEERS = ("map", "finetune", "target"), ("logistic", "knn")
MEASURES = ("accuracy", "macro_f1", "unknown", "unknown_unseen")


def transfer(
    cells: str | Path | AnnData,
    out: str | Path,
    *,
    label_key: str,
    query: str | Path | AnnData | None = None,
    source_key: str | None = None,
    pairs: bool = False,
    orthologs: str | Path | None = None,
    methods: Sequence[str] = (*OURS, *PEERS),
    seeds: Sequence[int] = (0,),
    training: Mapping[str, Any] | None = None,
    finetuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Carries labels to a source that was left out, or to a query that is a file of its own.

    Each source is the query in turn, and all others, or with ``pairs`` each of the others alone,
    are the reference. Models learn from the reference alone, but that ``target`` also has the
    query's cells, without their labels. Logistic regression and nearest neighbours (15, of 50
    principal components) take the genes that both were measured for.

    Leaves ``table.tsv``, ``result.json`` and ``figure.png`` in ``out``. Accuracy and macro-F1 are
    of the cells whose type the reference has, and of the label before rejection, as peers never
    abstain; ``unknown`` is the share of these cells that is called so, ``unknown_unseen`` that of
    the cells whose type the reference lacks.

    Args:
        cells: An `.h5ad` or AnnData with counts: the reference, or all sources together.
        out: Folder of the report.
        label_key: Column of obs with the labels.
        query: The query, where it is a file of its own.
        source_key: Column of obs with the sources; with ``query`` those of the reference.
        pairs: Whether one source at a time is the reference.
        orthologs: Table of genes, where the query is of another species.
        methods: Some of ``map``, ``finetune``, ``target``, ``logistic`` and ``knn``.
        seeds: Seeds of all methods.
        training: Further arguments of `train`.
        finetuning: Further arguments of `finetune`.

    Returns:
        What ``result.json`` holds: means over the seeds by reference, query and method, and in
        ``mean`` over all by method.

    Raises:
        InputError: A file, a column or an argument is unsuitable, or there is one source only.

    Reference:
        Concerto, Results, inter-data-set annotation and "Domain adaptation", equation 13.
    """
    import pandas as pd

    check_seeds(seeds)
    check_training(training)
    check_training(finetuning, "label_key", "target", of=finetune)
    strange = [name for name in methods if name not in (*OURS, *PEERS)]
    if strange or not methods:
        raise InputError(f"there is no method {strange}; choose of {', '.join((*OURS, *PEERS))}")
    sides = list(_sides(cells, query, label_key, source_key, pairs))
    out = check_folder(out)
    rows = []
    for reference_name, query_name, reference, other in sides:
        truth = other.obs[LABEL].to_numpy(str)
        known = np.isin(truth, reference.obs[LABEL].to_numpy(str))
        if not known.any():
            raise InputError(f"{reference_name} has none of the types of {query_name}")
        for seed in seeds:
            options = (training or {}, finetuning or {})
            for method, told in _told(reference, other, orthologs, methods, seed, options):
                name = f"{reference_name} to {query_name}"
                row = {"transfer": name, "method": method, "seed": seed}
                rows.append({**row, **_scores(truth, known, told)})
    table = pd.DataFrame(rows)
    columns = [name for name in MEASURES if table[name].notna().any()]
    means = table.groupby(["transfer", "method"], sort=False)[columns].mean()
    result = {
        "seeds": list(seeds),
        "transfers": {
            name: part.droplevel(0).to_dict("index")
            for name, part in means.groupby("transfer", sort=False)
        },
        "mean": means.groupby("method", sort=False).mean().to_dict("index"),
    }
    shown = {"types the reference has": MEASURES[:3], "others": MEASURES[3:]}
    return leave(out, table, result, dots(table.dropna(axis=1, how="all"), "method", shown))


def _sides(
    cells: str | Path | AnnData,
    query: str | Path | AnnData | None,
    label_key: str,
    source_key: str | None,
    pairs: bool,
) -> Iterator[tuple[str, str, AnnData, AnnData]]:
    """Names of reference and query, and their cells with the columns ``label`` and ``source``."""
    whole = _named(cells, label_key, source_key)
    if query is not None:
        yield "reference", "query", whole, _named(query, label_key, None)
        return
    source = whole.obs["source"].to_numpy(str)
    names = list(dict.fromkeys(source))
    if len(names) < 2:
        raise InputError("there is one source only; name the column of sources, or a query")
    for own in names:
        others = [name for name in names if name != own]
        for of in [[name] for name in others] if pairs else [others]:
            chosen = np.isin(source, of)
            name = of[0] if len(of) == 1 else "the others"
            yield name, own, whole[chosen].copy(), whole[source == own].copy()


def _named(cells: str | Path | AnnData, label_key: str, source_key: str | None) -> AnnData:
    """Labelled cells with nothing but counts, ``label`` and ``source``."""
    from anndata import AnnData

    held = labelled(cells, label_key, source_key)
    obs = held.obs[[label_key]].set_axis([LABEL], axis=1).astype(str)
    obs["source"] = "all" if source_key is None else held.obs[source_key].astype(str)
    return AnnData(held.X, obs, held.var[[]])


def _told(
    reference: AnnData,
    query: AnnData,
    orthologs: str | Path | None,
    methods: Sequence[str],
    seed: int,
    options: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> Iterator[tuple[str, pd.DataFrame]]:
    """By method the columns ``predicted`` and ``label`` of the query."""
    import pandas as pd
    from anndata import AnnData

    plainly = AnnData(query.X.copy(), var=query.var.copy())
    plainly.obs_names = query.obs_names
    genes = {"orthologs": orthologs, "seed": seed}
    with TemporaryDirectory(prefix="concerto-") as folder:
        place = Path(folder)
        records = convert(reference, place / "known", source_key="source", label_keys=[LABEL])
        target = convert(plainly, place / "query", like=records, orthologs=orthologs)
        model = None
        if set(methods) & set(OURS):
            model = train(records, place / "model", seed=seed, **options[0])
        for method in methods:
            if method == "map":
                yield method, map(model, plainly, reference=records, label_key=LABEL, **genes)
            elif method in OURS:
                also = {"target": target} if method == "target" else {}
                how = {"label_key": LABEL, "seed": seed, **also, **options[1]}
                yield (
                    method,
                    annotate(finetune(model, records, place / method, **how), plainly, **genes),
                )
            else:
                known, other = _shared(records, target)
                told = labels_by(method, known, other, seed)
                yield method, pd.DataFrame({"predicted": told, "label": told})


def _shared(records: Records, target: Records) -> tuple[AnnData, AnnData]:
    """Reference and query by the genes that both were measured for."""
    measured = target.measured(RNA) & records.measured(RNA)
    return tuple(cells_of(of)[:, measured].copy() for of in (records, target))


def _scores(truth: np.ndarray, known: np.ndarray, told: pd.DataFrame) -> dict[str, float]:
    before, label = told["predicted"].to_numpy(str), told["label"].to_numpy(str)
    names, codes = np.unique(np.concatenate([truth[known], before[known]]), return_inverse=True)
    found = scores(*np.split(codes, 2))
    unseen = float((label == UNKNOWN)[~known].mean()) if (~known).any() else float("nan")
    return {
        "accuracy": found["accuracy"],
        "macro_f1": found["macro_f1"],
        "unknown": float((label == UNKNOWN)[known].mean()),
        "unknown_unseen": unseen,
    }
