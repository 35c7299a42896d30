"""Figures, drawn with matplotlib; what is listed here is called as scanpy's ``pl`` is."""

from concerto_tf.pl.calls import explained, paga, pseudotime, sankey, training, umap

__all__ = ["explained", "paga", "pseudotime", "sankey", "training", "umap"]
