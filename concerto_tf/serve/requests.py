"""Requests of the Open Inference Protocol checked and turned into arrays, and answers into replies.

The protocol itself, over REST and gRPC, is KServe's; this says what a request for cells must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import to_http_parameters
from kserve.utils.utils import generate_uuid

from concerto_tf.serve.answers import GENES, SOURCE, VALUES, Answers, Tensor

NAME = "concerto"


@dataclass(frozen=True)
class Limits:
    """How large a request may be.

    Attributes:
        cells: Cells of a request.
        genes: Genes per cell, padding included.
        megabytes: Size of the request.
    """

    cells: int = 1024
    genes: int = 65_536
    megabytes: int = 64


def arrays_of(request: InferRequest, answers: Answers, limits: Limits) -> dict[str, np.ndarray]:
    """The inputs of a request.

    Raises:
        InvalidInput: It is not what the model takes; the message says what is wrong and what is
            wanted.
    """
    known = {one.name: one for one in answers.inputs}
    found: dict[str, np.ndarray] = {}
    for given in request.inputs:
        wanted = known.get(given.name)
        if wanted is None:
            raise InvalidInput(f"no input {given.name!r}; the inputs are {', '.join(known)}")
        if given.name in found:
            raise InvalidInput(f"input {given.name!r} is given twice")
        found[given.name] = _array(given, wanted, limits)
    for name in (GENES, VALUES):
        if name not in found:
            raise InvalidInput(f"input {name!r} is missing; {GENES} and {VALUES} must be given")
    n_cells = len(found[GENES])
    for name, array in found.items():
        pair = name.removesuffix(VALUES) + GENES if name.endswith(VALUES) else name
        if name.endswith(GENES) and name.removesuffix(GENES) + VALUES not in found:
            raise InvalidInput(f"input {name!r} is given without its values")
        if pair not in found:
            raise InvalidInput(f"input {name!r} is given without its genes")
        if len(array) != n_cells or array.shape != found[pair].shape:
            raise InvalidInput(
                f"input {name!r} has shape {list(array.shape)} beside {pair} "
                f'{list(found[pair].shape)}; cells with fewer genes are padded with "" and 0'
            )
    return found


def _array(given: Any, wanted: Tensor, limits: Limits) -> np.ndarray:
    """One input as an array, of strings or of float32."""
    name, shape = given.name, list(given.shape)
    if given.datatype != wanted.datatype:
        raise InvalidInput(f"input {name!r} is {given.datatype}; it must be {wanted.datatype}")
    form = "[cells]" if name == SOURCE else "[cells, genes]"
    whole = all(isinstance(size, int) and size >= 0 for size in shape)
    if len(shape) != len(wanted.shape) or not whole or not all(shape):
        raise InvalidInput(
            f"input {name!r} has shape {shape}; it must be {form}, neither of them 0"
        )
    if shape[0] > limits.cells:
        raise InvalidInput(f"{shape[0]} cells; a request may have {limits.cells} at most")
    if len(shape) == 2 and shape[1] > limits.genes:
        raise InvalidInput(
            f"{shape[1]} genes per cell; a request may have {limits.genes} at most; leave out "
            "genes without counts"
        )
    try:
        array = given.as_numpy()
    except Exception as error:  # noqa: BLE001 - what a client sends can fail in many ways
        raise InvalidInput(f"input {name!r} cannot be read as {shape}: {error}") from error
    if wanted.datatype == "BYTES":
        return _text(name, array)
    if not np.isfinite(array).all() or (array < 0).any():
        raise InvalidInput(f"input {name!r} has values that are negative or not finite")
    return array


def _text(name: str, array: np.ndarray) -> np.ndarray:
    """An array of strings, which may have come as bytes."""
    try:
        flat = [x.decode("utf-8") if isinstance(x, bytes) else x for x in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} holds bytes that are not UTF-8") from error
    if not all(isinstance(x, str) for x in flat):
        raise InvalidInput(f"input {name!r} must hold strings")
    made = np.empty(len(flat), object)
    made[:] = flat
    return made.reshape(array.shape)


def outputs_of(request: InferRequest, answers: Answers) -> list[Tensor]:
    """The outputs that a request asks for: some by name, or all of its signature.

    Raises:
        InvalidInput: There is no such signature, or it has no such output.
    """
    asked = _parameters(request.parameters).get("signature")
    names = [output.name for output in request.request_outputs or ()]
    if asked is not None and asked not in answers.signatures:
        raise InvalidInput(
            f"no signature {asked!r}; this model has {', '.join(answers.signatures)}"
        )
    if asked is None and not names:
        return next(iter(answers.signatures.values()))
    chosen = answers.signatures if asked is None else {asked: answers.signatures[asked]}
    known = {one.name: one for outputs in chosen.values() for one in outputs}
    for name in names:
        if name not in known:
            raise InvalidInput(f"no output {name!r}; the outputs are {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def reply_to(
    request: InferRequest, wanted: list[Tensor], found: Mapping[str, np.ndarray]
) -> InferResponse:
    """The reply with the outputs that are wanted."""
    outputs = []
    for one in wanted:
        array = np.ascontiguousarray(found[one.name])
        output = InferOutput(one.name, list(array.shape), one.datatype)
        output.set_data_from_numpy(array, binary_data=request.use_binary_outputs)
        outputs.append(output)
    return InferResponse(
        response_id=request.id or generate_uuid(),
        model_name=NAME,
        infer_outputs=outputs,
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


def _parameters(given: Any) -> dict[str, Any]:
    return dict(to_http_parameters(given)) if given else {}
