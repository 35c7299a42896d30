"""A reference: embedded cells with their labels, against which query cells are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.novelty import Calibration, Scale
from concerto_tf.numerics.readout import ALIKE, Lesson, Prior
from concerto_tf.numerics.spread import as_unseen
from concerto_tf.reference.index import Index
from concerto_tf.reference.voices import Genes, Voices, learn_voices


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
        units: What the values are, as "log1p of counts scaled to 10,000 per cell"; "as given" where
            they were no counts.
        place: Where they lay in the cells, as in ``obsm:protein``; empty where that is not known.
    """

    matrix: np.ndarray | sp.csr_matrix
    features: tuple[str, ...]
    units: str
    place: str = ""


class Conformity(NamedTuple):
    """How much the reference cells of each label are like each other.

    Attributes:
        directions: Mean direction of the cells of each label [L, d], from the middle.
        lengths: How far the mean of each label lies from there [L].
        scale: Where their three conformity scores lie, by label.
        least: The least of these, each measured by the label, of the cells of all labels.
        together: `concerto_tf.novelty.mean_together` of these cells.
        votes: How unlikely the labels are told by others; see `calibrate_shares`.
    """

    directions: np.ndarray
    lengths: np.ndarray
    scale: Scale
    least: Calibration
    together: Calibration
    votes: Calibration


@dataclass(frozen=True)
class Embedded:
    """Embeddings of reference cells as they are compared: by cosine, at unit length.

    Attributes:
        unit: Directions of the cells [N, d], float32.
        lengths: Lengths [N] that the embeddings had.
        origin: Where the middle of all cells lies [d], `Geometry.origin`.
        factor: What the units of an embedding were multiplied by, seen from the origin [d].
        spread: `Geometry.spread` [2, d]; ``None`` where it is not known. Where it is,
            cosines are taken of the embeddings as they come, otherwise as seen from the origin.
    """

    unit: np.ndarray
    lengths: np.ndarray
    origin: np.ndarray
    factor: np.ndarray
    spread: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        embeddings: np.ndarray,
        origin: np.ndarray | None,
        spread: np.ndarray | None,
        factor: np.ndarray | None = None,
    ) -> Embedded:
        """Embeddings [N, d] of a model, with its origin and its spread.

        The factor is found from these, unless it is known.
        """
        z = np.asarray(embeddings, np.float32)
        if not len(z):
            raise InputError("a reference needs at least one cell")
        width = z.shape[1:]
        origin = np.zeros(width, np.float32) if origin is None else np.asarray(origin, np.float32)
        spread = None if spread is None else np.asarray(spread, np.float32)
        for name, held, shape in (("origin", origin, width), ("spread", spread, (2, *width))):
            if held is not None and held.shape != shape:
                raise InputError(
                    f"{name} has shape {held.shape} for embeddings of {width}; both come from one "
                    "model"
                )
        z = z - origin
        if factor is None:
            factor = np.ones_like(origin) if spread is None else as_unseen(z, spread)
        z *= factor  # in place: there may be millions of cells
        if spread is not None:
            z += origin
        lengths = np.linalg.norm(z, axis=1)
        z /= np.maximum(lengths, 1e-12)[:, np.newaxis]
        return cls(z, lengths, origin, factor, spread)

    def part(self, rows: np.ndarray) -> Embedded:
        """Those of some of the cells."""
        return replace(self, unit=self.unit[rows], lengths=self.lengths[rows])

    @property
    def middle(self) -> np.ndarray:
        """Where the middle of all cells lies in embeddings as they are compared [d]."""
        return np.zeros_like(self.origin) if self.spread is None else self.origin

    def compared(self, z: np.ndarray) -> np.ndarray:
        """Embeddings of a query [n, d] as they are compared."""
        return np.asarray(z, np.float32) - (self.origin - self.middle)

    def from_middle(self, rows: slice | np.ndarray) -> np.ndarray:
        """Embeddings of some of the cells, seen from the middle [n, d]."""
        return self.unit[rows] * self.lengths[rows, np.newaxis] - self.middle

    @cached_property
    def seen(self) -> np.ndarray:
        """What takes a cosine with a cell to that seen from the middle; see `nearness` [N, 3].

        The cell's length, how far it lies towards the middle, and its distance from there.
        """
        along = self.unit @ self.middle
        square = self.lengths**2 - 2 * self.lengths * along + self.middle @ self.middle
        return np.stack([self.lengths, along, np.sqrt(np.maximum(square, 1e-24))], axis=1)


class Reference:
    """Embedded reference cells, with their labels and values of further modalities.

    A model of few cells follows their noise: in its embedding, the cells that it was trained on
    spread more than new cells do. The embeddings of a reference tell whether its cells spread so.
    If they do, they are drawn together to where new cells lie, and a query meets them as if the
    model had seen neither. All cells of a reference are treated alike, as most of them spread.

    Args:
        embeddings: Embeddings [N, d] of the reference cells, or these as they are compared.
        labels: Labels by key.
        values: Values of further modalities by name.
        model: Fingerprint of the model that embedded the cells (`fingerprint`).
        cells: Fingerprint of the cells.
        depth: Mean number of molecules of the cells; 0 where it is not known.
        origin: `Geometry.origin` [d]; ``None`` for 0.
        spread: `Geometry.spread` [2, d]; ``None`` where it is not known.
        built: `Index.built` of these embeddings as they are compared, if it is there already.

    Attributes:
        embedded: The embeddings as they are compared.
        index: Search for the nearest of them.
        voices: What tells labels beside the neighbours, by key; see `learn`.
        calibrations: How much the cells of each label are like each other, by key; see
            `calibrated`.
        stated: What is to be expected of a query, by key; see `concerto_tf.reference.stated`.

    Example:

    >>> import numpy as np
    >>> from concerto_tf import Reference
    >>> from concerto_tf.reference.cells import Labels
    >>> from concerto_tf.reference.transfer import transfer
    >>> z = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> types = Labels(np.array([0, 0, 1, 1], "int32"), ("B", "T"))
    >>> reference = Reference(z, {"cell_type": types})
    >>> index, cosine = reference.neighbours(np.array([[2.0, 0.1]]), k=2)
    >>> sorted(index[0].tolist())
    [0, 1]
    >>> found = transfer(reference, np.array([[2.0, 0.1]]), "cell_type", k=2)
    >>> found["code"].tolist(), found["probability"].tolist()
    ([0], [1.0])
    """

    def __init__(
        self,
        embeddings: np.ndarray | Embedded,
        labels: Mapping[str, Labels] | None = None,
        values: Mapping[str, Values] | None = None,
        *,
        model: str = "",
        cells: str = "",
        depth: float = 0.0,
        origin: np.ndarray | None = None,
        spread: np.ndarray | None = None,
        built: np.ndarray | None = None,
    ) -> None:
        if not isinstance(embeddings, Embedded):
            embeddings = Embedded.of(embeddings, origin, spread)
        self.embedded = embeddings
        self.index = Index(embeddings.unit, built)
        self.labels = dict(labels or {})
        self.values = dict(values or {})
        self.model, self.cells, self.depth = model, cells, depth
        self.voices: dict[str, Voices] = {}
        self.calibrations: dict[str, Conformity] = {}
        self.stated: dict[str, dict[str, Any]] = {}
        held = [(key, len(of.codes)) for key, of in self.labels.items()]
        held += [(name, of.matrix.shape[0]) for name, of in self.values.items()]
        for name, rows in held:
            if rows != self.n_cells:
                raise InputError(f"{name!r} has {rows} rows for {self.n_cells} reference cells")

    @property
    def n_cells(self) -> int:
        """Number of reference cells N."""
        return len(self.embedded.unit)

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

    def part(self, rows: np.ndarray) -> Reference:
        """The reference of some of the cells, with their labels.

        Args:
            rows: Indices of the cells.

        Returns:
            A new reference. Values of modalities are left out.
        """
        labels = {key: Labels(held.codes[rows], held.names) for key, held in self.labels.items()}
        made = Reference(
            self.embedded.part(rows), labels, model=self.model, cells=self.cells, depth=self.depth
        )
        made.voices = {key: of.part(rows, self.n_cells) for key, of in self.voices.items()}
        return made

    def by_neighbours(self) -> Reference:
        """The same cells, whose labels the nearest ones alone tell."""
        if not self.voices:
            return self
        made = Reference(self.embedded, self.labels, self.values, built=self.index.built)
        made.model, made.cells, made.depth = self.model, self.cells, self.depth
        return made

    def learn(self, key: str, seen: Genes, prior: Prior = ALIKE) -> None:
        """Learns labels from some of the cells, to be told by more than the nearest ones.

        Args:
            key: Key of the labels; nothing is learned of fewer than two.
            seen: The cells, and the values of their genes; those without a label are left out.
            prior: How far from 0 the weights of genes may be.
        """
        held = self.labels_of(key)
        seen = seen.part(held.codes[seen.rows] >= 0)
        rows, z = seen.rows, self.embedded.from_middle(seen.rows)
        cells = z, seen.values, seen.source, held.codes[rows], np.ones(len(rows))
        lesson = Lesson(*cells, seen.deviations, len(held.names), prior)
        found = learn_voices(self.embedded.unit[rows], rows, lesson)
        if found is not None:
            self.voices[key] = found
            for rests_on_it in (self.calibrations, self.stated):
                rests_on_it.pop(key, None)

    def labelled(self, key: str) -> Reference:
        """The reference of those cells that have a label under a key."""
        known = self.labels_of(key).codes >= 0
        return self if known.all() else self.part(np.flatnonzero(known))

    def neighbours(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar reference cells of each cell by cosine; see `Index.search`.

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
        width = len(self.embedded.origin)
        if np.shape(z)[1] != width:
            raise InputError(
                f"embeddings of {np.shape(z)[1]} dimensions for a reference of {width}; embed both "
                "with one model"
            )
        return self.index.search(self.embedded.compared(z), k)
