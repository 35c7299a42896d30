"""Simulated counts with known groups, batches and trajectories (the Splat model)."""

from __future__ import annotations

from concerto_tf.simulate.params import SplatParams
from concerto_tf.simulate.splat import Experiment, simulate_cells, stream

__all__ = ["Experiment", "SplatParams", "simulate_cells", "stream"]
