"""A model behind a port: the Open Inference Protocol over REST and gRPC."""

from concerto_tf.serve.server import serve

__all__ = ["serve"]
