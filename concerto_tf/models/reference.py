"""A reference: embedded cells with their labels, against which query cells are compared."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.models.familiarity import NEAR_CELLS, Calibration, calibrate, familiarity
from concerto_tf.models.neighbours import in_blocks, nearest, vote
from concerto_tf.models.search import ApproximateSearch
from concerto_tf.numerics.spread import as_unseen

_log = logging.getLogger("concerto_tf")
#: Reference cells past which the search is approximate, where faiss is installed, and query cells
#: up to which it is exact all the same: an index would take longer to build than it saves.
EXACT_CELLS = 200_000
FEW_CELLS = 2_000

#: Cells of a query, and of the reference, that are looked at together.
_BATCH_CELLS, _AT_ONCE = 256, 100_000
#: How far a calibration takes cells from as a model knows those it was trained on (0) to as it
#: knows others (1). Queries are of other batches, too, and less typical for that.
_QUERY_LIKE = 0.25
#: Cells of each label at most that a calibration rests on.
_CALIBRATION_CELLS = 500


@dataclass(frozen=True)
class Labels:
    """Labels of the reference cells under one key.

    Attributes:
        codes: int32 [N], -1 where a cell has none.
        names: Name of each code.
    """

    codes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Values:
    """Values of a further modality of the reference cells.

    Attributes:
        matrix: float32 [N, F], dense or CSR.
        features: Names of the F features.
        units: "log1p of counts scaled to 10,000 per cell", or "as given" where they were no counts.
        place: Where they lay in the cells, as in ``obsm:protein``; empty where that is not known.
    """

    matrix: np.ndarray | sp.csr_matrix
    features: tuple[str, ...]
    units: str
    place: str = ""


class Reference:
    """Embedded reference cells: nearest neighbours, votes on labels, and how far is too far.

    Cells that a model was trained on spread more than others do, as a model of few cells follows
    their noise; of reference cells that spread so (told by the embeddings), this is taken back, so
    that a query, which is taken not to have been trained on, meets them as if none had been. Cells
    of both kinds in one reference are all treated as most of them are.

    Args:
        embeddings: Embeddings [N, d] of the reference cells, float32. Kept as they are compared: at
            unit length, beside ``lengths`` [N].
        labels: Labels by key.
        values: Values of further modalities by name.
        model: Fingerprint of the model that embedded the cells (`fingerprint`).
        cells: Fingerprint of the cells.
        origin: Where the middle of all cells lies [d], `ContrastiveModel.origin`; ``None`` for 0.
        spread: `ContrastiveModel.spread` [2, d]; ``None`` where it is not known. Where it is,
            cosines are taken of the embeddings as they come, otherwise as seen from the origin.

    Example:

    >>> import numpy as np
    >>> from concerto_tf.models.reference import Labels, Reference
    >>> z = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> types = Labels(np.array([0, 0, 1, 1], "int32"), ("B", "T"))
    >>> reference = Reference(z, {"cell_type": types})
    >>> index, cosine = reference.neighbours(np.array([[2.0, 0.1]]), k=2)
    >>> sorted(index[0].tolist())
    [0, 1]
    >>> found = reference.transfer(np.array([[2.0, 0.1]]), "cell_type", k=2)
    >>> found["code"].tolist(), found["probability"].tolist()
    ([0], [1.0])

    Reference:
        Concerto, "NN-voting classifier", equations 14 to 16.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        labels: Mapping[str, Labels] | None = None,
        values: Mapping[str, Values] | None = None,
        *,
        model: str = "",
        cells: str = "",
        origin: np.ndarray | None = None,
        spread: np.ndarray | None = None,
    ) -> None:
        embeddings = np.asarray(embeddings, np.float32)
        if not len(embeddings):
            raise InputError("a reference needs at least one cell")
        width = embeddings.shape[1:]
        self.origin = np.zeros(width, np.float32) if origin is None else np.asarray(origin, "f4")
        if self.origin.shape != width:
            raise InputError(
                f"an origin of shape {self.origin.shape} for embeddings of {width}; both come from "
                "one model"
            )
        self.spread = None if spread is None else np.asarray(spread, np.float32)
        if spread is not None and self.spread.shape != (2, *width):
            raise InputError(
                f"a spread of shape {self.spread.shape} for embeddings of {width}; both come from "
                "one model"
            )
        embeddings = embeddings - self.origin
        #: What their units were multiplied by [d].
        self.factor = np.ones_like(self.origin)
        if spread is not None:
            self.factor = as_unseen(embeddings, self.spread)
        embeddings *= self.factor  # in place: there may be millions of cells
        embeddings += self.middle
        self.lengths = np.linalg.norm(embeddings, axis=1)
        embeddings /= np.maximum(self.lengths, 1e-12)[:, np.newaxis]
        self.embeddings = embeddings
        self.labels = dict(labels or {})
        self.values = dict(values or {})
        self.model, self.cells = model, cells
        self.calibrations: dict[str, Calibration] = {}
        self._searches: dict[Any, Any] = {}
        n = len(self.embeddings)
        for name, held in (*self.labels.items(), *self.values.items()):
            rows = len(held.codes) if isinstance(held, Labels) else held.matrix.shape[0]
            if rows != n:
                raise InputError(f"{name!r} has {rows} rows for {n} reference cells")

    @property
    def middle(self) -> np.ndarray:
        """Where the middle of all cells lies in embeddings as they are compared [d]."""
        return np.zeros_like(self.origin) if self.spread is None else self.origin

    @property
    def n_cells(self) -> int:
        """Number of reference cells N."""
        return len(self.embeddings)

    def labels_of(self, key: str) -> Labels:
        """Labels under a key, or an InputError that names the keys there are."""
        if key not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise InputError(
                f"the reference has no labels {key!r} (there are: {known}); name one of these, or "
                f"give the reference's cells again to make it with {key!r}"
            )
        return self.labels[key]

    def values_of(self, modality: str) -> Values:
        """Values of a modality, or an InputError that names the modalities there are."""
        if modality not in self.values:
            known = ", ".join(self.values) or "none"
            raise InputError(
                f"the reference holds no modality {modality!r} (there are: {known}); name one of "
                f"these, or give reference cells that have {modality!r}"
            )
        return self.values[modality]

    # --- search -----------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> tf.Tensor:
        """The embeddings as `nearest` takes them."""
        return tf.constant(in_blocks(self.embeddings))

    def part(self, rows: np.ndarray) -> Reference:
        """The reference of some of the cells, with their labels.

        Args:
            rows: Indices of the cells.

        Returns:
            A new reference. Values of modalities are left out.
        """
        part = copy.copy(self)
        part.embeddings, part.lengths = self.embeddings[rows], self.lengths[rows]
        part.labels = {
            key: Labels(held.codes[rows], held.names) for key, held in self.labels.items()
        }
        part.values, part.calibrations, part._searches = {}, {}, {}
        for name in ("blocks", "_from_middle"):
            part.__dict__.pop(name, None)
        return part

    def neighbours(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar reference cells of each cell by cosine.

        The search is exact up to 200,000 reference cells, and for 2,000 cells or fewer. Beyond
        that faiss searches where it is installed, and finds at least 0.98 of the true neighbours
        (`ApproximateSearch`).

        Args:
            z: Embeddings [n, d].
            k: Number of neighbours.

        Returns:
            Indices int32 [n, k] and cosines float32 [n, k], the most similar first.

        Raises:
            InputError: k is not within 1 and the number of reference cells, or the embeddings are
                not as wide as the reference's.
        """
        if not 1 <= k <= self.n_cells:
            raise InputError(
                f"k is {k}, and {self.n_cells} reference cells are there to choose from; k must "
                "lie within 1 and that number"
            )
        z = np.asarray(z, np.float32)
        if z.shape[1] != len(self.origin):
            raise InputError(
                f"embeddings of {z.shape[1]} dimensions for a reference of "
                f"{len(self.origin)}; embed both with one model"
            )
        return self._neighbours(self._compared(z), k)

    def _compared(self, z: Any) -> Any:
        """Embeddings of a query [n, d] as they are compared."""
        return z - (self.origin - self.middle)

    def _neighbours(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of embeddings as they are compared."""
        if self.n_cells > EXACT_CELLS and len(z) > FEW_CELLS:
            search = self._approximate()
            if search is not None:
                length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
                return search.search(np.ascontiguousarray(z / length), k)
        if k not in self._searches:
            blocks = self.blocks
            # Not under XLA: its matrix product takes several times as long on CPUs.
            self._searches[k] = tf.function(
                lambda batch: nearest(batch, blocks, self.n_cells, k),
                input_signature=[tf.TensorSpec([None, z.shape[1]], tf.float32)],
            )
        index = np.empty((len(z), k), np.int32)
        cosine = np.empty((len(z), k), np.float32)
        for start in range(0, len(z), _BATCH_CELLS):
            rows = slice(start, start + _BATCH_CELLS)
            index[rows], cosine[rows] = (x.numpy() for x in self._searches[k](z[rows]))
        return index, cosine

    # --- labels -----------------------------------------------------------------------------

    def labeller(self, key: str, k: int) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """Transfer of labels as a function of tensors alone, to be put into a SavedModel.

        Args:
            key: Key of the labels; every reference cell must have one (see `part`).
            k: Number of neighbours that vote.

        Returns:
            A function of embeddings [B, d] that gives ``code`` int32 [B] (-1 where nobody votes),
            ``probability`` float32 [B] (equation 16) and ``familiarity`` float32 [B].
        """
        wide, judge = self._width(k), self._judge(key, k)

        def label(z: tf.Tensor) -> dict[str, tf.Tensor]:
            z = self._compared(tf.cast(z, tf.float32))
            return judge(z, *nearest(z, self.blocks, self.n_cells, wide))

        return label

    def transfer(self, z: np.ndarray, key: str, k: int) -> dict[str, np.ndarray]:
        """Labels of cells by the vote of their neighbours, and how typical the cells are of them.

        Args:
            z: Embeddings [n, d].
            key: Key of the labels; every reference cell must have one (see `part`).
            k: Number of neighbours that vote.

        Returns:
            What `labeller` gives, for all n cells.
        """
        index, cosine = self.neighbours(z, self._width(k))
        judge = tf.function(self._judge(key, k), reduce_retracing=True)
        parts = []
        for start in range(0, len(z), _BATCH_CELLS):
            rows = slice(start, start + _BATCH_CELLS)
            compared = self._compared(np.asarray(z[rows], np.float32))
            found = judge(compared, index[rows], cosine[rows])
            parts.append({name: x.numpy() for name, x in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def as_variables(self, key: str) -> tuple[Reference, list[tf.Variable]]:
        """The same reference for `labeller`, its embeddings in variables.

        Constants of a graph have to fit into one message; only the codes of labels stay constants.

        Args:
            key: Key of the labels that will be asked for.

        Returns:
            A reference that shares all else with this one, and its variables.
        """
        self.calibrated(key)
        held = copy.copy(self)
        held._searches = {}
        names = ("blocks", "lengths", "_from_middle")
        for name in names:
            setattr(held, name, tf.Variable(getattr(self, name), trainable=False))
        return held, [getattr(held, name) for name in names]

    def _width(self, k: int) -> int:
        """Number of neighbours that voting and familiarity need together."""
        return max(k, min(NEAR_CELLS, self.n_cells))

    def _judge(self, key: str, k: int) -> Callable[..., dict[str, tf.Tensor]]:
        """Vote and familiarity, once the neighbours are found."""
        held, calibration = self.labels_of(key), self.calibrated(key)
        n_near = min(NEAR_CELLS, self.n_cells)

        def judge(z: tf.Tensor, index: tf.Tensor, cosine: tf.Tensor) -> dict[str, tf.Tensor]:
            codes = tf.gather(tf.constant(held.codes), index[:, :k])
            p = vote(codes, cosine[:, :k], len(held.names))
            probability = tf.reduce_max(p, axis=1)
            code = tf.where(probability > 0, tf.argmax(p, axis=1, output_type=tf.int32), -1)
            near = self._nearness(z, index[:, :n_near], cosine[:, :n_near])
            return {
                "code": code,
                "probability": probability,
                "familiarity": familiarity(z - self.middle, near, code, calibration),
            }

        return judge

    def _own(self, rows: Any) -> np.ndarray:
        """Embeddings [n, d] of reference cells, seen from the middle."""
        return self.embeddings[rows] * self.lengths[rows, np.newaxis] - self.middle

    @cached_property
    def _from_middle(self) -> np.ndarray:
        """How far each cell lies towards the middle, and its distance from there [N, 2]."""
        along = self.embeddings @ self.middle
        square = self.lengths**2 - 2 * self.lengths * along + self.middle @ self.middle
        return np.stack([along, np.sqrt(np.maximum(square, 1e-24))], axis=1)

    def _nearness(self, z: tf.Tensor, index: tf.Tensor, cosine: tf.Tensor) -> tf.Tensor:
        """Mean cosine [B] to neighbours [B, k] seen from the middle, given those of `nearest`."""
        if not self.middle.any():
            return tf.reduce_mean(cosine, axis=1)
        length = tf.gather(self.lengths, index)
        along, distance = tf.unstack(tf.gather(self._from_middle, index), axis=-1)
        own = z - self.middle
        own_distance = tf.norm(own, axis=1, keepdims=True)
        product = length * (cosine * tf.norm(z, axis=1, keepdims=True) - along)
        product -= tf.reduce_sum(own * self.middle, axis=1, keepdims=True)
        between = tf.clip_by_value(
            tf.math.divide_no_nan(product, distance * own_distance), -1.0, 1.0
        )
        # Rounding is all that is left of the direction of a cell in the middle itself.
        least = 1e-4 * np.linalg.norm(self.middle)
        between = tf.where((distance > least) & (own_distance > least), between, 0.0)
        return tf.reduce_mean(between, axis=1)

    def calibrated(self, key: str) -> Calibration:
        """The calibration of `familiarity` for the labels of a key; made when first asked for."""
        if key not in self.calibrations:
            held = self.labels_of(key)
            if (held.codes < 0).any():
                raise InputError(f"reference cells without {key!r}; leave them out with `part`")
            # The same cells every time; which ones hardly matters.
            order = np.random.default_rng(0).permutation(self.n_cells)
            rows = np.sort(
                np.concatenate(
                    [
                        order[held.codes[order] == code][:_CALIBRATION_CELLS]
                        for code in range(len(held.names))
                    ]
                )
            )
            near = np.ones(len(rows), np.float32)
            own = self._own(rows)
            query = own * self.factor ** (_QUERY_LIKE - 1)
            if self.n_cells > 1:
                wide = min(NEAR_CELLS + 1, self.n_cells)
                index, cosine = self._neighbours(query + self.middle, wide)
                # A cell is its own nearest, unless another is just like it.
                itself = index == rows[:, np.newaxis]
                itself[~itself.any(axis=1), -1] = True
                index, cosine = (x[~itself].reshape(len(rows), wide - 1) for x in (index, cosine))
                near = self._nearness(tf.constant(query + self.middle), index, cosine).numpy()
            sums = np.zeros((len(held.names), len(self.middle)), np.float64)
            for start in range(0, self.n_cells, _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                np.add.at(sums, held.codes[part], _unit(self._own(part)))
            self.calibrations[key] = calibrate(
                sums,
                np.bincount(held.codes, minlength=len(held.names)),
                _unit(own),
                _unit(query),
                held.codes[rows],
                near,
            )
        return self.calibrations[key]

    def _approximate(self) -> ApproximateSearch | None:
        """The search of a large reference; None where faiss is not installed."""
        if "approximate" not in self._searches:
            try:
                self._searches["approximate"] = ApproximateSearch(self.embeddings)
            except ImportError:
                _log.warning(
                    "%d reference cells: pip install faiss-cpu makes the search many times "
                    "faster; it goes on in TensorFlow",
                    self.n_cells,
                )
                self._searches["approximate"] = None
        return self._searches["approximate"]


def _unit(z: np.ndarray) -> np.ndarray:
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
