"""Options that several commands share, in groups."""

from __future__ import annotations

import argparse

from concerto_tf.cli import parsing


def whole(made: argparse.ArgumentParser, name: str, text: str, value: int | None = None) -> None:
    """A whole number."""
    made.add_argument(name, type=int, default=value, metavar="N", help=text)


def real(made: argparse.ArgumentParser, name: str, text: str, value: float | None = None) -> None:
    """A real number."""
    made.add_argument(name, type=float, default=value, metavar="X", help=text)


def keys(made: argparse.ArgumentParser, *, labels: str | None = "one") -> None:
    """Columns of obs with sources and labels."""
    made.add_argument("--source-key", metavar="KEY", help="obs column of batches or donors")
    if labels == "one":
        made.add_argument("--label-key", metavar="KEY", help="obs column of cell types")
    elif labels:
        made.add_argument(
            "--label-key",
            metavar="KEY",
            action="append",
            help="obs column of cell types; may be given several times",
        )


def reading(made: argparse.ArgumentParser) -> None:
    """How cells are read."""
    layer(made)
    made.add_argument("--drop-empty", action="store_true", help="leave out cells of no count")
    made.add_argument(
        "--modality",
        type=parsing.modality,
        action="append",
        metavar="NAME=PLACE",
        help="where a further modality lies, as protein=obsm:protein",
    )


def workers(made: argparse.ArgumentParser) -> None:
    """Who converts."""
    whole(made, "--workers", "processes that convert (all processors, if there are many cells)")
    made.add_argument(
        "--dask", metavar="ADDRESS", help="scheduler of a dask cluster that converts instead"
    )


def orthologs(made: argparse.ArgumentParser) -> None:
    """Genes of another species."""
    made.add_argument("--orthologs", metavar="TSV", help="table of genes of two species")


def skipping(made: argparse.ArgumentParser) -> None:
    """What to do about damaged records."""
    made.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave out cells of records that are damaged, and count them",
    )


def model_and_input(made: argparse.ArgumentParser) -> None:
    """A model, and cells for it."""
    model(made)
    made.add_argument("input", help="records, .h5ad, .h5mu, .zarr, 10x .h5 or 10x mtx folder")
    skipping(made)


def model_and_reference(made: argparse.ArgumentParser) -> None:
    """A model, its reference, and a query."""
    model(made)
    made.add_argument(
        "--reference",
        metavar="REF",
        help="records or cells; by default those kept with the model",
    )
    made.add_argument("--query", required=True, metavar="Q", help="records or cells")
    made.add_argument(
        "--reference-source-key",
        metavar="KEY",
        help="as --source-key, of the reference (by default the same)",
    )
    made.add_argument("--reference-layer", metavar="NAME", help="as --layer, of the reference")
    skipping(made)


def training(made: argparse.ArgumentParser) -> None:
    """How a new model is trained."""
    made.add_argument("--genes", metavar="all|hvg:N|FILE", help="input genes (hvg:5000)")
    made.add_argument(
        "--method",
        metavar="NAME",
        help="concerto (the default), clear, contrastive-sc, cicl, or one of another package",
    )
    importing(made)
    made.add_argument(
        "--preset", metavar="NAME", help="paper: the values printed there; authors: their program's"
    )
    made.add_argument(
        "--option",
        dest="options",
        type=parsing.option,
        action="append",
        metavar="NAME=VALUE",
        help="an argument of the method's model, as clusters=8; may be given several times",
    )
    whole(made, "--ensemble", "networks with seeds of their own whose embeddings are joined")
    real(made, "--validation-share", "of the cells, to end by their loss and not to train on")
    whole(made, "--patience", "rounds to wait for a smaller loss of these (10)")
    steps(made)


def steps(made: argparse.ArgumentParser) -> None:
    """How long and by which steps a model is trained."""
    made.add_argument(
        "--epochs",
        type=parsing.epochs,
        metavar="N|auto",
        help="passes over the cells (auto: as many as help, which may be none)",
    )
    whole(made, "--batch-size", "cells per step")
    real(made, "--learning-rate", "learning rate")
    made.add_argument("--optimizer", metavar="NAME", help="adam, adamw, momentum, sgd ...")
    made.add_argument(
        "--strategy", metavar="NAME", help="auto, one, mirrored, or multiworker (train)"
    )


def resolution(made: argparse.ArgumentParser) -> None:
    """How many clusters."""
    made.add_argument(
        "--resolution",
        type=parsing.resolution,
        default="auto",
        metavar="X",
        help="of Leiden; higher gives more clusters (auto: 0.6)",
    )


def figures(made: argparse.ArgumentParser) -> None:
    """In which format figures are left."""
    made.add_argument(
        "--figure-format",
        choices=["png", "pdf", "svg"],
        default="png",
        help="of the figures (png)",
    )


def output(
    made: argparse.ArgumentParser,
    what: str,
    text: str = "where to write",
    required: bool = True,
) -> None:
    """Where the result goes."""
    made.add_argument("-o", "--output", required=required, metavar=what, help=text)


def vote(made: argparse.ArgumentParser) -> None:
    """Labels by group."""
    made.add_argument(
        "--vote",
        nargs="?",
        type=parsing.vote,
        const=True,
        default=False,
        metavar="KEY",
        help="also the label that most cells of a group have: of this obs column, or without KEY "
        "of small clusters",
    )


def importing(made: argparse.ArgumentParser) -> None:
    """Modules of others."""
    made.add_argument(
        "--import",
        action="append",
        metavar="MODULE",
        help="import this first: it registers methods, layers or losses of others",
    )


def adapt(made: argparse.ArgumentParser) -> None:
    """What to do about a query that lies off."""
    made.add_argument(
        "--adapt",
        choices=("auto", "none", "source", "align"),
        default="auto",
        help="what to do about a query that lies off as a whole: move it by what its cells "
        "share with the reference (align), normalize it by its own statistics (source), "
        "nothing (none), or move it where that helps much (auto)",
    )


def model(made: argparse.ArgumentParser) -> None:
    """A model."""
    made.add_argument("model", help="folder of a model, or a .keras file")
    expecting(made)
    importing(made)


def expecting(made: argparse.ArgumentParser) -> None:
    """Which model is meant."""
    made.add_argument(
        "--expect",
        metavar="FINGERPRINT",
        help="use the model only if it is this one; `concerto inspect MODEL` prints it",
    )


def layer(made: argparse.ArgumentParser) -> None:
    """Where the counts lie."""
    made.add_argument(
        "--layer",
        metavar="NAME",
        help="layer with the counts, raw or X; by default X, or raw if only that holds counts",
    )


def embedding(made: argparse.ArgumentParser) -> None:
    """Which embedding."""
    made.add_argument("--rep", default="X_concerto", metavar="KEY", help="key in obsm")


def about_cells(made: argparse.ArgumentParser, what: str, labels: str | None = "one") -> None:
    """What every command needs that reads cells and writes them."""
    output(made, what)
    keys(made, labels=labels)
    reading(made)
    orthologs(made)
