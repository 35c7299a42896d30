"""`concerto serve` asked by clients that are not ours, over REST and gRPC.

What serves is an extra, whose protobuf is older than TensorFlow's newest; the tests are skipped
where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("kserve") is None:  # not imported: its symbols are the client's too
    pytest.skip("needs the extra serve", allow_module_level=True)
triton_http = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen
    port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return answer.read().decode()

    def post(self, body: Any, path: str = "/v2/models/concerto/infer") -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start(folder: Path, *options: str, port: int = 0, grpc_port: int = 0) -> Running:
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "concerto_tf.cli", "serve", str(folder), *options]
            + ["--port", str(port), "--grpc-port", str(grpc_port)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(1200):
            time.sleep(0.1)
            log.seek(0)
            ports = re.findall(r":(\d+) \(", text := log.read())
            if ports:
                return Running(process, *map(int, ports))
            assert process.poll() is None, text
    raise AssertionError(text)


@pytest.fixture(scope="module")
def server(model) -> Iterator[Running]:
    running = start(model.folder, "--max-cells", "100", "--max-genes", "50", "--max-megabytes", "1")
    yield running
    assert running.end() == 0


def tensors(model, rows: slice, client: Any, **how: Any) -> list[Any]:
    values = np.ascontiguousarray(model.cells.X[rows])
    names = np.tile(np.array(model.cells.var_names, object), (len(values), 1))
    genes = client.InferInput("genes", list(names.shape), "BYTES")
    genes.set_data_from_numpy(names, **how)
    counts = client.InferInput("values", list(values.shape), "FP32")
    counts.set_data_from_numpy(values, **how)
    return [genes, counts]


def near(z: np.ndarray, want: np.ndarray) -> bool:
    return bool(np.abs(z - want).max() <= 1e-5 * np.abs(want).max())


@pytest.mark.parametrize("binary", [True, False])
def test_rest_client(model, server: Running, binary: bool) -> None:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("concerto")
        told = client.get_model_metadata("concerto")
        assert [one["name"] for one in told["inputs"]][:2] == ["genes", "values"]
        inputs = tensors(model, slice(0, 20), triton_http, binary_data=binary)
        z = client.infer("concerto", inputs).as_numpy("embedding")
        assert near(z, model.embeddings[:20])
        wanted = [triton_http.InferRequestedOutput("label", binary_data=binary)]
        label = client.infer("concerto", inputs, outputs=wanted).as_numpy("label")
        assert {x.decode() if isinstance(x, bytes) else x for x in label} <= {"B", "T", "unknown"}


def test_grpc_client(model, server: Running) -> None:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_live() and client.is_model_ready("concerto")
        assert client.get_model_metadata("concerto").outputs[0].name == "embedding"
        inputs = tensors(model, slice(0, 20), triton_grpc)
        assert near(client.infer("concerto", inputs).as_numpy("embedding"), model.embeddings[:20])
        found = client.infer("concerto", inputs, parameters={"signature": "nearest"})
        assert found.as_numpy("nearest")[:, 0].tolist() == list(range(20))
        assert found.as_numpy("embedding") is None
        with pytest.raises(triton_grpc.InferenceServerException, match="no signature 'umap'"):
            client.infer("concerto", inputs, parameters={"signature": "umap"})
        with pytest.raises(triton_grpc.InferenceServerException, match="UNAVAILABLE|NOT_FOUND"):
            client.infer("other", inputs)


def body(**changes: Any) -> dict[str, Any]:
    genes = {"name": "genes", "shape": [1, 2], "datatype": "BYTES", "data": ["AB1C", ""]}
    values = {"name": "values", "shape": [1, 2], "datatype": "FP32", "data": [3.0, 0.0]}
    values.update(changes.pop("values", {}))
    genes.update(changes.pop("genes", {}))
    return {"inputs": [genes, values], **changes}


WRONG: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{", 400, "not a request"),
    "another object": ({"instances": []}, 400, "not a request"),
    "inputs that are none": ({"inputs": 3}, 400, "not a request"),
    "type": (body(values={"datatype": "INT64", "data": [1, 2]}), 400, "must be FP32"),
    "unknown type": (body(values={"datatype": "COMPLEX"}), 400, "must be FP32"),
    "numbers for genes": (body(genes={"data": [1, 2]}), 400, "must hold strings"),
    "words for values": (body(values={"data": ["a", "b"]}), 400, "cannot be read"),
    "ragged": (body(values={"shape": [1, 1], "data": [1.0]}), 400, 'padded with "" and 0'),
    "too short": (body(values={"data": [1.0]}), 400, "cannot be read"),
    "flat": (body(values={"shape": [2]}), 400, "must be [cells, genes]"),
    "negative": (body(values={"data": [-1.0, 0.0]}), 400, "negative or not finite"),
    "no values": ({"inputs": body()["inputs"][:1]}, 400, "'values' is missing"),
    "twice": ({"inputs": body()["inputs"][:1] * 2}, 400, "given twice"),
    "unknown input": (
        {"inputs": [*body()["inputs"], {**body()["inputs"][0], "name": "cells"}]},
        400,
        "no input 'cells'",
    ),
    "too many genes": (
        body(genes={"shape": [1, 60], "data": ["x"] * 60}),
        400,
        "a request may have 50 at most",
    ),
    "too many cells": (
        body(genes={"shape": [101, 1], "data": ["x"] * 101}),
        400,
        "a request may have 100 at most",
    ),
    "signature": (body(parameters={"signature": "umap"}), 400, "this model has embedding, labels"),
    "output": (body(outputs=[{"name": "umap"}]), 400, "no output 'umap'"),
    "size": (b" " * (1 << 20) + b"{}", 413, "larger than 1 MB"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(server: Running, what: str) -> None:
    sent, status, words = WRONG[what]
    code, answer = server.post(sent)
    assert code == status and words in answer["error"], answer


def test_other_places(server: Running) -> None:
    assert server.post(body(), "/v2/models/other/infer")[0] in (404, 503)
    assert server.post({}, "/v2/repository/models/concerto/unload")[0] == 400
    assert json.loads(server.get("/v2/health/ready")) == {"ready": True}
    assert server.post(body())[0] == 200
    assert re.search(r"^concerto_cells_total [1-9]", server.get("/metrics"), re.MULTILINE)


def test_malformed_tensors_over_grpc(model, server: Running) -> None:
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        asked = service_pb2.ModelInferRequest(model_name="concerto")
        for name, datatype in (("genes", "BYTES"), ("values", "FP32")):
            asked.inputs.add(name=name, datatype=datatype, shape=[1, 2])
        asked.raw_input_contents.extend([b"\xff\xff\xff\xff\xff", b"12345"])
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(asked, timeout=20)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_clients_that_go_away_leave_the_server_as_it_was(model, server: Running) -> None:
    text = json.dumps(body()).encode()
    head = f"POST /v2/models/concerto/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n"
    for sent in (text, text[:20]):  # gone before the answer, and in the middle of the request
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + sent)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        inputs = tensors(model, slice(0, 60), triton_grpc)
        for _ in range(10):
            with pytest.raises(triton_grpc.InferenceServerException):
                client.infer("concerto", inputs, client_timeout=0.0005)
        assert near(client.infer("concerto", inputs).as_numpy("embedding"), model.embeddings)


def load(model, server: Running, clients: int, seconds: float) -> list[float]:
    """Seconds of each request of clients that ask without a pause, all answered rightly."""
    end = time.monotonic() + seconds

    def ask(number: int) -> list[float]:
        took, rows = [], slice(number % 50, number % 50 + 8)
        if number % 2:
            client: Any = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
            inputs = tensors(model, rows, triton_grpc)
        else:
            client = triton_http.InferenceServerClient(f"127.0.0.1:{server.port}")
            inputs = tensors(model, rows, triton_http)
        with client:
            while time.monotonic() < end or not took:
                began = time.monotonic()
                z = client.infer("concerto", inputs).as_numpy("embedding")
                took.append(time.monotonic() - began)
                assert near(z, model.embeddings[rows])
        return took

    with ThreadPoolExecutor(clients) as pool:
        return [took for part in pool.map(ask, range(clients)) for took in part]


def test_many_clients_at_once(model, server: Running) -> None:
    assert len(load(model, server, 64, seconds=1)) >= 64


@pytest.mark.slow
def test_under_load_for_a_minute(model, server: Running) -> None:
    took = load(model, server, 64, seconds=60)
    print(
        f"{len(took)} requests of 8 cells, p50 {np.median(took) * 1e3:.0f} ms, "
        f"p99 {np.quantile(took, 0.99) * 1e3:.0f} ms, {8 * len(took) / 60:.0f} cells/s"
    )
    assert max(took) < 30


def test_a_restart_takes_the_same_ports(model) -> None:
    first = start(model.folder)
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{first.grpc_port}")
    inputs = tensors(model, slice(0, 5), triton_grpc)
    client.infer("concerto", inputs)
    taken = subprocess.run(
        [sys.executable, "-m", "concerto_tf.cli", "serve", str(model.folder)]
        + ["--port", str(first.port), "--quiet"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert taken.returncode == 2 and "cannot be listened on" in taken.stderr
    assert first.end() == 0
    with pytest.raises(triton_grpc.InferenceServerException):
        client.infer("concerto", inputs, client_timeout=2)
    again = start(model.folder, port=first.port, grpc_port=first.grpc_port)
    for _ in range(20):  # the client connects again by itself
        try:
            z = client.infer("concerto", inputs).as_numpy("embedding")
            break
        except triton_grpc.InferenceServerException:
            time.sleep(0.5)
    assert near(z, model.embeddings[:5])
    client.close()
    assert again.end() == 0
