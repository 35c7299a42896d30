"""Query cells mapped onto a reference: labels with a confidence, or `unknown`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._progress import stage
from concerto_tf.errors import Argument, InputError
from concerto_tf.models.encoder import Encoder
from concerto_tf.novelty import UNKNOWN
from concerto_tf.pl.figures import check_figure
from concerto_tf.records import Records
from concerto_tf.reference.cells import Reference
from concerto_tf.reference.levels import Finest, label_levels
from concerto_tf.reference.stated import stated
from concerto_tf.tasks.adapt import trained_further
from concerto_tf.tasks.embed import KEY, Progress, encoder_of
from concerto_tf.tasks.hearing import Heard, hear
from concerto_tf.tasks.io.provenance import recorded, uses_reference
from concerto_tf.tasks.io.reading import Reading, key_where_there, open_cells
from concerto_tf.tasks.io.result import check_target, write_found
from concerto_tf.tasks.matching import Match, check_adapt, match, reopened
from concerto_tf.tasks.rates import add_expected
from concerto_tf.tasks.reference import find_reference, make_reference, model_folder
from concerto_tf.tasks.relatives import groups_of, relatives, show_relatives
from concerto_tf.tasks.reporting.labels import told_of, write_report
from concerto_tf.tasks.sets import add_sets
from concerto_tf.tasks.vote import VOTE, add_vote, fine_clusters, named_groups

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


#: Share of the reference's own cells that `map` would call unknown; see `map`.
ALPHA = 0.1
#: Share of a query past which it is said that it is unknown.
_MUCH_UNKNOWN = 0.3
_log = logging.getLogger("concerto_tf")


@recorded("map")
@checked
def map(  # noqa: A001 - the command's name
    model: Encoder | str | Path,
    query: Records | str | Path | AnnData,
    out: str | Path | None = None,
    *,
    reference: Reference | Records | str | Path | AnnData | None = None,
    label_key: str | None = None,
    levels: Sequence[str] = (),
    k: int = 5,
    alpha: float = ALPHA,
    neighbours_only: bool = False,
    finetune: bool = False,
    adapt: str = "auto",
    source_key: str | None = None,
    layer: str | None = None,
    reference_source_key: str | None = None,
    reference_layer: str | None = None,
    drop_empty: bool = False,
    orthologs: str | Path | None = None,
    modalities: Mapping[str, str] | None = None,
    groupby: str | None = None,
    figure: str | Path | None = None,
    vote: bool | str = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Labels query cells by labelled reference cells, and says which it does not know.

    Three things tell a label: the vote of the k nearest reference cells, weighted by cosine, and
    logistic regression on the embedding and on the genes. Reference cells that were left out tell
    how much each counts.

    The ``novelty`` of a cell is a conformal p-value: the share of the reference's own cells that
    are as unlike the others of their label, or more so. Cells of a new type have a small one;
    below ``alpha`` the label is ``unknown``.

    Of query cells of known types that were measured like the reference a share of about ``alpha``
    is rejected; more where the model was trained on the query too.

    Where the query was measured for a part of the genes or modalities, or less deeply, reference
    cells are looked at in the same way, if they are given.

    Without labels to transfer (neither ``label_key`` nor ``levels``) cells are only embedded.

    Args:
        model: A trained model, or its path. In its folder the embedded reference is kept.
        query: Cells to map; what `embed` takes.
        out: The `.h5ad` to write: the query with ``obs["concerto_label"]``,
            ``obs["concerto_confidence"]``, ``obs["concerto_novelty"]``, ``obs["concerto_set"]``,
            the label before rejection in ``obs["concerto_predicted"]``, and ``obsm["X_concerto"]``;
            of ``levels`` each also with the level's name behind, as in
            ``obs["concerto_label_<level>"]``. Beside it ``report.html``, to be sent on.
        reference: Reference cells, or a `Reference`; ``None`` for the one kept with the model.
        label_key: Column of the reference's obs to transfer.
        levels: Several such columns, the coarsest first. A cell is mapped to a coarse group first,
            by all reference cells, then among those of its group; where the coarse label is
            unknown, so are the finer ones. ``label_key`` is the finest level where not among them.
        k: Number of neighbours that vote; in a group of fewer reference cells all of them.
        alpha: Novelty p-value below which a cell is unknown; 0 rejects none.
        neighbours_only: Let the neighbours alone tell labels, as in the paper.
        finetune: Train the model on query and reference without labels first, and embed with it.
        adapt: What to do about a query that lies off from the reference as a whole: ``align`` moves
            it by what its cells share with the reference, ``source`` normalizes it by statistics of
            its own, which takes about the same types in both, ``none`` takes it as it is. ``auto``
            moves it where that makes it much more like the reference, and says so.
        reference_source_key: As ``source_key``, of the reference; by default the same where the
            reference has it.
        reference_layer: As ``layer``, of the reference.
        source_key, layer, drop_empty, orthologs, modalities, progress: As in `embed`, of the query.
        groupby: Column of the query's obs, or ``leiden`` for clusters of its embedding, whose
            groups are shown beside their nearest reference labels; see `relatives`.
        figure: File of the Sankey figure of these; the table is written beside it as `.tsv`.
        vote: Also give each cell the label that most cells of its group have: of the groups of a
            column of the query's obs, or, with True, of small clusters of its embedding. Columns
            ``concerto_vote`` and ``concerto_vote_share``, and ``uns["concerto_vote"]`` by group.
        seed: Seed of fine-tuning and of Leiden.

    Returns:
        One row per query cell: ``label``, ``confidence`` (geometric mean of ``probability`` and
        ``novelty``), ``predicted`` (the label before rejection), ``probability`` (of the
        label), ``novelty`` (the p-value); of ``levels`` each with the level's name behind;
        of the finest level ``set`` (the labels that
        cannot be excluded at a coverage of 1 - alpha, see `add_sets`) and where asked for ``vote``
        and ``vote_share``.
        ``attrs["relatives"]`` holds the rows of `relatives` where asked for, ``attrs["vote"]``
        those of `add_vote`, ``attrs["report"]`` how the genes were matched, ``attrs["expected"]``
        what share of known cells, and of cells of each label were it not known, is called unknown
        at alpha (of ``levels``: of the coarsest).

    Raises:
        InputError: Model, query and reference do not fit together, or an argument is unsuitable.

    Reference:
        Concerto, "Query-to-reference mapping" and equations 14 to 16.
    """
    keys = [*levels, *([label_key] if label_key and label_key not in levels else [])]
    _check_arguments(keys, k, alpha, finetune, adapt, reference, groupby, figure, vote)
    for target in (out, figure):
        if target is not None:
            check_target(target)
    if figure is not None:
        check_figure(figure)
    folder, model = model_folder(model), encoder_of(model)
    reading = Reading(source_key, layer, drop_empty, modalities, orthologs)
    of_reference = replace(
        reading,
        source_key=reference_source_key or key_where_there(reference, source_key),
        layer=reference_layer,
        orthologs=None,
    )
    with ExitStack() as stack:
        records = stack.enter_context(
            open_cells(
                model,
                query,
                reading,
                lenient=True,
                # Beside a reference whose file or object has the same name, it is another source.
                source_name="query" if finetune and source_key is None else None,
                sampled=adapt == "source",
                trained=finetune,
            )
        )
        groups_that_vote = named_groups(query, vote, records.obs())
        if finetune:
            origin = stack.enter_context(
                open_cells(model, reference, of_reference, label_keys=keys, trained=True)
            )
            assert isinstance(records, Records) and isinstance(origin, Records)
            model = trained_further(model, [records, origin], seed, progress)
            found = make_reference(model, origin, keys)
        elif keys or reference is not None:
            found = find_reference(model, folder, reference, of_reference, label_keys=keys)
        else:
            found = None
        if found is not None:
            uses_reference(found)
            _check_k(found, keys, k)
            found = found.by_neighbours() if neighbours_only else found
        if finetune:  # it has learned the query's own statistics, of what was measured alone
            seen = Match(found, hear(model, records, found, progress, fill_unmeasured=False))
        else:
            seen = match(
                model,
                records,
                found,
                cells=reopened(model, reference, of_reference),
                key=keys[0] if keys else None,
                k=k,
                how=adapt,
                seed=seed,
                progress=progress,
            )
        found, z = seen.reference, seen.heard.z
        known = records.obs()
        lines = [*records.report.get("lines", ()), *seen.lines]
        with stage("labels and novelty"):
            table, finest = _label(found, seen.heard, keys, k, alpha, known["cell"], bool(levels))
        table.attrs["report"] = lines
        if not keys:
            told = "%s: no column of labels is named; its cells are placed, not labelled (%s)"
            _log.warning(told, records.name, Argument("label_key"))
        elif found is not None:
            _say_unknown(records.name, table["label"])
            if alpha:
                _say_expected(table, found, keys, alpha)
        if finest is not None:
            add_sets(table, finest.shares, finest.names, finest.known, alpha)
        uns = {}
        if vote and finest is not None:
            by = fine_clusters(z, seed) if groups_that_vote is None else groups_that_vote
            uns[VOTE] = add_vote(table, by, finest.shares, finest.names)
        if groupby is not None:
            groups = groups_of(query, groupby, z, known, seed)
            near = relatives(groups, table["predicted"], table["label"])
            # As plain rows: pandas cannot compare tables in `attrs`, and fails to print them.
            table.attrs["relatives"] = near.to_dict("records")
            show_relatives(near, groupby, keys[-1], figure)
        if out is not None:
            columns = {
                f"concerto_{name}": table[name].to_numpy()
                for name in table
                if name.startswith(("label", "confidence", "novelty", "predicted", "set", "vote"))
            }
            write_found(query, out, records, obsm={KEY: z}, obs=columns, uns=uns, layer=layer)
            facts = {} if found is None else told_of(found, keys)
            page = write_report(out, table, z, facts=facts, notes=lines, seed=seed)
            table.attrs["page"] = str(page)
    return table


def _say_unknown(name: str, labels: pd.Series) -> None:
    """Warns where much of a query is unknown."""
    share = (labels == UNKNOWN).mean()
    if share > _MUCH_UNKNOWN:
        _log.warning(
            "%s: %.0f%% of its cells are unlike the reference and called %s; they may be of types "
            "that it lacks, or differ from it as a whole (%s)",
            name,
            100 * share,
            UNKNOWN,
            Argument("adapt"),
        )


def _say_expected(
    table: pd.DataFrame, reference: Reference, keys: Sequence[str], alpha: float
) -> None:
    """Says what share of known cells, and of cells of a type left out, is called unknown."""
    of = f"{keys[0]}: " if len(keys) > 1 else ""  # the level that all cells are compared at
    words = add_expected(table, stated(reference, keys[0]), alpha)
    less = "; fewer where the model has not seen the type" if "left out" in words else ""
    _log.info("alpha %g: %s%s%s", alpha, of, words, less)


# --- labels ---------------------------------------------------------------------------------


def _label(
    reference: Reference | None,
    heard: Heard,
    keys: Sequence[str],
    k: int,
    alpha: float,
    names: np.ndarray,
    by_level: bool,
) -> tuple[pd.DataFrame, Finest | None]:
    """The table that `map` returns, and what else is known of the finest labels."""
    import pandas as pd

    index = pd.Index(list(names), name="cell")
    if reference is None or not keys:
        return pd.DataFrame(index=index), None
    found, finest = label_levels(reference, heard.z, keys, k, alpha, heard.by_genes)
    table = found[keys[-1]]
    if by_level:
        named = {"coarse": found[keys[0]], **found} if len(keys) > 1 else found
        parts = [level.add_suffix(f"_{key}") for key, level in named.items()]
        table = pd.concat([table, *parts], axis=1)
    return table.set_index(index), finest


# --- arguments ------------------------------------------------------------------------------


def _check_arguments(
    keys: Sequence[str],
    k: int,
    alpha: float,
    finetune: bool,
    adapt: str,
    reference: Any,
    groupby: str | None,
    figure: str | Path | None,
    vote: bool | str,
) -> None:
    if len(set(keys)) < len(keys):
        raise InputError(f"levels name a column twice: {', '.join(keys)}")
    if k < 1:
        raise InputError(f"k is {k}; it must be at least 1")
    if not 0 <= alpha < 1:
        raise InputError(f"alpha is {alpha}; it must be at least 0 and below 1")
    if finetune and (reference is None or isinstance(reference, Reference)):
        raise InputError(
            "fine-tuning embeds the reference anew, and so needs its cells", "reference"
        )
    check_adapt(adapt)
    if finetune and adapt not in ("auto", "none"):
        raise InputError(
            "fine-tuning learns the query's own statistics already; leave out one of the two"
        )
    if groupby is not None and not keys:
        raise InputError("groups are shown beside reference labels; name a label key, too")
    if vote and not keys:
        raise InputError("a vote is about labels; name a label key, too")
    if figure is not None and groupby is None:
        raise InputError("the figure shows groups of the query; name them with groupby")


def _check_k(reference: Reference, keys: Sequence[str], k: int) -> None:
    for key in keys:
        held = int((reference.labels_of(key).codes >= 0).sum())
        if k > held:
            raise InputError(
                f"k is {k}, but only {held} reference cells have a label {key!r}; choose a k of at "
                f"most {held}"
            )
