"""What the genes alone say of cell types: logistic regression beside the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from concerto_tf.models.batches import SAMPLE_VALUES
from concerto_tf.numerics.turns import place_in_group
from concerto_tf.records.batch import ROW, Batch, Minibatch

if TYPE_CHECKING:
    from concerto_tf.models.classifier.network import Classifier

#: How many nats it costs to weigh a voice by one more or less than a half.
_TRUST = 2.0
#: Cells that are learned from, at most, and parts that sources are left out in.
_MOST_CELLS, _PARTS = 10_000, 5


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


def learn_genes(
    model: Classifier,
    data: Iterable[Batch],
    known: np.ndarray,
    held_out: Iterable[Batch] = (),
    prior: Prior = ALIKE,
) -> None:
    """Teaches the genes the types, and weighs them beside the networks.

    A gene that varies little among the cells hardly counts: its prior is narrow in proportion.
    Standardized alike, thousands of genes of pure noise would count as much as markers do.

    How far networks and genes are to be trusted, held-out cells tell. Where cells are of several
    sources, genes are judged by what they have learned from other sources than the cell's: within
    studies that it knows, logistic regression is better than it will be in the next one. Networks,
    which lose less there, are not trained anew for that; so with several sources genes count less.

    Args:
        model: The classifier, which notes it.
        data: Batches, of which labelled cells are learned from; see `chosen_to_learn`.
        known: Number of cells of each type that there are to learn from [C]; ``data`` may have a
            part of them.
        held_out: Batches, of which labelled cells were learned by neither voice. Without any, both
            count by half.
        prior: How far from 0 weights may be.
    """

    def seen(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        return model.standardized(batch), Minibatch(batch).source

    (y, source), label = labelled_cells(model, data, seen)
    share = known / np.maximum(np.bincount(label, minlength=len(known)), 1)
    weight = (np.array(model.class_weight) * share)[label]
    weight, width = weight / weight.mean(), model.encoder.deviations

    def fit(part: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        return fit_genes(y[part], label[part], weight[part], width, len(known), prior)

    kernel, bias = fit(slice(None))
    model.head.genes.kernel.assign(kernel)
    model.head.genes.bias.assign(bias)

    def voices(batch: Batch) -> tuple[tf.Tensor, ...]:
        networks = model.head.of_networks(*model.encoder.represent(batch, training=False))
        return networks, *seen(batch)

    said, truth = labelled_cells(model, held_out, voices)
    weights = np.array([0.5, 0.5])
    if len(truth):
        networks, asked, of = said
        genes, judged = asked @ kernel + bias, np.ones(len(truth), bool)
        for part in source_parts(source):
            rest, own = ~np.isin(source, part), np.isin(of, part)
            others = np.unique(label[rest])
            judged[own] = np.isin(truth[own], others) & (len(others) > 1)
            if judged[own].any():
                kernel, bias = fit(rest)
                genes[own] = asked[own] @ kernel + bias
        if len(np.unique(truth[judged])) > 1:
            weights = weigh(networks[judged], genes[judged], truth[judged])
    model.head.voices.assign(weights)
    model.forget_steps()


def source_parts(source: np.ndarray) -> list[np.ndarray]:
    """Sources in up to five parts, each of which is left out in turn; none of a single source."""
    there = np.unique(source)
    return np.array_split(there, min(_PARTS, len(there))) if len(there) > 1 else []


def chosen_to_learn(codes: np.ndarray, learned: np.ndarray, n_inputs: int, seed: int) -> np.ndarray:
    """Which cells the genes are learned from, bool [n]: 10,000, as many of each type as can be.

    Args:
        codes: Type of each cell [n].
        learned: Which may be learned from, bool [n].
        n_inputs: Number of values of a cell; of many, fewer cells.
        seed: Seed of the choice.
    """
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(learned))
    turns = np.argsort(place_in_group(codes[rows]), kind="stable")
    chosen = np.zeros(len(codes), bool)
    chosen[rows[turns[: min(_MOST_CELLS, SAMPLE_VALUES // n_inputs)]]] = True
    return chosen


def fit_genes(
    y: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    width: np.ndarray,
    n_types: int,
    prior: Prior = ALIKE,
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression, with a prior on each gene by how much the gene varies.

    Args:
        y: Standardized values of cells [n, F].
        label: Their types [n], of which at least two are there.
        weight: Weights of the cells [n], 1 on the mean.
        width: What standardized values were divided by [F]: how much each gene varies.
        n_types: Number of types C. Those without a cell are never told.
        prior: How far from 0 weights may be.

    Returns:
        Weights [F, C] and biases [C], float32.

    Example:

    >>> import numpy as np
    >>> from concerto_tf.models.classifier.genes import fit_genes
    >>> y = np.float32([[-1, 0], [-1, 1], [1, 0], [1, 1]] * 9)
    >>> kernel, bias = fit_genes(y, np.tile([0, 0, 1, 1], 9), np.ones(36), np.ones(2), 2)
    >>> (y @ kernel + bias).argmax(axis=1)[:4].tolist()
    [0, 0, 1, 1]
    """
    from sklearn.linear_model import LogisticRegression

    width = (width**prior.power).astype(y.dtype)
    variance = y.var(axis=0) * np.square(width)
    varies = y.min(axis=0) < y.max(axis=0)  # the variance of equal values may be rounded to more
    # On the mean a gene that varies has variance 1.
    width = np.where(varies, width / np.sqrt(max(variance[varies].mean(), 1e-12)), 0)
    found = LogisticRegression(C=prior.strength, max_iter=1_000).fit(
        y * width.astype(y.dtype), label, sample_weight=weight
    )
    of_types, intercept = found.coef_, found.intercept_
    if len(found.classes_) == 2:  # scikit-learn gives the odds of the second one
        of_types = np.concatenate([-of_types, of_types]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    kernel = np.zeros((y.shape[1], n_types), np.float32)
    bias = np.full(n_types, -1e9, np.float32)
    kernel[:, found.classes_] = (of_types * width).T
    bias[found.classes_] = intercept
    return kernel, bias


def weigh(networks: np.ndarray, genes: np.ndarray, label: np.ndarray) -> np.ndarray:
    """How much networks and genes are to count, by cells that neither has learned.

    The weights under which the types of these cells are likeliest, near a half for each where the
    cells are few. Weights of less or more in all also make the probabilities what they say.

    Args:
        networks: Log-probabilities by the networks [n, C].
        genes: Those by the genes [n, C], up to a constant of each cell.
        label: Types of the cells [n].

    Returns:
        Weights [2], 0 or more, float32.

    Example:

    >>> import numpy as np
    >>> from concerto_tf.models.classifier.genes import weigh
    >>> label = np.arange(100) % 2
    >>> right = np.log(np.where(np.eye(2)[label] == 1, 0.9, 0.1))
    >>> blind = np.full((100, 2), np.log(0.5))
    >>> weight = weigh(right, blind, label)
    >>> bool(weight[0] > 1), weight[1].round(2).tolist()
    (True, 0.5)
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows = np.arange(len(label))
    both = log_softmax(np.stack([networks, genes]).astype(np.float64), axis=-1)

    def cost(voices: np.ndarray) -> float:
        log_p = log_softmax(np.tensordot(voices, both, 1), axis=1)
        return float(_TRUST * np.square(voices - 0.5).sum() - log_p[rows, label].sum())

    found = minimize(cost, [0.5, 0.5], bounds=[(0, None), (0, None)])
    return found.x.astype(np.float32)


def labelled_parts(
    model: Classifier, data: Iterable[Batch], look: Callable[[Batch], Sequence[tf.Tensor]]
) -> Iterator[tuple[list[np.ndarray], np.ndarray, np.ndarray]]:
    """What is seen of the labelled cells, part by part.

    Args:
        model: The classifier.
        data: Batches with labels; cells without one have -1.
        look: Gives tensors [B, ...] of a batch, compiled.

    Yields:
        The tensors of the labelled cells as arrays, their labels and their rows.
    """
    for i, batch in enumerate(data):
        label = np.array(Minibatch(batch).label(model.label_key))
        row = np.array(batch[ROW]) if ROW in batch else np.full(len(label), i)
        own = label >= 0
        if own.any():
            seen = [x.numpy()[own] for x in look(Minibatch(batch).numeric)]
            yield seen, label[own], row[own]


def labelled_cells(
    model: Classifier, data: Iterable[Batch], look: Callable[[Batch], Sequence[tf.Tensor]]
) -> tuple[list[np.ndarray], np.ndarray]:
    """What is seen of all labelled cells, and their types [n], in the order of the input.

    Args:
        model, data: As for `labelled_parts`.
        look: Gives tensors [B, ...] of a batch.
    """
    compiled = tf.function(look, reduce_retracing=True)
    parts = list(labelled_parts(model, data, compiled))
    if not parts:
        return [], np.empty(0, np.int32)
    seen, label, row = zip(*parts, strict=True)
    order = np.argsort(np.concatenate(row), kind="stable")
    whole = [np.concatenate(arrays)[order] for arrays in zip(*seen, strict=True)]
    return whole, np.concatenate(label)[order]
