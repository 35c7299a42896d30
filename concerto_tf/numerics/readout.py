"""Types told by linear functions of cells: logistic regression, and how much it is to count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from concerto_tf.numerics.turns import place_in_group

#: How many nats it costs to weigh a voice by one more or less than expected.
_TRUST = 2.0
#: Least weight of a voice: where all are blind, a best guess is left.
_LEAST = 1e-3
#: Cells that are learned from, and values of theirs, at most (400 MB).
MOST_CELLS, _MOST_VALUES = 10_000, 100_000_000
#: Parts that sources are left out in.
_PARTS = 5
#: What is said for a type of which no cell was learned from.
NEVER = -1e9


class Prior(NamedTuple):
    """How far from 0 the weights of a gene may be.

    Attributes:
        strength: Variance of the weights of a gene that varies as genes do on the mean.
        power: Of a gene's standard deviation, to which theirs is proportional.
    """

    strength: float
    power: float


#: For cells that were measured like those learned from, and for cells of another technology, panel
#: or depth: many genes that count about alike carry over better than the few that vary most. Chosen
#: on six sets and on seven pairs of blood studies (tools/trials).
ALIKE, OTHERWISE = Prior(0.3, 1.0), Prior(0.01, 0.5)
#: How much another voice, the embedding and the genes are expected to count.
EXPECTED = (0.2, 0.6, 0.2)
#: Of the units of an embedding, which vary about alike; chosen on eight sets (tools/trials).
_OF_UNITS = 0.1


def fit_genes(
    y: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    width: np.ndarray,
    n_types: int,
    prior: Prior = ALIKE,
    share: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression, with a prior on each gene by how much the gene varies.

    A gene that varies little among the cells hardly counts: its prior is narrow in proportion.
    Standardized alike, thousands of genes of pure noise would count as much as markers do.

    Args:
        y: Standardized values of cells [n, F].
        label: Their types [n], of which at least two are there.
        weight: Weights of the cells [n], 1 on the mean.
        width: What standardized values were divided by [F]: how much each gene varies.
        n_types: Number of types C. Those without a cell are never told.
        prior: How far from 0 weights may be.
        share: Of how many cells these are a share, with whom the prior would have to be as wide:
            the fewer cells, the narrower it were otherwise, and the closer to 0 what is said.

    Returns:
        Weights [F, C] and biases [C], float32.

    Example:

    >>> import numpy as np
    >>> from concerto_tf.numerics.readout import fit_genes
    >>> y = np.float32([[-1, 0], [-1, 1], [1, 0], [1, 1]] * 9)
    >>> kernel, bias = fit_genes(y, np.tile([0, 0, 1, 1], 9), np.ones(36), np.ones(2), 2)
    >>> (y @ kernel + bias).argmax(axis=1)[:4].tolist()
    [0, 0, 1, 1]
    """
    width = (width**prior.power).astype(y.dtype)
    variance = y.var(axis=0) * np.square(width)
    varies = y.min(axis=0) < y.max(axis=0)  # the variance of equal values may be rounded to more
    # On the mean a gene that varies has variance 1.
    mean = variance[varies].mean() if varies.any() else 1.0
    width = np.where(varies, width / np.sqrt(max(mean, 1e-12)), 0)
    return _fit(y, label, weight, width.astype(y.dtype), n_types, prior.strength / share)


def fit_units(
    z: np.ndarray, label: np.ndarray, weight: np.ndarray, n_types: int, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on embeddings, whose units keep their widths.

    Args:
        z: Embeddings, seen from the middle of all cells [n, d].
        label, weight, n_types, share: As for `fit_genes`.

    Returns:
        Weights [d, C] and biases [C], float32.
    """
    width = np.full(z.shape[1], 1 / max(float(z.std()), 1e-12), z.dtype)
    return _fit(z, label, weight, width, n_types, _OF_UNITS / share)


def _fit(
    x: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    width: np.ndarray,
    n_types: int,
    strength: float,
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1_000)
    found = model.fit(x * width, label, sample_weight=weight)
    of_types, intercept = found.coef_, found.intercept_
    if len(found.classes_) == 2:  # scikit-learn gives the odds of the second one
        of_types = np.concatenate([-of_types, of_types]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    kernel = np.zeros((x.shape[1], n_types), np.float32)
    bias = np.full(n_types, NEVER, np.float32)
    kernel[:, found.classes_] = (of_types * width).T
    bias[found.classes_] = intercept
    return kernel, bias


def weigh(
    voices: Sequence[np.ndarray],
    label: np.ndarray,
    expected: Sequence[float] = (),
) -> np.ndarray:
    """How much each of several voices is to count, by cells that none has learned.

    The weights under which the types of these cells are likeliest, near what is expected where the
    cells are few. Weights of less or more in all also make the probabilities what they say.

    Args:
        voices: What each says of the types of the cells: log-probabilities [n, C], up to a constant
            of each cell.
        label: Types of the cells [n].
        expected: What the weights are in proportion to where cells do not say otherwise; by default
            equal ones. They are 1 in all.

    Returns:
        Weights [V], above 0, float32; as expected where the cells are of one type or none.

    Example:

    >>> import numpy as np
    >>> from concerto_tf.numerics.readout import weigh
    >>> label = np.arange(100) % 2
    >>> right = np.log(np.where(np.eye(2)[label] == 1, 0.9, 0.1))
    >>> blind = np.full((100, 2), np.log(0.5))
    >>> weight = weigh([right, blind], label)
    >>> bool(weight[0] > 1), weight[1].round(2).tolist()
    (True, 0.5)
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    start = np.array(expected or [1.0] * len(voices), np.float64)
    start /= start.sum()
    if len(np.unique(label)) < 2:
        return start.astype(np.float32)
    rows = np.arange(len(label))
    said = log_softmax(np.stack(voices).astype(np.float64), axis=-1)

    def cost(weights: np.ndarray) -> float:
        log_p = log_softmax(np.tensordot(weights, said, 1), axis=1)
        return float(_TRUST * np.square(weights - start).sum() - log_p[rows, label].sum())

    return minimize(cost, start, bounds=[(_LEAST, None)] * len(said)).x.astype(np.float32)


# --- cells to learn from, and to judge by ---------------------------------------------------


class Told(NamedTuple):
    """What is said of cells by what has learned from others of them.

    Attributes:
        said, bias: By each input [V, n, C], and the biases that are to be added.
        judged: Which cells tell how well types are told, bool [n]; see `left_out`.
        known: Of which cells the others have the type, bool [n].
    """

    said: np.ndarray
    bias: np.ndarray
    judged: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Lesson:
    """Labelled cells that types are learned from.

    Attributes:
        z: Embeddings as new cells would lie, seen from the middle of all cells [n, d].
        y: Standardized values [n, F]; without any gene the embedding alone is read.
        source, label: Their sources and types [n].
        weight: How much each cell counts [n], 1 on the mean.
        width: How much each gene varies [F].
        n_types: Number of types C.
        prior: How far from 0 the weights of genes may be.
        factor: What embeddings of cells that the encoder was trained on were multiplied by [d].
    """

    z: np.ndarray
    y: np.ndarray
    source: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    width: np.ndarray
    n_types: int
    prior: Prior
    factor: np.ndarray | float = 1.0

    @property
    def inputs(self) -> list[np.ndarray]:
        """What is read, each by itself: embeddings and, where there are any, genes."""
        return [self.z, self.y] if self.y.shape[1] else [self.z]

    def learn(
        self, part: np.ndarray | slice = slice(None), share: float = 1.0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights and biases of each input, from some of the cells; see `fit_genes`."""
        cells = self.label[part], self.weight[part]
        share *= len(cells[0]) / len(self.label)
        found = [fit_units(self.z[part], *cells, self.n_types, share)]
        if len(self.inputs) > 1:
            y = self.y[part]
            found.append(fit_genes(y, *cells, self.width, self.n_types, self.prior, share))
        return found

    def by_others(self) -> Told:
        """What is said of each cell by what others taught, part by part (`left_out`)."""
        n = len(self.label)
        said = np.zeros((len(self.inputs), n, self.n_types), np.float32)
        bias, (judged, known) = said.copy(), np.zeros((2, n), bool)
        for own, tell in left_out(self.label, self.source):
            judged |= tell
            known |= own & np.isin(self.label, self.label[~own])
            for i, (kernel, of_types) in enumerate(self.learn(~own)):
                said[i, own], bias[i, own] = self.inputs[i][own] @ kernel, of_types
        return Told(said, bias, judged, known)


def chosen_to_learn(codes: np.ndarray, learned: np.ndarray, n_inputs: int, seed: int) -> np.ndarray:
    """Which cells are learned from, bool [n]: 10,000, as many of each type as can be.

    Args:
        codes: Type of each cell [n].
        learned: Which may be learned from, bool [n].
        n_inputs: Number of values of a cell; of many, fewer cells.
        seed: Seed of the choice.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(learned))
    turns = np.argsort(place_in_group(codes[rows]), kind="stable")
    chosen = np.zeros(len(codes), bool)
    chosen[rows[turns[: min(MOST_CELLS, _MOST_VALUES // n_inputs)]]] = True
    return chosen


def source_parts(source: np.ndarray) -> list[np.ndarray]:
    """Sources in up to five parts, each of which is left out in turn; none of a single source."""
    there = np.unique(source)
    return np.array_split(there, min(_PARTS, len(there))) if len(there) > 1 else []


def left_out(
    codes: np.ndarray, source: np.ndarray, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of cells, each left out in turn: those of some sources, or a half of each type's.

    Within sources that it knows anything is told better than in the next one. Cells of a type that
    sources of one part alone have are dealt to all parts, as nobody could tell them otherwise.

    Args:
        codes: Type of each cell [n].
        source: Its source [n].
        seed: Seed of the halves.

    Yields:
        Which cells are left out, bool [n], and which of these tell how well types are told: those
        that are not dealt, and of whose type there are others. Not where the others are of one
        type.

    Example:

    >>> import numpy as np
    >>> from concerto_tf.numerics.readout import left_out
    >>> codes, source = np.array([0, 1, 0, 1, 2]), np.array([3, 3, 5, 5, 5])
    >>> [(own.astype(int).tolist(), int(judged.sum())) for own, judged in left_out(codes, source)]
    [([1, 1, 0, 0, 1], 2), ([0, 0, 1, 1, 0], 2)]
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    place = np.zeros(len(codes), np.int64)
    place[order] = place_in_group(codes[order])
    parts = source_parts(source)
    part, shared = place % 2, np.ones(len(codes), bool)
    if parts:
        for i, of_part in enumerate(parts):
            part[np.isin(source, of_part)] = i
        pairs = np.unique(np.stack([codes, part]), axis=1)
        several = np.bincount(pairs[0], minlength=codes.max() + 1) > 1
        shared = several[codes]
        part[~shared] = place[~shared] % len(parts)
    for own in (part == i for i in np.unique(part)):
        others = np.unique(codes[~own])
        if len(others) > 1:
            yield own, own & shared & np.isin(codes, others)
