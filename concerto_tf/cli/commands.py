"""One function per command: from its arguments to the Python call of the same name.

Here are those that make records and models, and those that ask a model;
`concerto_tf.cli.analysis_commands` has those that work without one.

Nothing heavy is imported before a command needs it, so that `concerto --help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from concerto_tf._paths import as_path
from concerto_tf.cli import given
from concerto_tf.cli.output import DONE, UNSUITABLE, say, table
from concerto_tf.cli.progress import Reporter


def run(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.run import run

    with Reporter(options.quiet) as progress:
        found = run(
            options.input,
            options.output,
            **given.same(options, "source_key label_key layer drop_empty workers dask seed"),
            **given.same(options, "genes resolution merge skip_damaged figure_format"),
            modalities=given.places(options) or None,
            progress=progress,
            **given.training(options),
        )
    say(
        options,
        table(found),
        f"result: {as_path(options.output) / 'result.h5ad'}",
        f"figures: {as_path(options.output) / 'figures'}",
        f"report: {as_path(options.output) / 'report.html'}",
    )
    return found | {"report": str(as_path(options.output) / "report.html")}


def demo(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.demo import demo

    with Reporter(options.quiet) as progress:
        found = demo(options.output, seed=options.seed, progress=progress)
    out = as_path(options.output)
    say(
        options,
        table(found),
        f"result: {out / 'result.h5ad'} (scanpy.read_h5ad opens it)",
        f"figures: {out / 'figures'}",
        f"report: {out / 'report.html'} (any browser opens it)",
        "next:",
        "  concerto run YOUR.h5ad -o result --label-key cell_type --source-key batch",
        f"  concerto embed {out / 'model'} OTHER.h5ad -o embedded.h5ad",
        f"  concerto export {out / 'model'} -o {out / 'served'}",
    )
    return found


def convert(options: argparse.Namespace) -> Any:
    from concerto_tf.records import convert
    from concerto_tf.tasks.inspect import inspect

    with Reporter(options.quiet) as progress:
        records = convert(
            options.input,
            options.output,
            **given.same(options, "layer source_key orthologs drop_empty workers dask seed"),
            **given.same(options, "shards compression overwrite"),
            label_keys=options.label_key or [],
            like=given.like(options.like),
            modalities=given.places(options) or None,
            progress=progress.stage("convert"),
        )
    found = inspect(records.path)
    say(options, table(found))
    return found


def inspect(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.inspect import inspect
    from concerto_tf.tasks.io.provenance import in_words

    with Reporter(options.quiet) as progress:
        found = inspect(options.path, options.verify, progress.stage("verify"))
    problems = found.get("problems", [])
    steps = found.get("steps", [])
    say(options, table({name: of for name, of in found.items() if name != "steps"}))
    for n, step in enumerate(steps, 1):
        say(options, "", f"step {n}: " + "\n  ".join(in_words(step)))
    for problem in problems:
        print(f"concerto: {options.path}: {problem}", file=sys.stderr)
    return found, UNSUITABLE if problems else DONE


def train(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.train import train

    lost = given.skip_damaged(options, "records")
    with Reporter(options.quiet) as progress:
        train(
            options.records,
            options.output,
            **given.same(options, "genes start seed"),
            modalities=options.modality,
            progress=progress.stage("train"),
            **given.training(options),
        )
    return _trained(options, lost)


def _trained(options: argparse.Namespace, lost: dict[str, int]) -> dict[str, Any]:
    """Says what came of a training."""
    from concerto_tf.jobs import read_note
    from concerto_tf.models.saving import SUMMARY

    found = (read_note(as_path(options.output) / SUMMARY) or {}) | lost
    for key in ("asked", "files", "checksum"):
        found.pop(key, None)
    say(options, table(found), f"model: {options.output}")
    return found


def embed(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.embed import write_embeddings
    from concerto_tf.tasks.io.reading import Reading

    lost = given.skip_damaged(options, "input")
    with Reporter(options.quiet) as progress:
        z = write_embeddings(
            options.model,
            options.input,
            options.output,
            Reading(**given.reading(options)),
            progress.stage("embed"),
        )
    found = {"cells": z.shape[0], "dimensions": z.shape[1], **lost, "output": str(options.output)}
    say(options, table(found))
    return found


def finetune(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.finetune import finetune

    lost = given.skip_damaged(options, "records", "target")
    with Reporter(options.quiet) as progress:
        finetune(
            options.model,
            options.records,
            options.output,
            **given.same(
                options, "label_key target end_to_end networks_only calibration keep_cells seed"
            ),
            levels=given.names(options.levels),
            progress=progress.stage("train"),
            **given.training(options),
        )
    return _trained(options, lost)


def annotate(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.annotate import agreement_of, annotate, as_classifier, own_labels

    lost = given.skip_damaged(options, "input")
    truth = None
    if options.label_key is not None:  # before there is any work to lose
        truth = own_labels(options.input, options.label_key)
    with Reporter(options.quiet) as progress:
        model = as_classifier(options.model)
        labels = annotate(
            model,
            options.input,
            options.output,
            alpha=options.alpha,
            **given.same(options, "adapt vote seed"),
            progress=progress.stage("annotate"),
            **given.reading(options),
        )
    found = given.labelled(labels, options.output) | lost
    if truth is not None:
        found["agreement"] = agreement_of(labels, truth.reindex(labels.index), model.classes)
    say(options, table(found))
    return found | given.rows(labels)


def map(options: argparse.Namespace) -> Any:  # noqa: A001 - the command's name
    from concerto_tf.tasks.map import ALPHA, map

    lost = given.skip_damaged(options, "reference", "query")
    with Reporter(options.quiet) as progress:
        labels = map(
            options.model,
            options.query,
            options.output,
            **given.same(options, "reference reference_source_key reference_layer label_key k"),
            **given.same(options, "neighbours_only finetune adapt groupby figure vote seed"),
            levels=given.names(options.levels),
            alpha=ALPHA if options.alpha is None else options.alpha,
            progress=progress.stage("map"),
            **given.reading(options),
        )
    found = given.labelled(labels, options.output) | lost
    say(options, table(found))
    return found | given.rows(labels)


def impute(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.impute import impute

    lost = given.skip_damaged(options, "reference", "query")
    with Reporter(options.quiet) as progress:
        values = impute(
            options.model,
            options.query,
            options.output,
            **given.same(options, "reference reference_source_key reference_layer k scale"),
            progress=progress.stage("impute"),
            **given.reading(options),
        )
    found = {
        "cells": len(next(iter(values.values()))),
        "features": {name: frame.shape[1] for name, frame in values.items()},
        **lost,
        "output": str(options.output),
    }
    say(options, table(found))
    return found


def explain(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.explain import explain

    lost = given.skip_damaged(options, "input")
    with Reporter(options.quiet) as progress:
        rows = explain(
            options.model,
            options.input,
            options.output,
            **given.same(options, "groupby top figure"),
            progress=progress.stage("explain"),
            **given.reading(options),
        )
    found = {"rows": len(rows), **lost, "output": str(options.output)}
    if options.groupby:
        best = rows[rows["rank"] <= 5].groupby("group", sort=False)["gene"]
        found["strongest"] = {str(group): list(genes) for group, genes in best}
    say(options, table(found))
    return found


def export(options: argparse.Namespace) -> Any:
    from concerto_tf.export import export

    folder = export(options.model, options.output, alpha=options.alpha, k=options.k)
    say(options, table(found := {"saved_model": str(folder)}))
    return found
