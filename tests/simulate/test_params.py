"""Parameters are checked when they are given."""

from __future__ import annotations

import math

import pytest

from concerto_tf.errors import InputError
from concerto_tf.simulate import SplatParams


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_cells": 0}, "n_cells must be a whole number of at least 1, not 0"),
        ({"n_genes": 2.5}, "n_genes must be a whole number of at least 1, not 2.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"mean_rate": 0}, "mean_rate is 0: it must be > 0"),
        ({"lib_scale": -0.1}, "lib_scale is -0.1: it must be >= 0"),
        ({"lib_loc": math.inf}, "lib_loc is inf: it must be a finite number"),
        ({"de_prob": 1.5}, "de_prob is 1.5: it must be >= 0 and <= 1"),
        ({"de_prob": (0.1, 0.2, 0.3), "group_sizes": (1, 1)}, "3 values for 2 groups"),
        ({"batch_scale": (0.1, 0.2)}, "2 values for 1 batches"),
        ({"group_sizes": ()}, "group_sizes is empty"),
        ({"group_sizes": (1, 0)}, "group_sizes is 0: it must be > 0"),
        ({"dropout_mid": 0, "dropout_shape": 1}, "dropout_shape is 1: it must be <= 0"),
        ({"path_from": (0,)}, "set paths=True"),
        ({"path_from": (0,), "paths": True, "group_sizes": (1, 1)}, "1 values for 2 paths"),
        ({"path_from": (0, 2), "paths": True, "group_sizes": (1, 1)}, "path 2 begins at path 2"),
        ({"path_steps": 1}, "path_steps must be a whole number of at least 2, not 1"),
    ],
)
def test_unsuitable_parameters_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SplatParams(**changes)


def test_infinite_degrees_of_freedom_are_allowed() -> None:
    assert SplatParams(bcv_df=math.inf).bcv_df == math.inf


def test_droplet_gives_way_to_what_is_asked_for() -> None:
    params = SplatParams.droplet(n_genes=100, seed=3)
    assert (params.n_genes, params.seed, params.lib_loc) == (100, 3, 7.93)


def test_one_value_serves_all_groups() -> None:
    params = SplatParams(group_sizes=(1, 1, 2), batch_sizes=(1, 1), de_scale=(0.1, 0.2, 0.3))
    assert params.each("de_prob") == (0.1, 0.1, 0.1)
    assert params.each("de_scale") == (0.1, 0.2, 0.3)
    assert params.each("batch_loc") == (0.1, 0.1)
