"""Concerto: an attention teacher and a dense student."""

from concerto_tf.models.concerto.network import Concerto

__all__ = ["Concerto"]
