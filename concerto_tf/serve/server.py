"""The Python call of `concerto serve`."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

from concerto_tf.errors import InputError

_log = logging.getLogger("concerto_tf")


def serve(
    model: str | Path,
    *,
    port: int = 8080,
    grpc_port: int = 8081,
    host: str = "127.0.0.1",
    k: int = 5,
    max_cells: int = 1024,
    max_genes: int = 65_536,
    max_megabytes: int = 64,
) -> dict[str, Any]:
    """Serves a model by the Open Inference Protocol (V2) over REST and gRPC, until it is ended.

    The model is called ``concerto``. It takes ``genes`` BYTES [B, K] (names of genes, padded with
    "") and ``values`` FP32 [B, K] (raw counts, padded with 0), where it is given ``source`` BYTES
    [B], and of further modalities ``<name>_genes`` and ``<name>_values``. It answers by signature
    (parameter ``signature`` of a request): ``embedding``, the default; ``labels`` where the model
    or its reference has some; ``nearest``, reference cells, where one is kept with the model.

    Args:
        model: Folder of a training, of a run, or of an export.
        port: Port of REST; ``/metrics`` has numbers for Prometheus. 0 takes any that is free.
        grpc_port: Port of gRPC. 0 takes any that is free.
        host: Address to listen on; ``0.0.0.0`` for all. There is no password.
        k: Number of reference cells that ``nearest`` gives.
        max_cells: Cells of a request, at most.
        max_genes: Genes per cell, padding included, at most.
        max_megabytes: Size of a request, at most.

    Returns:
        What was served: ``signatures`` and the ports.

    Raises:
        InputError: There is no such model, a port is taken, or the extra ``serve`` is missing.
    """
    for name, value in {
        "k": k,
        "max_cells": max_cells,
        "max_genes": max_genes,
        "max_megabytes": max_megabytes,
    }.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more", name)
    for name, value in {"port": port, "grpc_port": grpc_port}.items():
        if not 0 <= value < 65_536:
            raise InputError(f"{name} is {value}; a port lies between 0 and 65535", name)
    given, sys.argv = sys.argv, sys.argv[:1]  # KServe reads the command line when imported
    try:
        from concerto_tf.serve.open_inference import Server
        from concerto_tf.serve.requests import Limits
    except ImportError as error:
        raise InputError(
            f"serving needs more packages ({error}); pip install 'concerto_tf[serve]'"
        ) from error
    finally:
        sys.argv = given
    from concerto_tf.serve.answers import Answers

    answers = Answers(model, k)
    server = Server(answers, host, port, grpc_port, Limits(max_cells, max_genes, max_megabytes))
    asyncio.run(server.run())
    _log.info("ended")
    return {
        "signatures": list(answers.signatures),
        "port": server.port,
        "grpc_port": server.grpc_port,
    }
