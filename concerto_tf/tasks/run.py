"""The main job: from counts to embeddings, clusters, scores and figures."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._files import write_json, write_table
from concerto_tf._identity import identity_of_cells
from concerto_tf._paths import as_path
from concerto_tf._progress import stage
from concerto_tf.errors import Argument
from concerto_tf.jobs import Job
from concerto_tf.pl.figures import check_format
from concerto_tf.records import Records, convert, open_input
from concerto_tf.records.batch import label_key
from concerto_tf.records.inputs.input import Input
from concerto_tf.tasks.cluster import (
    AUTO,
    CLUSTER,
    cluster,
    cluster_scores,
    resolution_of,
)
from concerto_tf.tasks.described import SUPPORT, TABLES, describe
from concerto_tf.tasks.embed import KEY, embed_records
from concerto_tf.tasks.io.provenance import reads_matrix, recorded, taken, uses_model
from concerto_tf.tasks.io.result import write_result
from concerto_tf.tasks.io.run_folder import (
    FIGURES,
    LAYOUT,
    MARKERS_TABLE,
    METRICS,
    RECORDS,
    RESULT,
    draw_maps,
)
from concerto_tf.tasks.io.unintegrated import variance_lost
from concerto_tf.tasks.markers import MARKERS, marker_table
from concerto_tf.tasks.merging import check_merge, merge_sources
from concerto_tf.tasks.neighbours import kept_graph, umap
from concerto_tf.tasks.reporting.run import write_report
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.arguments import check_arguments, check_cells
from concerto_tf.tasks.training.job import as_trained

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.models import ContrastiveModel

_log = logging.getLogger("concerto_tf")
StageProgress = Callable[[str, int, int], None]


@recorded("run")
@checked
def run(
    inputs: str | Path | AnnData | Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    source_key: str | None = None,
    label_key: str | None = None,
    layer: str | None = None,
    genes: str | None = None,
    resolution: float | str = AUTO,
    merge: float = 0.0,
    drop_empty: bool = False,
    modalities: Mapping[str, str] | None = None,
    workers: int | None = None,
    dask: Any = None,
    seed: int = 0,
    skip_damaged: bool = False,
    figure_format: str = "png",
    progress: StageProgress | None = None,
    **training: Any,
) -> dict[str, Any]:
    """Converts, trains, embeds, clusters, scores and draws; called again, it continues.

    Leaves ``records/``, ``model/``, ``result.h5ad`` (the input's cells in input order with
    ``obsm["X_concerto"]``, ``obsm["X_umap"]``, ``obs["concerto_cluster"]`` and the clusters'
    markers as scanpy keeps them and their support), ``markers.tsv``, ``metrics.json``, ``figures/``
    and, to be sent on, ``report.html``.

    Args:
        inputs: One or several of what `convert` takes.
        out: Folder of the result.
        source_key: Column of obs that names batches, donors or technologies.
        label_key: Column of obs with cell types, to score and color by. Training never sees it.
        layer: Layer that holds the counts; by default as in `convert`.
        genes: ``all``, ``hvg:N`` or a file with one gene per line.
        resolution: Resolution of the Leiden clusters; see `cluster`.
        merge: How far clusters of one source each that seem to be one cell type are drawn together
            in ``X_concerto``, from 0 to 1; see `islands`. The model does not learn of it. They are
            warned of where it is 0.
        drop_empty: Leave out cells without any count instead of refusing them.
        modalities: Further modalities, name to place: {"protein": "obsm:protein"}.
        workers, dask: As in `convert`.
        seed: Seed of everything.
        skip_damaged: Go on without the cells of ``records/`` that were damaged since they were
            converted, and say how many are lost.
        figure_format: Of the figures: ``png``, ``pdf`` or ``svg``.
        progress: Called with the stage, the number of cells done and of all cells.
        **training: Further arguments of `train`.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: The input or an argument is unsuitable, or ``out`` holds something else.
    """
    if isinstance(inputs, str | Path) or not isinstance(inputs, Sequence):
        inputs = [inputs]
    out = as_path(out)
    asked = {
        "inputs": [identity_of_cells(item, without=out) for item in inputs],
        "source_key": source_key,
        "label_key": label_key,
        "layer": layer,
        "genes": genes,
        "resolution": resolution,
        "drop_empty": drop_empty,
        "seed": seed,
        "merge": merge,
        **({"modalities": dict(modalities)} if modalities else {}),
        "training": {key: str(_told(value)) for key, value in training.items()},
    }

    def reporter(stage: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(stage, done, total)

    with Job(out, asked, LAYOUT) as job:
        # What is unsuitable shows before anything is written.
        check_arguments(**training)
        check_format(figure_format)
        resolution_of(resolution)
        check_merge(merge)
        finished, trained = job.finished, job.kept
        with ExitStack() as stack:
            # `convert` tells if none of several has a modality.
            opened = [
                stack.enter_context(
                    open_input(item, layer=layer, modalities=modalities, lenient=len(inputs) > 1)
                )
                for item in inputs
            ]
            for cells in opened:
                reads_matrix(cells)
            _check_inputs(opened, source_key, label_key)
            if not finished:
                job.begin()
            held = any(cells.path is None for cells in opened)
            with _timed(job, "convert"):
                # `asked` holds the content of cells in memory, so these records are of the same.
                records = (
                    Records(out / RECORDS, skip_damaged=skip_damaged)
                    if held and trained
                    else convert(
                        # Workers elsewhere share the folder of the records, and nothing else.
                        opened if dask is None else inputs,
                        out / RECORDS,
                        layer=layer,
                        source_key=source_key,
                        label_keys=[label_key] if label_key else [],
                        drop_empty=drop_empty,
                        modalities=modalities,
                        workers=workers,
                        dask=dask,
                        seed=seed,
                        overwrite=not trained,
                        skip_damaged=skip_damaged,
                        progress=reporter("convert"),
                    )
                )
        if not finished:
            with _timed(job, "train"):
                model = train(
                    records,
                    out / "model",
                    genes=genes,
                    seed=seed,
                    progress=reporter("train"),
                    **training,
                )
            _finish(job, asked, inputs, records, model, figure_format, reporter("embed"))
    return json.loads((out / METRICS).read_text("utf-8"))


def _told(value: Any) -> Any:
    """An argument of `train` as plain data."""
    from concerto_tf.models import ContrastiveModel
    from concerto_tf.models.objects import identity_of, plain

    return identity_of(value) if isinstance(value, ContrastiveModel) else plain(value)


@contextmanager
def _timed(job: Job, stage: str) -> Iterator[None]:
    """Notes how long a stage took, the first time it is done."""
    began = time.perf_counter()
    yield
    seconds = job.facts.get("seconds", {})
    if stage not in seconds:
        job.note(seconds={**seconds, stage: time.perf_counter() - began})


def _check_inputs(opened: Sequence[Input], source_key: str | None, label_key: str | None) -> None:
    """Raises InputError if the inputs lack a key, or hold too little to train on."""
    n_genes, sources = 0, Counter[str]()
    for cells in opened:
        if label_key is not None:
            cells.column(label_key)
        if source_key is None:
            _hint_at_sources(cells)
            sources[cells.stem] += cells.n_cells
        else:
            codes, categories = cells.column(source_key)
            sources.update(dict(zip(categories, np.bincount(codes[codes >= 0]), strict=True)))
        n_genes += len(cells.genes)
    names = ", ".join(cells.name for cells in opened)
    check_cells(names, sum(cells.n_cells for cells in opened), n_genes, sources)


def _hint_at_sources(cells: Input) -> None:
    """Says so where obs has a column that looks like sources and none was named."""
    for key in ("batch", "donor", "donor_id", "sample", "sample_id", "patient", "library"):
        if key in cells.columns:
            found = len(cells.column(key)[1])
            if 2 <= found <= 100:
                _log.info(
                    "%s: obs has %r with %d values; %s would normalize each by its own statistics",
                    cells.name,
                    key,
                    found,
                    Argument("source_key", key),
                )
                return


def _finish(
    job: Job,
    asked: Mapping[str, Any],
    inputs: Sequence[str | Path | AnnData],
    records: Records,
    model: ContrastiveModel,
    figure_format: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Everything after training."""
    from anndata import AnnData

    from concerto_tf.metrics import embedding_scores
    from concerto_tf.pl.figures import training_curve

    out, seed, label = job.out, asked["seed"], asked["label_key"]
    uses_model(model)
    taken(**as_trained(out / "model", model))
    with _timed(job, "embed"):
        z = embed_records(model, records, progress)
    known = records.obs()
    adata = AnnData(obsm={KEY: z})
    adata.obs_names = list(known["cell"])
    colors = {"source": known["source"]} if len(records.sources) > 1 else {}
    if label:
        colors["label"] = known[label_key(label)]
    for name, values in colors.items():
        adata.obs[name] = values
        adata.obs[name] = adata.obs[name].astype("category")
    _log.info("clusters and UMAP")
    with _timed(job, "cluster"):
        cluster(adata, resolution=asked["resolution"], seed=seed)
        if "source" in colors:
            merge_sources(adata, known["source"], asked["merge"], asked["resolution"], seed)
            z = adata.obsm[KEY]
    with _timed(job, "umap"):
        umap(adata, seed=seed)
    _log.info("markers and support of the clusters")
    with _timed(job, "markers"):
        describe(adata, CLUSTER, records, seed)
        write_table(out / MARKERS_TABLE, marker_table(adata.uns.get(MARKERS)))
    labels = colors.get("label")
    scores: dict[str, float] = {}
    has = np.array([name is not None for name in ([] if labels is None else labels)], bool)
    if not has.all():
        _log.info("%s: %d cells without one are left out of the scores", label, (~has).sum())
    if labels is not None and len(set(labels[has])) < 2:
        _log.warning("%s: fewer than two labels; nothing to score by them", label)
        labels = None
    if labels is not None or "source" in colors:
        with stage("scores of the embedding"), _timed(job, "scores"):
            scores = embedding_scores(z, labels, colors.get("source"), seed=seed)
    titles = {"label": label, "source": asked["source_key"] or "input"}
    draw_maps(adata, [*colors, CLUSTER], out, titles, figure_format)
    log = out / "model" / "training.csv"
    rate = _training_rate(log)
    if rate:
        training_curve(log, out / FIGURES / f"training.{figure_format}")
    _log.info("writing %s", out / RESULT)
    graph = kept_graph(adata)
    with _timed(job, "result"):
        write_result(
            inputs,
            out / RESULT,
            layer=asked["layer"],
            names=known["cell"],
            rows=known["row"],
            obsm={KEY: z, "X_umap": adata.obsm["X_umap"]},
            obs={key: adata.obs[key] for key in (CLUSTER, SUPPORT)},
            uns=graph["uns"] | {key: adata.uns[key] for key in TABLES if key in adata.uns},
            obsp=graph["obsp"],
        )
    found = cluster_scores(adata.obs[CLUSTER], labels)
    del adata, graph  # of millions of cells it would be held beside what is read for the report
    if "source" in colors:
        scores |= variance_lost(out / RESULT, z, colors["source"], seed)
    del z, known
    seconds = {f"seconds_{stage}": round(s, 3) for stage, s in job.facts["seconds"].items()}
    metrics = {
        "cells": records.n_cells,
        "genes": records.n_genes,
        **({"cells_lost": sum(records.lost.values())} if records.lost else {}),
        **{key: float(value) for key, value in scores.items()},
        **found,
        **seconds,
        **rate,
        **_peak_memory(),
    }
    write_report(out, asked, metrics, records)
    write_json(out / METRICS, metrics)
    job.finish(**job.facts)


def _training_rate(log: Path) -> dict[str, float]:
    """Median of the rounds' cells per second, as the first one compiles; nothing without one."""
    import csv

    if not log.exists():  # nothing was trained
        return {}
    try:
        with log.open(newline="") as file:
            rates = [float(row["cells_per_second"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        rates = []
    if not rates or not np.isfinite(rates).all():
        _log.warning("%s: is damaged; no curve is drawn of the training", log)
        return {}
    return {"cells_per_second_train": round(float(np.median(rates)), 1)}


def _peak_memory() -> dict[str, int]:
    """Largest resident size of this process so far, in bytes; nothing where no system tells it."""
    try:
        import resource
    except ImportError:
        _log.info("this system does not tell how much memory was taken; metrics.json is without")
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024}
