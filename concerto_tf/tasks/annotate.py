"""Cell types of new cells by a fine-tuned model, `unknown` where it does not know them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf.errors import InputError
from concerto_tf.models import load_model
from concerto_tf.models.classifier import Classifier, novelty_of_query
from concerto_tf.novelty import UNKNOWN, Calibration, steps_below
from concerto_tf.records import Records, open_input
from concerto_tf.records.batch import label_key
from concerto_tf.records.cell_set import is_records
from concerto_tf.records.manifest import check_label
from concerto_tf.tasks.embed import KEY, Progress
from concerto_tf.tasks.io.provenance import recorded, uses_model
from concerto_tf.tasks.io.reading import Reading, open_cells
from concerto_tf.tasks.io.result import check_target, write_found
from concerto_tf.tasks.matching import check_adapt
from concerto_tf.tasks.rates import add_expected
from concerto_tf.tasks.relearn import tell
from concerto_tf.tasks.reporting.labels import write_report
from concerto_tf.tasks.sets import add_sets
from concerto_tf.tasks.vote import VOTE, add_vote, fine_clusters, named_groups

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Share of the cells of known types that may be rejected, where none is given.
ALPHA = 0.05


@recorded("annotate")
@checked
def annotate(
    model: Classifier | str | Path,
    cells: Records | str | Path | AnnData,
    out: str | Path | None = None,
    *,
    alpha: float = ALPHA,
    source_key: str | None = None,
    layer: str | None = None,
    drop_empty: bool = False,
    modalities: Mapping[str, str] | None = None,
    orthologs: str | Path | None = None,
    adapt: str = "auto",
    vote: bool | str = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Tells the types of cells, and writes them where asked to.

    A cell has the ``probability`` of its label among the known cell types, and a ``novelty``, a
    conformal p-value: the share of held-out cells that are as unlike the known cell types, or more
    so. Cells of a new type have a small one; below ``alpha`` the label is ``unknown``. Of cells of
    known types a share of about ``alpha`` is so rejected, more where they were measured otherwise.
    ``confidence`` is the geometric mean of the two.

    Where the cells were measured for a part of the genes, or less deeply, the types are told anew
    from labelled cells that the model keeps, looked at in the same way.

    No cell is rejected where fewer than 1 / alpha - 1 cells were held out. Without calibration the
    confidence is the probability.

    Args:
        model: A model that `finetune` made, or its path.
        cells: Records, or anything that `convert` takes; genes are matched by name.
        out: The `.h5ad` to write, with ``obs["concerto_label"]``, ``obs["concerto_confidence"]``
            and the other columns below alike, and ``obsm["X_concerto"]``, with ``report.html``
            beside it, to be sent on; ``None`` writes nothing.
        alpha: Share of the cells of known types that may be rejected, between 0 and 1.
        adapt: What to do about cells that lie off as a whole from the labelled: ``align`` moves
            them by what they share with these, ``source`` normalizes them by statistics of their
            own, which takes about the same types in both, ``none`` takes them as they are. ``auto``
            moves them where that makes them much more like the labelled ones, and says so.
        vote: Also give each cell the label that most cells of its group have: of the groups of a
            column of obs, or, with True, of small clusters of the embedding. The groups go to
            ``uns["concerto_vote"]``; see `add_vote`.
        source_key, layer, drop_empty, modalities, orthologs, progress: As in `embed`.
        seed: Seed of the small clusters of a vote, and of what `adapt` draws.

    Returns:
        A table with the names of the cells as index, in their order, and columns ``label``
        (``unknown`` where rejected), ``confidence``, ``predicted`` (the label before that),
        ``probability``, ``novelty`` and ``set`` (the types that cannot be excluded at a coverage of
        1 - alpha, see `add_sets`); where asked for ``vote`` and ``vote_share``, and the groups
        as ``attrs["vote"]``. Of a model that learned two levels also ``label_coarse`` and
        ``confidence_coarse``: a cell whose type is ``unknown`` may still be one of a known group.
        ``attrs["report"]`` says how the cells were measured, and ``attrs["expected"]`` what share
        of known cells, and of cells of each type were it not known, is called unknown at alpha.

    Raises:
        InputError: The model tells no types, model and cells do not fit together, or one of them
            or alpha is unsuitable.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; it must lie between 0 and 1, as in 0.05")
    check_adapt(adapt)
    if out is not None:
        check_target(out)
    model = as_classifier(model)
    reading = Reading(source_key, layer, drop_empty, modalities, orthologs)
    with open_cells(model.encoder, cells, reading, sampled=adapt == "source") as records:
        groups, uns = named_groups(cells, vote, records.obs()), {}
        told = tell(model, records, adapt, seed, progress)
        model, found = told.model, told.found
        if model.calibration:
            held_out = (model.calibration, model.directions)
            place = (found["score"], found["code"], found["embedding"])
            found = found | {"novelty": novelty_of_query(*place, held_out, model.together)}
        table = _table(model, found, records.obs()["cell"], alpha)
        table.attrs["report"] = [*records.report.get("lines", ()), *told.lines]
        _report(model, table, alpha)
        against = Calibration(np.array(model.nonconformity), len(model.nonconformity))
        add_sets(table, found["probabilities"], model.classes, against, alpha)
        if vote:
            groups = fine_clusters(found["embedding"], seed) if groups is None else groups
            uns[VOTE] = add_vote(table, groups, found["probabilities"], model.classes)
        if out is not None:
            obs = {f"concerto_{name}": column.to_numpy() for name, column in table.items()}
            obsm = {KEY: found["embedding"]}
            write_found(cells, out, records, obsm=obsm, obs=obs, uns=uns, layer=layer)
            facts = {
                "cell types of the model": ", ".join(model.classes),
                "cells held out to calibrate on": f"{len(model.calibration):,}",
            }
            notes, z = table.attrs["report"], found["embedding"]
            page = write_report(out, table, z, facts=facts, notes=notes, seed=seed)
            table.attrs["page"] = str(page)
    return table


def _table(
    model: Classifier, found: dict[str, np.ndarray], names: np.ndarray, alpha: float
) -> pd.DataFrame:
    """What `annotate` returns, of what the model says."""
    import pandas as pd

    predicted = np.array(model.classes, object)[found["code"]]
    rejected = model.rejected(found["novelty"], alpha)
    return pd.DataFrame(
        {
            "label": np.where(rejected, UNKNOWN, predicted),
            "confidence": np.sqrt(found["probability"] * found["novelty"]),
            "predicted": predicted,
            "probability": found["probability"],
            "novelty": found["novelty"],
            **_coarse(model, found, rejected, alpha),
        },
        index=pd.Index(names, name="cell"),
    )


def _coarse(
    model: Classifier, found: dict[str, np.ndarray], rejected: np.ndarray, alpha: float
) -> dict[str, np.ndarray]:
    """The coarse label of each cell: that of its type where this is known."""
    if model.coarse is None:
        return {}
    told = model.coarse.answer(found)
    names = np.array(model.coarse.names, object)
    code = np.where(rejected, told["code"], np.array(model.coarse.of_type)[found["code"]])
    return {
        "label_coarse": np.where(model.rejected(told["novelty"], alpha), UNKNOWN, names[code]),
        "confidence_coarse": np.sqrt(told["probability"] * told["novelty"]),
    }


def as_classifier(model: Any) -> Classifier:
    """A fine-tuned model, loaded where it is a path.

    Raises:
        InputError: It is a model without cell types.
    """
    where = model if isinstance(model, str | Path) else "the model"
    if isinstance(model, str | Path):
        model = load_model(model)
    if not isinstance(model, Classifier):
        raise InputError(
            f"{where}: tells no cell types; teach it some with `finetune`, or transfer "
            "labels from a reference with `map`"
        )
    uses_model(model)
    return model


def own_labels(cells: Records | str | Path | AnnData, key: str) -> pd.Series:
    """Labels that cells have themselves, by the cells' names; None where missing.

    Args:
        cells: Records, or anything that `convert` takes.
        key: Label of the records, or column of obs.

    Raises:
        InputError: There is no such label or column.
    """
    import pandas as pd

    if is_records(cells):
        records = cells if isinstance(cells, Records) else Records(cells)
        check_label(records.path, records.labels, key)
        known = records.obs()
        return pd.Series(known[label_key(key)], known["cell"], object)
    with open_input(cells) as opened:
        codes, names = opened.column(key)
        barcodes = opened.barcodes(0, opened.n_cells)
    return pd.Series(np.array([*names, None], object)[codes], barcodes, object)


def agreement_of(
    table: pd.DataFrame, truth: Sequence[str | None] | np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """How well annotation agrees with labels that the query has itself.

    Types that the reference lacks ought to be rejected, and count for nothing else; types that
    the query lacks are named.

    Args:
        table: From `annotate`.
        truth: Labels of the cells, in their order; None where missing.
        classes: The types that the model was taught.

    Returns:
        ``cells`` and ``cells_unseen`` (of known types, and of types the reference lacks),
        ``accuracy`` and ``macro_f1`` of the cells of known types before rejection,
        ``rejected_seen`` and ``rejected_unseen``, ``auroc`` of the confidence to tell the two
        apart, ``types_unseen`` and ``types_absent``. What cannot be said is None.

    Example:

    >>> import pandas as pd
    >>> table = pd.DataFrame({
    ...     "label": ["B", "B", "unknown"], "predicted": ["B", "B", "B"],
    ...     "confidence": [0.9, 0.5, 0.01],
    ... })
    >>> found = agreement_of(table, ["B", "T", "NK"], ["B", "T", "DC"])
    >>> found["accuracy"], found["rejected_unseen"], found["auroc"]
    (0.5, 1.0, 1.0)
    >>> found["types_unseen"], found["types_absent"]
    (['NK'], ['DC'])
    """
    from sklearn.metrics import f1_score, roc_auc_score

    truth = np.array(truth, object)
    labelled = np.array([isinstance(name, str) and name != "" for name in truth])
    seen, unseen = np.isin(truth, classes), labelled & ~np.isin(truth, classes)
    predicted = table["predicted"].to_numpy(object)
    rejected = (table["label"] == UNKNOWN).to_numpy()
    found: dict[str, Any] = {
        "cells": int(seen.sum()),
        "cells_unseen": int(unseen.sum()),
        "accuracy": None,
        "macro_f1": None,
        "rejected_seen": None,
        "rejected_unseen": None,
        "auroc": None,
    }
    if seen.any():
        names = sorted(set(truth[seen]))
        of_types = f1_score(
            truth[seen].astype(str),
            predicted[seen].astype(str),
            labels=names,
            average="macro",
            zero_division=0.0,
        )
        found["accuracy"] = float(np.mean(truth[seen] == predicted[seen]))
        found["macro_f1"] = float(of_types)
        found["rejected_seen"] = float(rejected[seen].mean())
    if unseen.any():
        found["rejected_unseen"] = float(rejected[unseen].mean())
        if seen.any():
            both = seen | unseen
            for key, column in (("auroc", "confidence"), ("auroc_novelty", "novelty")):
                if column in table:
                    found[key] = float(roc_auc_score(seen[both], table[column].to_numpy()[both]))
    found["types_unseen"] = sorted(set(truth[unseen]))
    found["types_absent"] = sorted(set(classes) - set(truth[seen]))
    return found


def _report(model: Classifier, table: pd.DataFrame, alpha: float) -> None:
    """Says how many cells were rejected, and where that could not be."""
    n = len(model.calibration)
    if not n:
        _log.warning(
            "the model was fine-tuned without calibration: no cell is rejected, and the confidence "
            "is the probability of the label"
        )
    elif steps_below(alpha, n) == 0:
        _log.warning(
            "calibrated on %d held-out cells, but alpha %g takes %d: no cell is rejected; ask for "
            "a larger alpha, or fine-tune on more labelled cells",
            n,
            alpha,
            int(np.ceil(1 / alpha - 1)),
        )
    else:
        _log.info(
            "%.1f%% of the cells are unknown; alpha %g: %s",
            100 * float((table["label"] == UNKNOWN).mean()),
            alpha,
            add_expected(table, model.stated, alpha),
        )
