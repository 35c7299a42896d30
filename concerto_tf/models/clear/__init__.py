"""CLEAR: simulated noise, a momentum encoder and a queue."""

from concerto_tf.models.clear.network import CLEAR

__all__ = ["CLEAR"]
