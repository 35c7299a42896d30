"""CICL: a transformer over cells that learns from clusters."""

from concerto_tf.models.cicl.network import CICL

__all__ = ["CICL"]
