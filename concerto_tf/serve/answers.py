"""What a served model answers, from arrays to arrays; it knows no network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.export import export
from concerto_tf.export.answer import kept_reference
from concerto_tf.models.saving import of_run
from concerto_tf.reference.cells import Reference

#: Names of the signatures: what a request may ask for.
EMBEDDING, LABELS, NEAREST = "embedding", "labels", "nearest"
#: By the dtypes of TensorFlow.
DATATYPES = {tf.string: "BYTES", tf.float32: "FP32", tf.bool: "BOOL", tf.int32: "INT32"}
GENES, VALUES, SOURCE = "genes", "values", "source"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Tensor:
    """An input or output as the protocol describes it.

    Attributes:
        name: Its name.
        datatype: ``BYTES``, ``FP32``, ``BOOL`` or ``INT32``.
        shape: Its shape; -1 for what differs from request to request.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class Answers:
    """The answers of one model about batches of cells.

    Args:
        model: Folder of a training, of a run or of an export.
        k: Number of reference cells that ``nearest`` gives.

    Attributes:
        inputs: All inputs that there may be, ``genes`` and ``values`` first, which must be there.
        signatures: The outputs of each signature, the one that is answered by default first.

    Raises:
        InputError: There is no such model.
    """

    def __init__(self, model: str | Path, k: int = 5) -> None:
        folder = of_run(model)
        self._reference: Reference | None = None
        if (folder / "saved_model.pb").exists():
            self._load(str(folder))
        else:
            with tempfile.TemporaryDirectory(prefix="concerto-") as place:
                self._load(str(export(folder, Path(place) / "served")))
            self._reference = kept_reference(folder)
        outputs = self._calls[0][1].structured_outputs
        if not {GENES, VALUES} <= self._calls[0][0] or "embedding" not in outputs:
            raise InputError(f"{model}: a SavedModel, but none that `export` has written")
        first = ("embedding", "unknown_genes")
        told = {name: _tensor(name, spec) for name, spec in sorted(outputs.items())}
        found = {EMBEDDING: [told[name] for name in first]}
        labels = [one for name, one in told.items() if name not in first]
        if labels:
            found[LABELS] = [*labels, told["unknown_genes"]]
        if self._reference is not None:
            self._k = min(k, self._reference.n_cells)
            found[NEAREST] = self._nearest_outputs(self._reference)
        self.signatures: dict[str, list[Tensor]] = found
        inputs: dict[str, Tensor] = {}
        for _, call in self._calls:
            for name, spec in call.structured_input_signature[1].items():
                inputs.setdefault(name, _tensor(name, spec))
        own = (GENES, VALUES)
        self.inputs = sorted(
            inputs.values(), key=lambda one: (one.name == SOURCE, one.name not in own, one.name)
        )

    def _load(self, folder: str) -> None:
        self._model = tf.saved_model.load(folder)  # to be kept: it holds the variables
        calls = [call for name, call in self._model.signatures.items() if name != "by_index"]
        named = [(frozenset(call.structured_input_signature[1]), call) for call in calls]
        self._calls = sorted(named, key=lambda one: len(one[0]))

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """All outputs about cells.

        Args:
            inputs: Arrays by the names of inputs: genes and values [B, K] padded with "" and 0, and
                what else there is of `inputs`.
        """
        names, call = next((named, call) for named, call in self._calls if named >= set(inputs))
        n_cells = len(inputs[GENES])
        given = {name: inputs.get(name, _empty(name, n_cells)) for name in names}
        found = call(
            **{
                name: tf.constant(x, tf.float32 if name.endswith(VALUES) else tf.string)
                for name, x in given.items()
            }
        )
        answer = {name: x.numpy() for name, x in found.items()}
        return answer if self._reference is None else {**answer, **self._nearest(answer)}

    def _nearest_outputs(self, reference: Reference) -> list[Tensor]:
        shape = (-1, self._k)
        names = [Tensor(f"nearest_{key}", "BYTES", shape) for key in reference.labels]
        return [Tensor("nearest", "INT32", shape), Tensor("cosine", "FP32", shape), *names]

    def _nearest(self, answer: Arrays) -> dict[str, np.ndarray]:
        """The reference cells that lie nearest: their rows, cosines and labels [B, k]."""
        assert self._reference is not None
        index, cosine = self._reference.neighbours(answer["embedding"], self._k)
        found = {"nearest": index.astype(np.int32), "cosine": cosine.astype(np.float32)}
        for key, held in self._reference.labels.items():
            names = np.array([*held.names, ""], object)  # the last for cells without a label
            found[f"nearest_{key}"] = names[held.codes[index]]
        return found


def padded_together(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Inputs of several requests one under the other, padded to the widest.

    Args:
        parts: Inputs of the same names; genes and values of each [B, K] of its own B and K.

    Example:

    >>> import numpy as np
    >>> one = {"genes": np.array([["CD3E", "LYZ"]], object), "values": np.ones([1, 2])}
    >>> two = {"genes": np.array([["MS4A1"]], object), "values": np.ones([1, 1])}
    >>> padded_together([one, two])["genes"].tolist()
    [['CD3E', 'LYZ'], ['MS4A1', '']]
    """
    merged = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if arrays[0].ndim == 2:
            width = max(array.shape[1] for array in arrays)
            arrays = [_padded(array, width) for array in arrays]
        merged[name] = np.concatenate(arrays)
    return merged


def _padded(array: np.ndarray, width: int) -> np.ndarray:
    """Rows of a width, filled up with 0 or with no text."""
    fill: Any = "" if array.dtype == object else 0
    padded = np.full((len(array), width), fill, array.dtype)
    padded[:, : array.shape[1]] = array
    return padded


def _empty(name: str, n_cells: int) -> np.ndarray:
    """What stands for an input that was not given."""
    if name == SOURCE:
        return np.full([n_cells], "", object)
    return np.zeros([n_cells, 1]) if name.endswith(VALUES) else np.full([n_cells, 1], "", object)


def _tensor(name: str, spec: Any) -> Tensor:
    shape = tuple(-1 if size is None else int(size) for size in spec.shape)
    return Tensor(name, DATATYPES[spec.dtype], shape)
