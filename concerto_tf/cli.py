"""The command `concerto`: arguments, progress, exit codes; no science.

Nothing heavy is imported before a command needs it, so that `concerto --help` is quick.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from concerto_tf._progress import Reporter
from concerto_tf._version import __version__
from concerto_tf.errors import InputError

DONE, FAULT, UNSUITABLE, INTERRUPTED = 0, 1, 2, 130
# What the system says where the user can mend it: no space, no right, no such place.
_USERS_OWN = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EFBIG,
)  # fmt: skip

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class _Once(argparse.Action):
    """An option that takes one value and says so when it is given two."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        given = vars(namespace).setdefault("given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "given twice; it takes one value")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, and takes options by their full name."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that works today could mean two options tomorrow.
        super().__init__(**options, allow_abbrev=False)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(UNSUITABLE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line; by default that of the process.

    Returns:
        Exit code: 0 done, 2 the user can mend it, 1 a fault of ours, 130 interrupted.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    _quiet_libraries(options)
    try:
        if not options.debug:
            _import_tensorflow()
        result = options.run(options)
        result, code = result if isinstance(result, tuple) else (result, DONE)
        if options.json:
            print(json.dumps(result))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("concerto: interrupted; run the same command to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001 - the last place where it can be said well
        code = _explain(error, options)
        if arguments is None and _of_the_system(error) is not None:
            # HDF5 crashes at the end of a process over a file that a full disk kept open.
            atexit.register(os._exit, code)
        return code


def _explain(error: Exception, options: argparse.Namespace) -> int:
    if options.debug:
        traceback.print_exc()
    if isinstance(error, InputError):
        print(f"concerto: {error}", file=sys.stderr)
        return UNSUITABLE
    text = (str(error).splitlines() or [""])[0][:300]
    system = _of_the_system(error)
    if system is not None:
        # Of a copy that failed, the second name is the one that was written.
        names = [getattr(error, name, None) for name in ("filename2", "filename")]
        where = next(filter(None, [*names, getattr(options, "output", None)]), "")
        print(f"concerto: {where}: {system}; make room or name a place that can be written",
              file=sys.stderr)  # fmt: skip
        return UNSUITABLE
    print(f"concerto: a fault of ours: {type(error).__name__}: {text}", file=sys.stderr)
    if not options.debug:
        print("concerto: run again with --debug for the details, and please report them",
              file=sys.stderr)  # fmt: skip
    return FAULT


def _of_the_system(error: Exception) -> str | None:
    """What the system says if it is something the user can mend, whichever library passes it on."""
    if isinstance(error, OSError) and error.errno in _USERS_OWN:
        return os.strerror(error.errno)
    # TensorFlow and HDF5 keep the words and lose the number.
    words = [os.strerror(code) for code in _NO_ROOM]
    return next((text for text in words if text.lower() in str(error).lower()), None)


class _Lines(logging.Handler):
    """Messages as lines on what stderr is at the moment: a bar makes room for them above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


def _quiet_libraries(options: argparse.Namespace) -> None:
    """Only what concerns the user reaches the terminal."""
    import warnings

    if not options.debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        warnings.filterwarnings("ignore")
        # HDF5 raises again, by the dozen, while what could not be written is cleared away.
        sys.excepthook = sys.unraisablehook = lambda *_: None
    log = logging.getLogger("concerto_tf")
    log.handlers = [_Lines()]
    log.setLevel(logging.ERROR if options.quiet else logging.INFO)
    log.propagate = False


def _import_tensorflow() -> None:
    """Imports TensorFlow without what it writes to stderr before it can be told not to.

    Every command comes to need it: umap, which scanpy's neighbours need, imports it too.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# --- commands -------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.run import run

    with Reporter(options.quiet) as progress:
        found = run(
            options.input, options.output, source_key=options.source_key,
            label_key=options.label_key, layer=options.layer, genes=options.genes,
            resolution=options.resolution, drop_empty=options.drop_empty,
            workers=options.workers, seed=options.seed, progress=progress, **_training(options),
        )  # fmt: skip
    _say(options, _table(found), f"result: {Path(options.output) / 'result.h5ad'}",
         f"figures: {Path(options.output) / 'figures'}")  # fmt: skip
    return found


def _demo(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.demo import demo

    with Reporter(options.quiet) as progress:
        found = demo(options.output, seed=options.seed, progress=progress)
    out = Path(options.output)
    _say(
        options, _table(found),
        f"result: {out / 'result.h5ad'} (scanpy.read_h5ad opens it)",
        f"figures: {out / 'figures'}",
        "next:",
        "  concerto run YOUR.h5ad -o result --label-key cell_type --source-key batch",
        f"  concerto embed {out / 'model'} OTHER.h5ad -o embedded.h5ad",
        f"  concerto export {out / 'model'} -o {out / 'served'}",
    )  # fmt: skip
    return found


def _convert(options: argparse.Namespace) -> Any:
    from concerto_tf.records import convert
    from concerto_tf.tasks.inspect import inspect

    with Reporter(options.quiet) as progress:
        records = convert(
            options.input, options.output, layer=options.layer, source_key=options.source_key,
            label_keys=options.label_key or [], like=_like(options.like),
            orthologs=options.orthologs, modalities=dict(options.modality or []),
            shards=options.shards, compression=options.compression, workers=options.workers,
            seed=options.seed, drop_empty=options.drop_empty, overwrite=options.overwrite,
            progress=progress.stage("convert"),
        )  # fmt: skip
    found = inspect(records.path)
    _say(options, _table(found))
    return found


def _inspect(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.inspect import inspect

    with Reporter(options.quiet) as progress:
        found = inspect(options.path, options.verify, progress.stage("verify"))
    problems = found.get("problems", [])
    _say(options, _table(found))
    for problem in problems:
        print(f"concerto: {options.path}: {problem}", file=sys.stderr)
    return found, UNSUITABLE if problems else DONE


def _train(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.train import SUMMARY, train

    with Reporter(options.quiet) as progress:
        train(
            options.records, options.output, genes=options.genes, start=options.start,
            seed=options.seed, progress=progress.stage("train"), **_training(options),
        )  # fmt: skip
    found = json.loads((Path(options.output) / SUMMARY).read_text("utf-8"))
    del found["asked"]
    _say(options, _table(found), f"model: {options.output}")
    return found


def _embed(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.embed import embed

    with Reporter(options.quiet) as progress:
        z = embed(
            options.model, options.input, options.output, source_key=options.source_key,
            layer=options.layer, drop_empty=options.drop_empty,
            progress=progress.stage("embed"),
        )  # fmt: skip
    found = {"cells": len(z), "dimensions": z.shape[1], "output": str(options.output)}
    _say(options, _table(found))
    return found


def _cluster(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.files import cluster

    adata = cluster(
        options.input, options.output, rep=options.rep, algorithm=options.algorithm,
        resolution=options.resolution, k=options.k, seed=options.seed,
    )  # fmt: skip
    sizes = adata.obs["concerto_cluster"].value_counts()
    found = {"cells": adata.n_obs, "clusters": len(sizes), "output": str(options.output)}
    _say(options, _table(found))
    return found


def _evaluate(options: argparse.Namespace) -> Any:
    from concerto_tf.tasks.files import evaluate

    found = evaluate(
        options.input, label_key=options.label_key, source_key=options.source_key,
        rep=options.rep, seed=options.seed,
    )  # fmt: skip
    _say(options, _table(found))
    return found


def _export(options: argparse.Namespace) -> Any:
    from concerto_tf.export import export

    found = {"saved_model": str(export(options.model, options.output))}
    _say(options, _table(found))
    return found


# --- arguments ------------------------------------------------------------------------------


def _training(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `train` that were given."""
    names = ("method", "preset", "epochs", "batch_size", "learning_rate", "optimizer", "strategy")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _like(path: str | None) -> Any:
    """Vocabulary of records or of a model."""
    if path is None or (Path(path) / "manifest.json").exists():
        return path
    if Path(path).suffix == ".keras" or (Path(path) / "model.keras").exists():
        from concerto_tf.models import load_model
        from concerto_tf.tasks.embed import vocabulary_of

        return vocabulary_of(load_model(path))
    return path


def _modality(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PLACE, as in protein=obsm:protein")
    return name, place


def _epochs(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _shared() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=_seed, default=0, help="seed of everything (default 0)")
    shared.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
    shared.add_argument("--quiet", action="store_true", help="only errors")
    shared.add_argument("--debug", action="store_true", help="tracebacks and library messages")
    return shared


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="concerto", description="From single-cell counts to embeddings, clusters and labels."
    )
    parser.add_argument("--version", action="version", version=f"concerto_tf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = _shared()

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[shared])
        made.set_defaults(run=run)
        return made

    def keys(made: argparse.ArgumentParser, *, labels: str | None = "one") -> None:
        made.add_argument("--source-key", metavar="KEY", help="obs column of batches or donors")
        if labels == "one":
            made.add_argument("--label-key", metavar="KEY", help="obs column of cell types")
        elif labels:
            made.add_argument(
                "--label-key", metavar="KEY", action="append",
                help="obs column of cell types; may be given several times",
            )  # fmt: skip

    def reading(made: argparse.ArgumentParser) -> None:
        made.add_argument("--layer", metavar="NAME", help="layer with the counts, or raw")
        made.add_argument("--workers", type=int, default=1, metavar="N", help="processes")
        made.add_argument("--drop-empty", action="store_true", help="leave out cells of no count")

    def training(made: argparse.ArgumentParser) -> None:
        made.add_argument("--genes", metavar="all|hvg:N|FILE", help="genes to look at (hvg:2000)")
        made.add_argument("--method", metavar="NAME", help="concerto (the default)")
        made.add_argument("--preset", metavar="NAME", help="paper: the values printed there")
        made.add_argument("--epochs", type=_epochs, metavar="N|auto", help="passes over the cells")
        made.add_argument("--batch-size", type=int, metavar="N", help="cells per step")
        made.add_argument("--learning-rate", type=float, metavar="X", help="learning rate")
        made.add_argument("--optimizer", metavar="NAME", help="adam, adamw, lamb, lazyadam, sgd")
        made.add_argument("--strategy", metavar="NAME", help="auto, one or mirrored")

    def output(made: argparse.ArgumentParser, what: str) -> None:
        made.add_argument("-o", "--output", required=True, metavar=what, help="where to write")

    made = command("run", _run, "convert, train, embed, cluster, score and draw; resumes")
    made.add_argument("input", nargs="+", help=".h5ad, .zarr, 10x .h5 or 10x mtx folder")
    output(made, "DIR")
    keys(made)
    reading(made)
    training(made)
    made.add_argument("--resolution", type=float, default=1.0, help="of the Leiden clusters")

    made = command("convert", _convert, "cells to shards of TFRecords; resumes")
    made.add_argument("input", nargs="+", help=".h5ad, .zarr, 10x .h5 or 10x mtx folder")
    output(made, "RECORDS")
    keys(made, labels="several")
    reading(made)
    made.add_argument("--modality", type=_modality, action="append", metavar="NAME=PLACE",
                      help="a further modality, as protein=obsm:protein")  # fmt: skip
    made.add_argument("--shards", type=int, metavar="N", help="number of files")
    made.add_argument("--compression", choices=["none", "gzip"], default="none")
    made.add_argument("--like", metavar="RECORDS_OR_MODEL", help="use the genes of these")
    made.add_argument("--overwrite", action="store_true", help="replace records of other cells")
    made.add_argument("--orthologs", metavar="TSV", help="table of genes of two species")

    made = command("inspect", _inspect, "records or a model in words")
    made.add_argument("path", help="folder of records or of a model, or a .keras file")
    made.add_argument("--verify", action="store_true", help="read every shard against its checksum")

    made = command("train", _train, "records to a model; resumes")
    made.add_argument("records", help="folder of records")
    output(made, "MODEL")
    training(made)
    made.add_argument("--from", dest="start", metavar="MODEL", help="continue from this model")

    made = command("embed", _embed, "embeddings of cells by a model")
    made.add_argument("model", help="folder of a model, or a .keras file")
    made.add_argument("input", help="records, .h5ad, .zarr, 10x .h5 or 10x mtx folder")
    output(made, "OUT.h5ad")
    keys(made, labels=None)
    made.add_argument("--layer", metavar="NAME", help="layer with the counts, or raw")
    made.add_argument("--drop-empty", action="store_true", help="leave out cells of no count")

    made = command("cluster", _cluster, "clusters of an embedding")
    made.add_argument("input", help=".h5ad with an embedding")
    output(made, "OUT.h5ad")
    made.add_argument("--algorithm", choices=["leiden", "kmeans"], default="leiden")
    made.add_argument("--resolution", type=float, default=1.0, help="of leiden")
    made.add_argument("--k", type=int, help="number of clusters of kmeans")
    made.add_argument("--rep", default="X_concerto", metavar="KEY", help="key in obsm")

    made = command("evaluate", _evaluate, "scores of an embedding")
    made.add_argument("input", help=".h5ad with an embedding")
    keys(made)
    made.add_argument("--rep", default="X_concerto", metavar="KEY", help="key in obsm")

    made = command("export", _export, "a model as a SavedModel that needs only TensorFlow")
    made.add_argument("model", help="folder of a model, or a .keras file")
    output(made, "DIR")

    made = command("demo", _demo, "run on real data that comes with scanpy")
    made.add_argument("-o", "--output", default="concerto-demo", metavar="DIR")
    return parser


def _say(options: argparse.Namespace, *lines: str) -> None:
    if not options.quiet and not options.json:
        print(*lines, sep="\n")


def _table(found: dict[str, Any]) -> str:
    """Names and values in two columns."""
    width = max(map(len, found), default=0)
    return "\n".join(f"{name:<{width}}  {_text(value)}" for name, value in found.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
