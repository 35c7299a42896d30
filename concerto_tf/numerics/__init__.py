"""Numerics of initialization, alignment and explanation: NumPy in, NumPy out, no TensorFlow."""
