"""The arguments of every command. A new command begins here; `commands` has what it calls."""

from __future__ import annotations

import argparse
from typing import Any

from concerto_tf._version import __version__
from concerto_tf.cli import analysis_commands, commands, parsing, serving
from concerto_tf.cli.options import (
    about_cells,
    adapt,
    embedding,
    expecting,
    figures,
    importing,
    keys,
    layer,
    model,
    model_and_input,
    model_and_reference,
    orthologs,
    output,
    reading,
    real,
    resolution,
    skipping,
    steps,
    training,
    vote,
    whole,
    workers,
)


def _shared() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--seed", type=parsing.seed, default=0, help="seed of everything (default 0)"
    )
    shared.add_argument(
        "--threads",
        type=parsing.threads,
        metavar="N",
        help="threads to compute with (as many as processors are given to this process)",
    )
    shared.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    shared.add_argument("--quiet", action="store_true", help="only errors")
    shared.add_argument("--debug", action="store_true", help="tracebacks and library messages")
    return shared


def make_parser() -> argparse.ArgumentParser:
    parser = parsing.Parser(
        prog="concerto", description="From single-cell counts to embeddings, clusters and labels."
    )
    parser.add_argument("--version", action="version", version=f"concerto_tf {__version__}")
    subparsers: Any = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = _shared()

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = subparsers.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(run=run, parsers=subparsers.choices)
        return made

    made = command("run", commands.run, "convert, train, embed, cluster, score and draw; resumes")
    made.add_argument("input", nargs="+", help=".h5ad, .h5mu, .zarr, 10x .h5 or 10x mtx folder")
    output(made, "DIR")
    keys(made)
    reading(made)
    workers(made)
    training(made)
    skipping(made)
    resolution(made)
    real(
        made,
        "--merge",
        "how far clusters that stay apart by source are moved together, 0 to 1",
        0.0,
    )
    figures(made)

    made = command("convert", commands.convert, "cells to shards of TFRecords; resumes")
    made.add_argument("input", nargs="+", help=".h5ad, .h5mu, .zarr, 10x .h5 or 10x mtx folder")
    output(made, "RECORDS")
    keys(made, labels="several")
    reading(made)
    workers(made)
    whole(made, "--shards", "number of files")
    made.add_argument("--compression", choices=["none", "gzip"], default="none")
    made.add_argument("--like", metavar="RECORDS_OR_MODEL", help="use the genes of these")
    expecting(made)
    made.add_argument("--overwrite", action="store_true", help="replace records of other cells")
    orthologs(made)
    importing(made)

    made = command("inspect", commands.inspect, "records, a model or a result in words")
    made.add_argument("path", help="folder of records or of a model, .keras or .h5ad")
    made.add_argument("--verify", action="store_true", help="read every shard against its checksum")
    expecting(made)
    importing(made)

    made = command("train", commands.train, "records to a model; resumes")
    made.add_argument("records", help="folder of records")
    output(made, "MODEL")
    training(made)
    skipping(made)
    made.add_argument(
        "--modality",
        action="append",
        metavar="NAME",
        help="a modality to train on; by default all that the records hold",
    )
    made.add_argument("--from", dest="start", metavar="MODEL", help="continue from this model")
    expecting(made)

    made = command("embed", commands.embed, "embeddings of cells by a model")
    model_and_input(made)
    about_cells(made, "OUT.h5ad", labels=None)

    made = command(
        "cluster", analysis_commands.cluster, "clusters of an embedding, or of a finished run anew"
    )
    made.add_argument("input", help=".h5ad with an embedding, or the folder of a finished run")
    output(made, "OUT.h5ad", "where to write; by default into the folder of the run", False)
    made.add_argument(
        "--algorithm",
        choices=["leiden", "kmeans", "soft-kmeans", "consensus"],
        default="leiden",
        help="leiden by default",
    )
    resolution(made)
    whole(made, "--n-clusters", "number of clusters, but for leiden")
    whole(made, "--runs", "clusterings in a consensus (20)")
    made.add_argument("--clusterings", metavar="KEY,KEY", help="obs columns to agree on instead")
    embedding(made)

    made = command("evaluate", analysis_commands.evaluate, "scores of an embedding")
    made.add_argument("input", help=".h5ad with an embedding")
    keys(made)
    embedding(made)

    made = command("finetune", commands.finetune, "a model that tells cell types, from labels")
    model(made)
    made.add_argument("records", help="folder of records with the labels")
    output(made, "MODEL")
    made.add_argument("--label-key", metavar="KEY", help="label to learn")
    made.add_argument(
        "--levels", metavar="COARSE,FINE", help="label to learn, and a coarse one to tell beside it"
    )
    steps(made)
    skipping(made)
    made.add_argument("--target", metavar="RECORDS", help="adapt to these cells without labels")
    made.add_argument("--end-to-end", action="store_true", help="begin from fresh weights")
    made.add_argument(
        "--networks-only",
        action="store_true",
        help="tell types by the two networks alone, as in the paper",
    )
    real(made, "--calibration", "share of the labelled cells held out to calibrate on (0.2)", 0.2)
    made.add_argument(
        "--keep-cells",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep up to 4,000 labelled cells in the model, for queries measured otherwise",
    )

    made = command("annotate", commands.annotate, "cell types, `unknown` where they are new")
    model_and_input(made)
    about_cells(made, "OUT.h5ad")
    real(made, "--alpha", "share of cells of known types that may be rejected (0.05)", 0.05)
    adapt(made)
    vote(made)

    made = command("map", commands.map, "labels of a reference for query cells")
    model_and_reference(made)
    about_cells(made, "OUT.h5ad")
    made.add_argument("--levels", metavar="COARSE,FINE", help="labels to map one within the other")
    whole(made, "--k", "neighbours that vote (5)", 5)
    real(made, "--alpha", "share of reference cells below which a cell is unknown")
    made.add_argument(
        "--neighbours-only",
        action="store_true",
        help="labels by the vote of neighbours alone, as in the paper",
    )
    made.add_argument("--finetune", action="store_true", help="train on the query first")
    adapt(made)
    made.add_argument(
        "--groupby",
        metavar="KEY",
        help="column of the query, or leiden: its groups beside reference labels",
    )
    made.add_argument("--figure", metavar="FILE", help="Sankey figure of these")
    vote(made)

    made = command("impute", commands.impute, "a missing modality from reference neighbours")
    model_and_reference(made)
    about_cells(made, "OUT.h5ad", labels=None)
    whole(made, "--k", "neighbours that are averaged")
    made.add_argument(
        "--scale",
        choices=["log", "clr", "counts"],
        help="of values from counts: log1p of 10,000 per cell (the default), centered log ratio, "
        "or as counted",
    )

    help_ = "genes that place cells or groups in the embedding, as a table"
    made = command("explain", commands.explain, help_)
    model_and_input(made)
    about_cells(made, "TABLE.tsv", labels=None)
    made.add_argument("--groupby", "--label-key", metavar="KEY", help="obs column of the groups")
    whole(made, "--top", "genes of each cell or group")
    made.add_argument("--figure", metavar="FILE", help="heatmap of the groups' strongest genes")

    made = command("score", analysis_commands.score, "gene-set signature scores of cells")
    made.add_argument("input", help=".h5ad, .h5mu, .zarr, 10x .h5 or 10x mtx folder")
    output(made, "OUT.h5ad")
    made.add_argument(
        "--set",
        dest="genes",
        required=True,
        metavar="NAME|FILE",
        help="exhaustion, a file with one gene per line, or a GMT file",
    )
    made.add_argument("--name", metavar="NAME", help="what to call the set, or which of a GMT file")
    layer(made)

    made = command(
        "pseudotime", analysis_commands.pseudotime, "order of cells from a root, and PAGA"
    )
    made.add_argument("input", help=".h5ad with an embedding")
    output(made, "OUT.h5ad")
    made.add_argument(
        "--root",
        required=True,
        metavar="CELL_OR_LABEL",
        help="name of a cell, or of a group: the cell in its midst",
    )
    made.add_argument(
        "--groupby",
        "--label-key",
        metavar="KEY",
        help="obs column of the groups (concerto_cluster)",
    )
    made.add_argument("--figure", metavar="FILE", help="figure of pseudotime and PAGA")
    embedding(made)

    made = command(
        "compare", analysis_commands.compare, "what differs between conditions, type by type"
    )
    made.add_argument("input", help=".h5ad, .zarr or other cells with obs")
    output(made, "DIR")
    made.add_argument("--condition", required=True, metavar="KEY", help="obs column of conditions")
    made.add_argument("--control", required=True, metavar="VALUE", help="what to compare with")
    made.add_argument(
        "--label-key",
        metavar="KEY",
        help="obs column of cell types (concerto_label, or concerto_cluster)",
    )
    made.add_argument(
        "--sample-key", metavar="KEY", help="obs column of samples or donors, to test between these"
    )
    made.add_argument("--sets", metavar="FILE.gmt", help="gene sets, for modules and enrichment")
    layer(made)
    real(made, "--alpha", "share of false findings in each table (0.05)", 0.05)
    real(made, "--log-fold-change", "of a marker, base 2, at least (0.25)", 0.25)
    whole(made, "--min-cells", "cells of a type that each condition must have (10)", 10)
    figures(made)

    made = command(
        "simulate", analysis_commands.simulate, "cells of known groups, batches or paths"
    )
    output(made, "OUT")
    whole(made, "--cells", "number of cells (1,000)")
    whole(made, "--genes", "number of genes (20,000)")
    whole(made, "--groups", "groups of one size, or paths (1)")
    made.add_argument(
        "--sizes", type=parsing.numbers, metavar="X,X", help="relative sizes of the groups"
    )
    whole(made, "--batches", "batches of one size (1)")
    real(made, "--batch-scale", "how much they differ (0.1)")
    real(made, "--de-prob", "share of genes that differ in a group (0.1)")
    real(made, "--de-scale", "how much they differ (0.4)")
    real(made, "--dropout-mid", "log expression at which half of the counts are lost (no dropout)")
    real(made, "--dropout-shape", "its steepness (-1)")
    real(made, "--counts", "counts of a cell, median (2,800)")
    made.add_argument("--paths", action="store_true", help="groups are paths of a trajectory")
    made.add_argument(
        "--path-from",
        type=parsing.numbers,
        metavar="N,N",
        help="where each path begins: 0, or the number of an earlier path",
    )
    whole(made, "--shards", "number of files, of records")
    made.add_argument("--compression", choices=["none", "gzip"], default="none", help="of records")
    made.add_argument("--overwrite", action="store_true", help="replace other records")
    whole(made, "--workers", "threads")

    made = command("export", commands.export, "a model as a SavedModel that needs only TensorFlow")
    model(made)
    output(made, "DIR")
    real(made, "--alpha", "where labels are rejected")
    whole(made, "--k", "reference cells that vote (5)", 5)

    made = command("serve", serving.serve, "a model behind ports, by the Open Inference Protocol")
    model(made)
    serving.arguments(made)

    made = command("demo", commands.demo, "run on real data that comes with scanpy")
    made.add_argument("-o", "--output", default="concerto-demo", metavar="DIR")
    return parser
