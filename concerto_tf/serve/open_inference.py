"""The server: KServe's Open Inference Protocol (V2) over REST and gRPC, with one model.

Of KServe's package the protocol is used, and not its model server, which listens on all interfaces,
reads the command line for itself, and lets any client unload the model.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from grpc_interceptor.server import AsyncServerInterceptor
from kserve import InferRequest, InferResponse, Model, ModelRepository
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from prometheus_client import REGISTRY, Counter, Histogram, exposition

from concerto_tf.errors import InputError
from concerto_tf.serve.answers import Answers
from concerto_tf.serve.batching import Batcher, BusyError
from concerto_tf.serve.requests import NAME, Limits, arrays_of, outputs_of, reply_to

_log = logging.getLogger("concerto_tf")
_GRACE_SECONDS = 15
#: Header of a request with tensors behind its JSON: the length of that.
_BINARY = "inference-header-content-length"

CELLS = Counter("concerto_cells", "Cells that were answered")
REFUSED = Counter("concerto_refused", "Requests that were refused", ["reason"])
BATCH = Histogram(
    "concerto_batch_cells", "Cells computed at once", buckets=[1, 4, 16, 64, 256, 1024, 4096]
)

#: What a client has to be told, as a status of HTTP and of gRPC.
_STATUS: dict[type[Exception], tuple[int, grpc.StatusCode]] = {
    InvalidInput: (400, grpc.StatusCode.INVALID_ARGUMENT),
    ModelNotFound: (404, grpc.StatusCode.NOT_FOUND),
    NotImplementedError: (501, grpc.StatusCode.UNIMPLEMENTED),
    BusyError: (503, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ModelNotReady: (503, grpc.StatusCode.UNAVAILABLE),
}


class _Served(Model):
    """The model as KServe calls it."""

    def __init__(self, answers: Answers, limits: Limits) -> None:
        super().__init__(NAME)
        self._answers, self._limits = answers, limits
        self.batcher = Batcher(answers, note=BATCH.observe)
        self.ready = True

    async def predict(self, payload: InferRequest, *others: Any) -> InferResponse:
        if not isinstance(payload, InferRequest):
            raise InvalidInput("not a request of the Open Inference Protocol, version 2")
        wanted = outputs_of(payload, self._answers)
        # Names of genes by the thousand: in a thread, so that others are heard meanwhile.
        inputs = await asyncio.to_thread(arrays_of, payload, self._answers, self._limits)
        found = await self.batcher(inputs)
        CELLS.inc(len(inputs["genes"]))
        return reply_to(payload, wanted, found)

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [one.as_dict() for one in self._answers.inputs]

    async def get_output_types(self) -> list[dict[str, Any]]:
        named = {one.name: one for part in self._answers.signatures.values() for one in part}
        return [one.as_dict() for one in named.values()]


class _DataPlane(DataPlane):
    """KServe's, which says of a malformed request that it is the client's fault."""

    def decode(self, body: Any, headers: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(body, bytes) and _BINARY not in headers:  # JSON that is not called so
            headers = {**headers, _BINARY: str(len(body))}
        try:
            return super().decode(body, headers, *arguments, **options)
        except Exception as error:
            reason = error if isinstance(error, InvalidInput) else repr(error)
            raise InvalidInput(
                f"not a request of the Open Inference Protocol, version 2: {reason}"
            ) from error


class _OneModel:
    """What there is instead of a repository of models."""

    async def load(self, model_name: str) -> None:
        raise InvalidInput(f"this server has one model, {NAME}; none is loaded or unloaded")

    unload = load


class _RequestLimit:
    """Turns away bodies that are too large, before they are in memory."""

    def __init__(self, app: Any, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_bytes:
            REFUSED.labels("size").inc()
            await self._drain(receive)
            text = f"the request is larger than {self.most_bytes >> 20} MB; send fewer cells"
            return await JSONResponse({"error": text}, 413)(scope, receive, send)
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most_bytes:  # it came without a length
                raise InvalidInput(f"the request is larger than {self.most_bytes >> 20} MB")
            return message

        # Called JSON, it would be read and checked value by value; `decode` reads it several times
        # as fast.
        plain = {**headers, b"content-type": b"application/octet-stream"}
        await self.app({**scope, "headers": list(plain.items())}, counted, send)

    async def _drain(self, receive: Any) -> None:
        """Reads on, so that a client that is still sending comes to hear the answer."""
        seen, more = 0, True
        while more and seen < 8 * self.most_bytes:
            message = await receive()
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)


class _Statuses(AsyncServerInterceptor):
    """Errors as statuses of gRPC."""

    async def intercept(self, method: Any, request: Any, context: Any, name: str) -> Any:
        try:
            return await method(request, context)
        except Exception as error:
            status = next((of[1] for kind, of in _STATUS.items() if isinstance(error, kind)), None)
            if status is None:
                if name.endswith("ModelInfer") and isinstance(error, ValueError | IndexError):
                    status = grpc.StatusCode.INVALID_ARGUMENT
                else:
                    _log.exception("a fault of ours in %s", name)
                    await context.abort(grpc.StatusCode.INTERNAL, f"a fault of ours: {error!r}")
            REFUSED.labels(type(error).__name__).inc()
            await context.abort(status, str(error))


def _application(data_plane: DataPlane, limits: Limits) -> FastAPI:
    app = FastAPI(title=NAME, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_RequestLimit, most_bytes=limits.megabytes << 20)
    register_v2_endpoints(app, data_plane, _OneModel())

    async def refused(request: Request, error: Exception) -> Response:
        status = next(of[0] for kind, of in _STATUS.items() if isinstance(error, kind))
        REFUSED.labels(type(error).__name__).inc()
        return JSONResponse({"error": str(error)}, status)

    for kind in _STATUS:
        app.add_exception_handler(kind, refused)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        REFUSED.labels("malformed").inc()
        first = error.errors()[0]
        where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
        text = "not a request of the Open Inference Protocol, version 2"
        return JSONResponse({"error": f"{text}: {where}: {first.get('msg')}"}, 400)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"a fault of ours: {error!r}"}, 500)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": kind})

    return app


class _RestServer(uvicorn.Server):
    """One that ends on Ctrl-C and SIGTERM without raising them again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class Server:
    """One model behind two ports.

    Args:
        answers: The model.
        host: Address to listen on.
        port: Port of REST; 0 for any that is free.
        grpc_port: Port of gRPC; 0 for any that is free.
        limits: How large a request may be.

    Raises:
        InputError: A port is taken, or there is no such address.
    """

    def __init__(
        self, answers: Answers, host: str, port: int, grpc_port: int, limits: Limits
    ) -> None:
        self._answers, self._limits, self._host = answers, limits, host
        self._socket = _bound(host, port, "port")
        self.port = self._socket.getsockname()[1]
        # gRPC binds when it starts: until then the port is kept.
        self._kept = _bound(host, grpc_port, "grpc_port")
        self.grpc_port = self._kept.getsockname()[1]

    async def run(self) -> None:
        """Serves until it is told to end; requests that have come are answered first."""
        # Several threads that read requests hold Python's lock in turn, and events of gRPC, which
        # pass through one more thread than those of REST, wait longest for it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "reading"))
        served = _Served(self._answers, self._limits)
        models = ModelRepository()
        models.update(served)
        data_plane = _DataPlane(model_registry=models)
        rest = _RestServer(
            uvicorn.Config(
                _application(data_plane, self._limits),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        most = self._limits.megabytes << 20
        sizes = [(f"grpc.max_{way}_message_length", most) for way in ("send", "receive")]
        rpc = grpc.aio.server(
            interceptors=[_Statuses()], options=[*sizes, ("grpc.so_reuseport", 0)]
        )
        grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(data_plane, _OneModel()), rpc
        )
        self._kept.close()
        address = f"[{self._host}]" if ":" in self._host else self._host
        rpc.add_insecure_port(f"{address}:{self.grpc_port}")
        await rpc.start()
        _log.info(
            "serving %s at http://%s:%d (REST) and %s:%d (gRPC)",
            NAME,
            address,
            self.port,
            address,
            self.grpc_port,
        )
        try:
            await rest.serve(sockets=[self._socket])
        finally:
            await rpc.stop(_GRACE_SECONDS)
            served.batcher.close()
            self._socket.close()


def _bound(host: str, port: int, argument: str) -> socket.socket:
    """A socket at a port, or InputError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{host}:{port}: cannot be listened on ({reason}); name another", argument
        ) from error
    return made
