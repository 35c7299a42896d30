"""PCA initialization: both networks of Concerto begin with the principal components of the cells.

Student: the dense layer projects on the components and, for the ReLU, on their negatives.
Teacher: the gene embeddings are the components' loadings, so that near-uniform attention adds up to
the components; the normalization gives them back their standard deviations.

Of several modalities each has components of its own, side by side; in sum they have the same
variance in each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from concerto_tf.layers import SourceBatchNormalization
from concerto_tf.layers.directions import take_directions, with_negatives
from concerto_tf.models.concerto.branches import Branch, show
from concerto_tf.models.concerto.teacher_student import Networks
from concerto_tf.models.modality import Cells
from concerto_tf.numerics.alignment import Comparison, align, modality_offsets
from concerto_tf.numerics.components import principal_components, standardize_by_source
from concerto_tf.numerics.spread import held_out_share, unit_spread

#: Cells of each modality, and cells at a time, that the teacher is shown to align sources.
_TEACHER_CELLS, _TEACHER_BATCH = 2_000, 250


class _Components(NamedTuple):
    """Principal components of a modality.

    Attributes:
        loadings: [F, k].
        variance: [k].
        share: From `held_out_share` [k].
    """

    loadings: np.ndarray
    variance: np.ndarray
    share: np.ndarray


def initialize(
    networks: Networks,
    xs: list[np.ndarray],
    source: np.ndarray,
    by: Comparison,
    denoise: float,
    aligned: bool,
) -> np.ndarray | None:
    """Sets the weights of new networks so that their dense layers hold principal components.

    Args:
        networks: The layers of a new model.
        xs: Normalized values [n, features] of a sample of cells, by modality; NaN in the rows of
            the cells that lack it.
        source: Their source codes [n].
        by: How many components, and how cells are compared across sources.
        denoise: Share of the noise that is taken out of each component.
        aligned: Whether sources are aligned by the cell types that they share.

    Returns:
        Standard deviations along the components, which are in the first units and with the other
        sign in as many behind them, of cells seen and of others [2, k]. None where cells do not
        differ.
    """
    room = min(networks.branches[0].attention.units, networks.teacher_dense.units // 2)
    offsets: list[np.ndarray | None] = [None] * len(xs)
    if aligned:
        offsets = modality_offsets(xs, source, networks.teacher_norm.n_sources, by)
    found, inputs = [], []
    for branch, x, own in zip(networks.branches, xs, offsets, strict=True):
        y = _student_input(branch, x, source, own, by)
        found.append(_components(y, min(by.components, room), by.seed, denoise))
        if networks.several:  # a sample of cells takes 400 MB
            inputs.append(y)
        del y
    found = _in_room(found, room)
    variance = np.concatenate([of.variance for of in found])
    if not len(variance) or not variance.mean() > 0:
        return None
    _hold(networks, [of.loadings for of in found], variance)
    if offsets[0] is not None:
        _align_teacher(networks, xs, source, offsets)
        _align_joint(networks, inputs, source)
    return unit_spread(variance, np.concatenate([of.share for of in found]))


def _hold(networks: Networks, loadings: list[np.ndarray], variance: np.ndarray) -> None:
    """Has all layers hold components of these loadings [F, k] by modality, one behind the other."""
    k, typical = len(variance), np.sqrt(variance.mean())
    scales, both = np.sqrt(variance) / typical, with_negatives(np.eye(k))
    networks.teacher_norm.take_scales(scales)
    take_directions(networks.teacher_dense.kernel, both)
    first = 0
    for branch, own in zip(networks.branches, loadings, strict=True):
        directions = np.zeros((branch.n_inputs, k), np.float32)
        directions[:, first : first + own.shape[1]] = own
        first += own.shape[1]
        branch.attention.take_directions(directions)
        if branch.branch_dense is not None:
            take_directions(branch.branch_dense.kernel, directions / branch.input_gain)
    if networks.joint_norm is not None:  # the components were made in the branches
        networks.joint_norm.take_scales(scales)
    else:
        both = with_negatives(loadings[0] / (typical * networks.branches[0].input_gain))
    take_directions(networks.student_dense.kernel, both)


# --- components -----------------------------------------------------------------------------


def _student_input(
    branch: Branch, x: np.ndarray, source: np.ndarray, offsets: np.ndarray | None, by: Comparison
) -> np.ndarray:
    """What the student will take in of a modality [n, F], NaN of the cells that lack it.

    Aligns the student's normalization, and scales the teacher's values.
    """
    having = ~np.isnan(x[:, 0])
    everywhere = having.all()
    own, of = (x, source) if everywhere else (x[having], source[having])
    if len(own) < 3:
        return np.full_like(x, np.nan)
    y, within = standardize_by_source(own, of, by.epsilon)
    if branch.scale is not None:
        branch.scale.assign((1 / np.sqrt(within + by.epsilon)).astype(np.float32))
    if offsets is not None:
        y, _ = _align(branch.student_norm, own, of, offsets)
    if by.clip is not None:
        np.clip(y, -by.clip, by.clip, out=y)
    if everywhere:
        return y
    inputs = np.full_like(x, np.nan)
    inputs[having] = y
    return inputs


def _components(y: np.ndarray, most: int, seed: int, denoise: float) -> _Components:
    """Components of the cells that have a modality."""
    having = ~np.isnan(y[:, 0])
    if having.sum() < 3:
        none = np.zeros(0, np.float32)
        return _Components(np.zeros((y.shape[1], 0), np.float32), none, none)
    y = y if having.all() else y[having]
    loadings, variance = principal_components(y, most, seed, denoise)
    return _Components(loadings, variance, held_out_share(y, len(variance), seed))


def _in_room(found: list[_Components], room: int) -> list[_Components]:
    """As many components of each modality as there is room for, with equal sums of variances."""
    widths = [len(of.variance) for of in found]
    while sum(widths) > room:
        widths[int(np.argmax(widths))] -= 1  # the largest gives way
    fitting = []
    for (loadings, variance, share), k in zip(found, widths, strict=True):
        variance = variance[:k]
        if len(found) > 1:
            variance = variance / max(variance.sum(), 1e-12)
        fitting.append(_Components(loadings[:, :k], variance, share[:k]))
    return fitting


# --- alignment ------------------------------------------------------------------------------


def _align(
    norm: SourceBatchNormalization,
    x: np.ndarray,
    source: np.ndarray,
    offsets: np.ndarray,
    views: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Aligns a normalization; gives the values behind it and what they were divided by."""
    y, scale, factor, offset = align(x, source, offsets, norm.epsilon, views)
    norm.align(factor, offset)
    return y, scale


def _align_teacher(
    networks: Networks, xs: list[np.ndarray], source: np.ndarray, offsets: list[np.ndarray | None]
) -> None:
    """Aligns sources in what the teacher's attention gives, by their offsets [S, features].

    Its statistics are of views, in which features of a modality are hidden, or all of it.
    """
    has = np.stack([~np.isnan(x[:, 0]) for x in xs], axis=1)
    # All modalities together are seen in the first cells, one that is rare in more.
    shown = has[:_TEACHER_CELLS]
    if networks.teacher_hide is not None:
        shown = show(tf.constant(shown), networks.teacher_hide, training=True).numpy()
    units = networks.branches[0].attention.units
    whole, view = np.zeros((2, len(shown), units), np.float32)
    for branch, x, own, having, in_view in zip(
        networks.branches, xs, offsets, has.T, shown.T, strict=True
    ):
        rows = np.flatnonzero(having)[:_TEACHER_CELLS]
        if not len(rows):
            continue
        x, norm = x[rows], branch.branch_norm or networks.teacher_norm
        cells, views = (_attended(branch, x, training) for training in (False, True))
        # Were attention uniform, it would be this; it is nearly, but for a factor of each feature.
        linear = branch.attention.embeddings.numpy() / np.sqrt(branch.n_inputs)
        if branch.scale is not None:
            linear = linear * branch.scale.numpy()[:, np.newaxis]
        uniform = x @ linear
        uniform = uniform - uniform.mean(0)
        slope = (uniform * (cells - cells.mean(0))).sum(0) / np.maximum((uniform**2).sum(0), 1e-12)
        made, scale = _align(norm, cells, source[rows], (own @ linear) * slope, views)
        first = rows[rows < len(shown)]
        whole[first] += made[: len(first)]
        of_view = made + (views - cells) / scale
        view[first] += of_view[: len(first)] * in_view[first, np.newaxis]
    if networks.teacher_hide is not None:
        none = np.zeros((networks.teacher_norm.n_sources, units))
        _align(networks.teacher_norm, whole, source[: len(shown)], none, view)


def _attended(branch: Branch, x: np.ndarray, training: bool) -> np.ndarray:
    """What the teacher's attention gives [n, units] of values [n, features], or of a view."""
    genes = np.arange(branch.n_inputs, dtype=np.int32)
    parts = np.array_split(x, -(-len(x) // _TEACHER_BATCH))
    return np.concatenate(
        [
            branch.attended(Cells(np.tile(genes, (len(part), 1)), part), training).numpy()
            for part in parts
        ]
    ).astype(np.float32)


def _align_joint(networks: Networks, inputs: list[np.ndarray], source: np.ndarray) -> None:
    """Has the student's normalization of all modalities together leave sources as they are.

    Its statistics are of views, in which a modality may be hidden and features of it are.

    Args:
        networks: Those whose branches hold components.
        inputs: Aligned values [n, features] by modality; NaN in the rows of cells that lack it.
        source: Source codes [n].
    """
    norm, hide = networks.joint_norm, networks.student_hide
    if norm is None or hide is None:
        return  # there is one modality
    has = np.stack([~np.isnan(y[:, 0]) for y in inputs], axis=1)
    shown = show(tf.constant(has), hide, training=True).numpy()
    width = networks.branches[0].branch_dense.units
    whole, view = np.zeros((2, len(source), width), np.float32)
    for branch, y, having, in_view in zip(networks.branches, inputs, has.T, shown.T, strict=True):
        kernel = branch.branch_dense.kernel.numpy() * branch.input_gain
        whole[having] += y[having] @ kernel
        masked = branch.student_mask(tf.constant(y[in_view]), training=True)
        view[in_view] += tf.cast(masked, tf.float32).numpy() @ kernel
    none = np.zeros((norm.n_sources, width), np.float32)
    _align(norm, whole, source, none, view)
