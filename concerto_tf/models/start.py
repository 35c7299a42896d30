"""A start for Concerto's networks: the principal components of the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from concerto_tf.models.concerto import Concerto

#: What is left of the random start beside the components.
_REMAINDER = 0.1


def standardize_by_source(
    x: np.ndarray, source: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Standardises values within each source.

    Args:
        x: Values [n, genes], float32.
        source: Source codes [n].
        epsilon: Added to the variances.

    Returns:
        Standardised values [n, genes], and the mean variance within sources [genes].
    """
    out = np.empty_like(x)
    within = np.zeros(x.shape[1])
    for code in np.unique(source):
        own = source == code
        mean, variance = x[own].mean(0), x[own].var(0)
        out[own] = (x[own] - mean) / np.sqrt(variance + epsilon)
        within += own.mean() * variance
    return out, within


def principal_start(model: Concerto, x: np.ndarray, source: np.ndarray) -> None:
    """Sets the weights of a new model so that its dense layers hold principal components.

    Student: the dense layer projects on the components and, for the ReLU, on their negatives.
    Teacher: the gene embeddings are the components' loadings, so that near-uniform attention adds
    up to the components; the normalisation gives them back their standard deviations.

    Args:
        model: A new model.
        x: Normalised values [n, genes] of a sample of cells.
        source: Their source codes [n].
    """
    from sklearn.decomposition import PCA

    y, within = standardize_by_source(x, source, model.input_epsilon)
    if model.scale_genes:
        model.gene_scale.assign((1 / np.sqrt(within + model.input_epsilon)).astype(np.float32))
    if model.value_clip is not None:
        np.clip(y, -model.value_clip, model.value_clip, out=y)
    k = min(model.components, model.units, model.hidden_units // 2, len(y) - 1, y.shape[1] - 1)
    if k < 1:
        return
    pca = PCA(k, svd_solver="randomized", random_state=model.seed).fit(y)
    loadings = pca.components_.T.astype(np.float32)
    variance = pca.explained_variance_.astype(np.float32)
    typical = np.sqrt(variance.mean())
    if not typical > 0:
        return

    embeddings = model.attention.embeddings.numpy()
    embeddings[:, :k] = loadings * np.sqrt(len(embeddings))
    embeddings[:, k:] *= _REMAINDER
    model.attention.embeddings.assign(embeddings)
    gamma = model.teacher_norm.gamma.numpy()
    gamma[:k], gamma[k:] = np.sqrt(variance) / typical, _REMAINDER / 2
    model.teacher_norm.gamma.assign(gamma)

    teacher = model.teacher_dense.kernel.numpy() * _REMAINDER
    teacher[:k, : 2 * k] = np.concatenate([np.eye(k), -np.eye(k)], axis=1)
    model.teacher_dense.kernel.assign(teacher)
    student = model.student_dense.kernel.numpy() * _REMAINDER
    student[:, : 2 * k] = np.concatenate([loadings, -loadings], axis=1) / typical
    model.student_dense.kernel.assign(student)
