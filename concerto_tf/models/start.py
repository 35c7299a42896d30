"""A start for networks: the principal components of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from concerto_tf.layers import (
    SourceBatchNormalization,
    take_directions,
    with_negatives,
)
from concerto_tf.models.branches import Branch, show
from concerto_tf.numerics.alignment import Comparison, align, modality_offsets
from concerto_tf.numerics.components import principal_components, standardize_by_source
from concerto_tf.numerics.spread import held_out_share, unit_spread

if TYPE_CHECKING:
    from concerto_tf.models.concerto import Concerto

#: Passes over the cells after such a start, at most. There is little to be found anew, and a few
#: cells looked at again and again are told apart by their noise.
MOST_EPOCHS = 30
#: Cells of each modality, and cells at a time, that the teacher is shown to align sources.
_TEACHER_CELLS, _TEACHER_BATCH = 2_000, 250


def principal_start(model: Concerto, xs: list[np.ndarray], source: np.ndarray) -> None:
    """Sets the weights of a new model so that its dense layers hold principal components.

    Student: the dense layer projects on the components and, for the ReLU, on their negatives.
    Teacher: the gene embeddings are the components' loadings, so that near-uniform attention adds
    up to the components; the normalisation gives them back their standard deviations.

    Of several modalities each has components of its own, side by side; in sum they have the same
    variance in each.

    Args:
        model: A new model.
        xs: Normalised values [n, features] of a sample of cells, by modality; NaN in the rows of
            the cells that lack it.
        source: Their source codes [n].
    """
    most = min(model.units, model.hidden_units // 2)
    offsets = [None] * len(xs)
    if model.align_sources:
        by = Comparison(model.input_epsilon, model.value_clip, model.components, model.seed)
        offsets = modality_offsets(xs, source, len(model.sources), by)
    found, inputs = [], []
    for branch, x, own in zip(model.branches, xs, offsets, strict=True):
        *components, y = _components(model, branch, x, source, own)
        found.append(tuple(components))
        if len(model.branches) > 1:  # a sample of cells takes 400 MB
            inputs.append(y)
        del y
    widths = _shares([len(variance) for _, variance, _ in found], most)
    found = [tuple(part[..., :k] for part in parts) for parts, k in zip(found, widths, strict=True)]
    share = np.concatenate([share for *_, share in found])
    found = [(loadings, variance) for loadings, variance, _ in found]
    if len(found) > 1:
        found = [(part, variance / max(variance.sum(), 1e-12)) for part, variance in found]
    variance = np.concatenate([variance for _, variance in found])
    k = len(variance)
    if not k or not variance.mean() > 0:
        return
    typical = np.sqrt(variance.mean())
    if model.readout != "both":  # whose halves are of length 1, and so compared by cosine already
        whole = model.readout_activation is None  # a ReLU leaves half of it
        model.place(2 * k, np.tile(unit_spread(variance, share), 2) if whole else None)
    scales, both = np.sqrt(variance) / typical, with_negatives(np.eye(k))
    model.teacher_norm.take_scales(scales)
    take_directions(model.teacher_dense.kernel, both)
    first = 0
    for branch, (loadings, _) in zip(model.branches, found, strict=True):
        directions = np.zeros((branch.n_inputs, k), np.float32)
        directions[:, first : first + loadings.shape[1]] = loadings
        first += loadings.shape[1]
        branch.attention.take_directions(directions)
        if branch.branch_dense is not None:
            take_directions(branch.branch_dense.kernel, directions / branch.input_gain)
    if model.joint_norm is not None:  # the components were made in the branches
        model.joint_norm.take_scales(scales)
    else:
        both = with_negatives(found[0][0] / (typical * model.branches[0].input_gain))
    take_directions(model.student_dense.kernel, both)
    if offsets[0] is not None:
        _align_teacher(model, xs, source, offsets)
        if len(model.branches) > 1:
            _align_joint(model, inputs, source)


def _align_teacher(
    model: Concerto,
    xs: list[np.ndarray],
    source: np.ndarray,
    offsets: list[Any],
) -> None:
    """Aligns sources in what the teacher's attention gives, by their offsets [S, features].

    Its statistics are of views, in which features of a modality are hidden, or all of it.
    """
    has = np.stack([~np.isnan(x[:, 0]) for x in xs], axis=1)
    several = len(model.branches) > 1
    # All modalities together are seen in the first cells, one that is rare in more.
    shown = has[:_TEACHER_CELLS]
    if several:
        shown = show(tf.constant(shown), model.teacher_hide, training=True).numpy()
    whole, view = np.zeros((2, len(shown), model.units), np.float32)
    for branch, x, own, having, in_view in zip(
        model.branches, xs, offsets, has.T, shown.T, strict=True
    ):
        rows = np.flatnonzero(having)[:_TEACHER_CELLS]
        if not len(rows):
            continue
        x, norm = x[rows], branch.branch_norm or model.teacher_norm
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
    if several:
        none = np.zeros((len(model.sources), model.units))
        _align(model.teacher_norm, whole, source[: len(shown)], none, view)


def _align(
    norm: SourceBatchNormalization,
    x: np.ndarray,
    source: np.ndarray,
    offsets: np.ndarray,
    views: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Aligns a normalisation; gives the values behind it and what they were divided by."""
    y, scale, factor, offset = align(x, source, offsets, norm.epsilon, views)
    norm.align(factor, offset)
    return y, scale


def _attended(branch: Branch, x: np.ndarray, training: bool) -> np.ndarray:
    """What the teacher's attention gives [n, units] of values [n, features], or of a view."""
    genes = np.arange(branch.n_inputs, dtype=np.int32)
    parts = np.array_split(x, -(-len(x) // _TEACHER_BATCH))
    return np.concatenate(
        [
            branch.attended((np.tile(genes, (len(part), 1)), part, None), training).numpy()
            for part in parts
        ]
    ).astype(np.float32)


def _align_joint(model: Concerto, inputs: list[np.ndarray], source: np.ndarray) -> None:
    """Has the student's normalisation of all modalities together leave sources as they are.

    Its statistics are of views, in which a modality may be hidden and features of it are.

    Args:
        model: A model of several modalities whose branches have their weights.
        inputs: Aligned values [n, features] by modality; NaN in the rows of cells that lack it.
        source: Source codes [n].
    """
    has = np.stack([~np.isnan(y[:, 0]) for y in inputs], axis=1)
    shown = show(tf.constant(has), model.student_hide, training=True).numpy()
    whole, view = np.zeros((2, len(source), model.hidden_units), np.float32)
    for branch, y, having, in_view in zip(model.branches, inputs, has.T, shown.T, strict=True):
        kernel = branch.branch_dense.kernel.numpy() * branch.input_gain
        whole[having] += y[having] @ kernel
        masked = branch.student_mask(tf.constant(y[in_view]), training=True)
        view[in_view] += tf.cast(masked, tf.float32).numpy() @ kernel
    offsets = np.zeros((len(model.sources), model.hidden_units), np.float32)
    _align(model.joint_norm, whole, source, offsets, view)


def _components(
    model: Concerto,
    branch: Branch,
    x: np.ndarray,
    source: np.ndarray,
    offsets: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Loadings [F, k], variances and `held_out_share` [k] of a modality, and the student's input.

    That is [n, F]. Also scales the teacher's values.
    """
    having = ~np.isnan(x[:, 0])
    inputs = np.full_like(x, np.nan) if len(model.branches) > 1 else x
    x, source = x[having], source[having]
    if len(x) < 3:
        none = np.zeros(0, np.float32)
        return np.zeros((branch.n_inputs, 0), np.float32), none, none, inputs
    y, within = standardize_by_source(x, source, model.input_epsilon)
    if branch.scale is not None:
        branch.scale.assign((1 / np.sqrt(within + model.input_epsilon)).astype(np.float32))
    if offsets is not None:
        y, _ = _align(branch.student_norm, x, source, offsets)
    if model.value_clip is not None:
        np.clip(y, -model.value_clip, model.value_clip, out=y)
    most = min(model.units, model.hidden_units // 2, model.components)
    loadings, variance = principal_components(y, most, model.seed, model.denoise)
    share = held_out_share(y, len(variance), model.seed)
    if len(model.branches) == 1:
        return loadings, variance, share, y
    inputs[having] = y
    return loadings, variance, share, inputs


def _shares(wanted: list[int], most: int) -> list[int]:
    """Components of each modality, as many as there is room for: the largest gives way."""
    widths = list(wanted)
    while sum(widths) > most:
        widths[int(np.argmax(widths))] -= 1
    return widths
