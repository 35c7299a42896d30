"""What tells labels beside the neighbours: linear functions of the embedding and of the genes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from concerto_tf.numerics.readout import EXPECTED, NEVER, Lesson, left_out, weigh

#: Neighbours that vote, and votes that a cell brings along: an equal share for each label.
VOTERS, _BROUGHT = 5, 0.5


@dataclass(frozen=True)
class Genes:
    """Values of genes of some reference cells, from which labels are learned.

    Attributes:
        rows: Indices of the cells [S].
        values: Their standardized values [S, F]; without any gene, the embedding alone is read.
        deviations: What these were divided by [F].
        source: Source of each of the cells [S].
    """

    rows: np.ndarray
    values: np.ndarray
    deviations: np.ndarray
    source: np.ndarray

    def part(self, kept: np.ndarray) -> Genes:
        """Those of some of these cells, bool [S]."""
        own = {name: getattr(self, name)[kept] for name in ("rows", "values", "source")}
        return replace(self, **own)


@dataclass(frozen=True)
class Voices:
    """Labels told by logistic regression, beside the vote of the neighbours.

    Attributes:
        neighbours: How much the logarithm of the neighbours' shares counts.
        units: Weights of the units of an embedding, seen from the middle [d, L].
        genes: Weights of standardized values [F, L].
        bias: Of both [L].
        rows: Reference cells that they were learned from and could be told by others [S],
            ascending.
        by_units, by_genes: What is said of these, as learned from others of them [S, L]; the bias
            is with the units.
    """

    neighbours: np.ndarray
    units: np.ndarray
    genes: np.ndarray
    bias: np.ndarray
    rows: np.ndarray
    by_units: np.ndarray
    by_genes: np.ndarray

    def heard(self, z: np.ndarray, by_genes: np.ndarray) -> np.ndarray:
        """What is said of cells [n, L].

        Args:
            z: Their embeddings, seen from the middle [n, d].
            by_genes: Their standardized values times `genes` [n, L].
        """
        return np.asarray(z @ self.units + by_genes + self.bias, np.float32)

    def of_cells(self, cells: np.ndarray) -> np.ndarray:
        """What is said of some of `rows`, as learned from others of them [n, L]."""
        place = np.searchsorted(self.rows, cells)
        return (self.by_units + self.by_genes)[place]

    def part(self, rows: np.ndarray, n_cells: int) -> Voices:
        """Those of a reference of some of the cells.

        Args:
            rows: Indices of these.
            n_cells: Number of cells of the whole reference.
        """
        place = np.full(n_cells, -1)
        place[rows] = np.arange(len(rows))
        kept = np.flatnonzero(place[self.rows] >= 0)
        own = place[self.rows[kept]]
        kept, own = kept[np.argsort(own)], np.sort(own)
        return replace(self, rows=own, by_units=self.by_units[kept], by_genes=self.by_genes[kept])

    def of_labels(self, codes: np.ndarray) -> Voices:
        """Those of some of the labels."""
        columns = ("units", "genes", "by_units", "by_genes")
        return replace(
            self, bias=self.bias[codes], **{name: getattr(self, name)[:, codes] for name in columns}
        )


def log_shares(shares: tf.Tensor, k: int) -> tf.Tensor:
    """Logarithms of what k neighbours vote for [B, L], of which no share is nothing."""
    n_labels = shares.shape[-1]
    return tf.math.log((shares * k + _BROUGHT / n_labels) / (k + _BROUGHT))


def together(
    shares: tf.Tensor, k: int, heard: tf.Tensor, neighbours: np.ndarray, there: np.ndarray
) -> tf.Tensor:
    """Probabilities of labels by the vote and by what else is heard.

    Args:
        shares: Shares of the votes [B, L].
        k: Number of neighbours that voted.
        heard: What is said beside that [B, L].
        neighbours: `Voices.neighbours`.
        there: Which labels reference cells have, bool [L]; the others are not told.

    Returns:
        Probabilities [B, L], float32; 0 for all labels where nobody votes.
    """
    odds = neighbours * log_shares(shares, k) + heard
    p = tf.nn.softmax(tf.where(there, odds, NEVER))
    return tf.where(tf.reduce_any(shares > 0, axis=1, keepdims=True), p, 0.0)


def learn_voices(unit: np.ndarray, rows: np.ndarray, lesson: Lesson) -> Voices | None:
    """Learns labels from reference cells, and how much each voice is to count.

    That is judged where it will be asked: of cells that were left out, of whole sources where there
    are several, and of a half of the cells otherwise.

    Args:
        unit: Directions of the cells as they are compared [S, d].
        rows: Their indices [S].
        lesson: What is learned from these.

    Returns:
        The voices; None where there are not two labels to tell apart.
    """
    codes, n_labels = lesson.label, lesson.n_types
    if len(np.unique(codes)) < 2:
        return None
    by_vote = np.zeros((len(codes), n_labels), np.float32)
    for own, _ in left_out(codes, lesson.source):
        by_vote[own] = _voted(unit[own], unit[~own], codes[~own], n_labels)
    told, final = lesson.by_others(), lesson.learn()
    answers = [by_vote, *(told.said + told.bias)]
    judged = told.judged
    expected = EXPECTED[: len(answers)]
    neighbours, *weight = weigh([of[judged] for of in answers], codes[judged], expected)
    kernels = [w * kernel for w, (kernel, _) in zip(weight, final, strict=True)]
    genes, by_genes = np.zeros((0, n_labels), np.float32), np.zeros_like(by_vote)
    if len(kernels) > 1:
        genes, by_genes = kernels[1], weight[1] * told.said[1]
    return Voices(
        neighbours,
        kernels[0],
        genes,
        np.sum([w * bias for w, (_, bias) in zip(weight, final, strict=True)], axis=0),
        rows[told.known],
        (weight[0] * told.said[0] + np.tensordot(weight, told.bias, 1))[told.known],
        by_genes[told.known],
    )


def _voted(query: np.ndarray, unit: np.ndarray, codes: np.ndarray, n_labels: int) -> np.ndarray:
    """`log_shares` of cells [n, L] by the vote of others of which all are compared."""
    k = min(VOTERS, len(unit))
    shares = np.zeros((len(query), n_labels), np.float32)
    for start in range(0, len(query), 1024):
        cosine = query[start : start + 1024] @ unit.T
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = np.maximum(np.take_along_axis(cosine, near, axis=1), 0)
        place = np.arange(start, start + len(cosine))[:, np.newaxis]
        np.add.at(shares, (place, codes[near]), weight)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(log_shares(tf.constant(shares), k))
