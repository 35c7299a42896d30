"""How good an embedding is: clusters, label separation and mixing of sources."""

from __future__ import annotations

from concerto_tf.metrics.clustering import agreement, kmeans_scores, leiden_scores
from concerto_tf.metrics.consensus import co_association, consensus
from concerto_tf.metrics.conserved import isolated_labels, pcr
from concerto_tf.metrics.embedding import embedding_scores
from concerto_tf.metrics.integration import asw_source, graph_connectivity, ilisi, kbet
from concerto_tf.metrics.separation import asw_label, knn_scores
from concerto_tf.metrics.within_labels import bras, cilisi

__all__ = [
    "agreement",
    "asw_label",
    "asw_source",
    "bras",
    "cilisi",
    "co_association",
    "consensus",
    "embedding_scores",
    "graph_connectivity",
    "ilisi",
    "isolated_labels",
    "kbet",
    "kmeans_scores",
    "knn_scores",
    "leiden_scores",
    "pcr",
]
