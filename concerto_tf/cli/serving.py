"""The command that serves a model: its arguments, and the Python call."""

from __future__ import annotations

import argparse
from typing import Any

from concerto_tf.cli import given


def arguments(made: argparse.ArgumentParser) -> None:
    """Adds what `concerto serve` takes beside the model."""
    for name, value, text in (
        ("--port", 8080, "port of REST and of /metrics (8080)"),
        ("--grpc-port", 8081, "port of gRPC (8081)"),
        ("--k", 5, "reference cells that the signature nearest gives (5)"),
        ("--max-cells", 1024, "cells of a request, at most (1,024)"),
        ("--max-genes", 65_536, "genes per cell, padding included, at most (65,536)"),
        ("--max-megabytes", 64, "size of a request, at most (64)"),
    ):
        made.add_argument(name, type=int, default=value, metavar="N", help=text)
    made.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (127.0.0.1); 0.0.0.0 for all",
    )


def serve(options: argparse.Namespace) -> Any:
    from concerto_tf.serve import serve

    names = "port grpc_port host k max_cells max_genes max_megabytes"
    return serve(options.model, **given.same(options, names))
