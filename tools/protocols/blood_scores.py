"""What the model of human blood is worth: each study left out in turn, and cell types left out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from concerto_tf.novelty import UNKNOWN
from concerto_tf.tasks.annotate import annotate
from protocols.baselines import scanvi
from protocols.blood_cells import OR, TYPES, group_of, joined
from protocols.blood_model import build, resolved
from protocols.delivered_peers import is_there
from protocols.lines import Lines, read_lines
from protocols.quality_report import markdown

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.models import Classifier

#: Studies that no model learns from: they were measured for 2,000 genes or fewer.
HELD_OUT = ("10x chemistries", "Ding Drop-seq", "Ding inDrops")
#: Studies that are left out together: of one donor, or too small for a model of their own.
FOLDS = {
    "10x 3k": ("10x 3k", "10x 6k"),
    "BREM-SC": ("BREM-SC",),
    "ICA": ("ICA",),
    "Ding": ("Ding",),
    "Zheng": ("Zheng",),
    "others": ("Freytag", "10x 8k", "SRR11038995", "SRR7244582"),
}
#: What the scores of left-out cell types are filed under.
NEW = "new types"
#: Cell types that are left out of a model, beside the study on which they are looked for.
NEW_TYPES = {
    "NK": ("NK",),
    "B": ("naive B", "memory B"),
    "CD14 monocyte": ("CD14 monocyte",),
    "CD8 memory T": ("CD8 memory T",),
}


def left_out(studies: dict[str, AnnData], results: Path, seed: int = 0) -> None:
    """Scores models that have not seen a study on that study; goes on after a stop.

    Args:
        studies: From `read`.
        results: File that each score is appended to, as JSON.
        seed: Seed of everything.
    """
    kept = _kept(results)
    for fold, names in FOLDS.items():
        others = _others(studies, names)
        # Of the same donors as the study by Ding et al., and so asked of no model that saw these.
        asked = [*names, *(HELD_OUT[1:] if fold == "Ding" else ())]
        wanted = [study for study in asked if (fold, study) not in kept]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as work:
            model = build(others, Path(work), seed=seed)
        for study in wanted:
            query = _plain(studies[study])
            began = time.perf_counter()
            table = annotate(model, query)
            seconds = time.perf_counter() - began
            row = {"fold": fold, "study": study, "seconds": round(seconds, 1)}
            row |= _scores(
                "concerto", studies[study], table["label"], table["label_coarse"], others
            )
            row |= _scores(
                "concerto, never unknown",
                studies[study],
                table["predicted"],
                _groups_by_type(table["predicted"]),
                others,
            )
            for name, fine, coarse in peers(others, query, seed):
                row |= _scores(name, studies[study], fine, coarse, others)
            kept.add(row)


def new_types(studies: dict[str, AnnData], results: Path, seed: int = 0) -> None:
    """Scores models without a cell type on a study that has it and that they have not seen."""
    kept = _kept(results)
    for name, types in NEW_TYPES.items():
        if (NEW, name) in kept:
            continue
        names = FOLDS["10x 3k"]
        others = _others(studies, names)
        lacking = np.array([not set(of.split(OR)) & set(types) for of in others.obs["types"]])
        with tempfile.TemporaryDirectory() as work:
            model: Classifier = build(others[lacking].copy(), Path(work), seed=seed)
        study = studies[names[0]]
        table = annotate(model, _plain(study))
        new = np.array([set(of.split(OR)) <= set(types) for of in study.obs["types"]])
        row: dict[str, Any] = {"fold": NEW, "study": name}
        for level, column in (("fine", "label"), ("coarse", "label_coarse")):
            unknown = (table[column] == UNKNOWN).to_numpy()
            row[f"{level}, new unknown"] = round(float(unknown[new].mean()), 4)
            row[f"{level}, known unknown"] = round(float(unknown[~new].mean()), 4)
        kept.add(row)


def peers(known: AnnData, query: AnnData, seed: int) -> Iterator[tuple[str, Any, Any]]:
    """What logistic regression, kNN on PCA and scANVI say of a query, by the same cells.

    The first two look at the log-normalized 2,000 most variable of the genes that known cells and
    query share, and learn types and groups each by itself. scANVI, where it is installed, looks at
    counts, trains with the query, and a group is that of its type. Labels that leave types open are
    resolved as for ours.
    """
    import anndata
    import scanpy as sc
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    known = known.copy()
    known.var_names = known.var["gene_symbols"] if "gene_symbols" in known.var else known.var_names
    shared = known.var_names.intersection(query.var_names)
    known, query = known[:, shared].copy(), query[:, shared].copy()
    both = anndata.concat([known, query], index_unique="-")  # counts, which are scaled below
    for cells in (known, query):
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(known, n_top_genes=min(2000, len(shared)))
    variable = known.var["highly_variable"].to_numpy()
    x, new = (cells.X[:, variable].toarray() for cells in (known, query))
    scale = StandardScaler().fit(x)
    pca = PCA(50, random_state=seed).fit(x)
    z, z_new = pca.transform(x), pca.transform(new)
    fine = resolved(z, known.obs["types"].astype(str).to_numpy(), seed).astype(str)
    coarse = group_of(known.obs["types"].astype(str)).to_numpy().astype(str)
    views = {
        "logistic regression": (scale.transform(x), scale.transform(new)),
        "kNN on PCA": (z, z_new),
    }
    for name, (seen, asked) in views.items():
        told = []
        for labels in (fine, coarse):
            if name == "kNN on PCA":
                method: Any = KNeighborsClassifier(15)
            else:
                method = LogisticRegression(C=0.01, max_iter=100, random_state=seed)
            told.append(method.fit(seen, labels).predict(asked))
        yield name, *told
    if is_there("scanvi"):
        rest = query.n_obs
        both.obs["study"] = [*known.obs["study"].astype(str), *["query"] * rest]
        both.obs["type"] = [*fine, *[None] * rest]
        types = scanvi(both, "study", "type", seed)[-rest:]
        yield "scANVI", types, group_of(pd.Series(types)).to_numpy().astype(str)


def table_of(results: Path) -> str:
    """All scores as tables in Markdown."""
    rows = pd.DataFrame(read_lines(results)).set_index("study")
    tables = []
    for level in ("coarse", "fine"):
        left = rows[rows["fold"] != NEW].dropna(axis=1, how="all")
        columns = [column for column in left if column.startswith(f"{level}, ")]
        tables.append(_markdown(level, left[["cells", *columns]].sort_index()))
    new = rows[rows["fold"] == NEW].drop(columns="fold").dropna(axis=1, how="all")
    return "\n\n".join([*tables, *([_markdown(NEW, new)] if len(new) else [])])


# --- parts ------------------------------------------------------------------------------------


def _others(studies: dict[str, AnnData], names: tuple[str, ...]) -> AnnData:
    return joined([of for name, of in studies.items() if name not in (*names, *HELD_OUT)])


def _plain(study: AnnData) -> AnnData:
    """Cells without what is known of them."""
    import anndata

    return anndata.AnnData(study.X, obs=study.obs[[]], var=study.var[[]])


def _groups_by_type(labels: pd.Series) -> pd.Series:
    return labels.map(TYPES["group"]).fillna(UNKNOWN)


def _scores(name: str, study: AnnData, fine: Any, coarse: Any, known: AnnData) -> dict[str, float]:
    """Accuracy and macro-F1 at both levels, of cells whose type the model could know.

    At the fine level of those whose label tells one type. Of the others, which are new to the
    model, the share that is unknown.
    """
    from sklearn.metrics import f1_score

    types = study.obs["types"].astype(str).to_numpy()
    learned = {one for of in known.obs["types"].astype(str) for one in of.split(OR)}
    seen = np.array([bool(set(of.split(OR)) & learned) for of in types])
    one = seen & np.array([OR not in of for of in types])
    groups = group_of(study.obs["types"].astype(str)).to_numpy().astype(str)
    found: dict[str, float] = {"cells": int(seen.sum())}
    for level, truth, answer, asked in (
        ("coarse", groups, coarse, seen),
        ("fine", types, fine, one),
    ):
        told = np.asarray(answer).astype(str)
        unknown = told == UNKNOWN
        if asked.any():
            names = sorted(set(truth[asked]))
            f1 = f1_score(
                truth[asked], told[asked], labels=names, average="macro", zero_division=0.0
            )
            found[f"{level}, {name}: accuracy"] = round(float(np.mean((truth == told)[asked])), 4)
            found[f"{level}, {name}: macro-F1"] = round(float(f1), 4)
        if unknown.any():
            found[f"{level}, {name}: unknown"] = round(float(unknown[asked].mean()), 4)
            if not seen.all():
                found[f"{level}, {name}: new unknown"] = round(float(unknown[~seen].mean()), 4)
    return found


def _kept(results: Path) -> Lines:
    return Lines(results, lambda row: (row["fold"], row["study"]))


def _markdown(about: str, table: pd.DataFrame) -> str:
    """A table with the means of its columns."""
    table = pd.concat([table, table.mean().to_frame("mean").T]).round(3)
    rows = [
        [str(name), *map(str, row)] for name, row in zip(table.index, table.values, strict=True)
    ]
    return markdown(about, ["study", *map(str, table)], rows)
