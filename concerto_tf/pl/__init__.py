"""Figures, drawn with matplotlib; what is listed here is called as scanpy's ``pl`` is."""

from concerto_tf.pl.calls import paga, pseudotime, umap

__all__ = ["paga", "pseudotime", "umap"]
