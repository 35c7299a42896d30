from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.units import detect_units, scales_with_depth


def counts(n_cells: int = 200, n_genes: int = 100) -> np.ndarray:
    return np.random.default_rng(0).poisson(1.0, (n_cells, n_genes)).astype(np.float64)


def lognorm(target: float = 1e4) -> np.ndarray:
    raw = counts()
    return np.log1p(raw / raw.sum(axis=1, keepdims=True) * target)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float64"])
def test_whole_numbers_are_counts(dtype: str) -> None:
    assert detect_units([sp.csr_matrix(counts().astype(dtype))]) == "counts"


@pytest.mark.parametrize("target", [1.0, 1e4, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_of_constant_totals(target: float, dtype: str) -> None:
    assert detect_units([sp.csr_matrix(lognorm(target).astype(dtype))]) == "lognorm"


def test_empty_cells_among_them_do_not_matter() -> None:
    values = lognorm()
    values[::3] = 0
    assert detect_units([sp.csr_matrix(values)]) == "lognorm"


@pytest.mark.parametrize(
    "values",
    [
        lognorm()[:, :60],
        np.log1p(counts()),
        np.log2(1 + counts() / counts().sum(axis=1, keepdims=True) * 1e4),
        counts() * 0.37,
        lognorm()[:1],
    ],
    ids=["selected genes", "log without totals", "log2", "small fractions", "one cell"],
)
def test_anything_else_is_values(values: np.ndarray) -> None:
    assert detect_units([sp.csr_matrix(values)]) == "values"


@pytest.mark.parametrize("target", [1e4, 1e6, None], ids=["10,000", "TPM", "corrected"])
def test_fractions_beyond_any_logarithm_are_linear(target: float | None) -> None:
    raw = counts()
    values = raw / raw.sum(axis=1, keepdims=True) * target if target else raw * 15.3
    assert detect_units([sp.csr_matrix(values)]) == "linear"
    # In a single cell too, and whatever cells without values there are.
    assert detect_units([sp.csr_matrix(values[:1]), sp.csr_matrix((3, 100))]) == "linear"


def test_linear_and_logarithmic_cells_in_one_input_are_neither() -> None:
    blocks = [sp.csr_matrix(counts() * 15.3), sp.csr_matrix(lognorm())]
    assert detect_units(blocks) == detect_units(blocks[::-1]) == "values"
    mixed = lognorm()
    mixed[::2] = counts()[::2] * 15.3
    assert detect_units([sp.csr_matrix(mixed)]) == "values"


def test_an_odd_value_makes_no_linear_cells_of_logarithmic_ones() -> None:
    values = np.log1p(counts())  # not of one total, so that only the values tell
    assert detect_units([sp.csr_matrix(values)]) == "values"
    values[3, 7] = 31.5
    assert detect_units([sp.csr_matrix(values)]) == "values"
    values = lognorm()
    values[:20, 7] = 31.5
    assert detect_units([sp.csr_matrix(values)]) == "values"


def test_shallow_cells_are_linear_where_some_values_say_so() -> None:
    shallow, deep = counts() * 0.93, counts() * 0.93
    deep[::10, 0] = 27.9
    assert detect_units([sp.csr_matrix(shallow), sp.csr_matrix(deep)]) == "linear"
    assert detect_units([sp.csr_matrix(deep), sp.csr_matrix(shallow)]) == "linear"


@pytest.mark.parametrize(
    ("units", "scaled"), [("counts", True), ("linear", True), ("lognorm", False), ("values", False)]
)
def test_what_is_scaled_with_depth(units: str, scaled: bool) -> None:
    assert scales_with_depth(units) is scaled


def test_mixtures_are_refused_in_words() -> None:
    one = counts()[:1], lognorm()[:1]
    for blocks in ([counts(), lognorm()], [lognorm(), one[0]], [counts(), one[1]]):
        with pytest.raises(InputError, match=r"cells that were looked at hold counts, and \d+ log"):
            detect_units([sp.csr_matrix(block) for block in blocks])
    mixed = counts()
    mixed[::3] = lognorm()[::3]
    with pytest.raises(InputError, match="133 of 200 cells .* and 67 log-normalized"):
        detect_units([sp.csr_matrix(mixed)])
    with pytest.raises(InputError, match="log-normalized to 10,000 per cell, others to 1,000,000"):
        detect_units([sp.csr_matrix(lognorm()), sp.csr_matrix(lognorm(1e6)[:50])])


def test_one_odd_value_changes_nothing_wherever_it_is() -> None:
    for cell in (0, 99, 199):
        values = counts()
        values[cell, 3] = 0.5
        assert detect_units([sp.csr_matrix(values)]) == "counts"


def test_proportions_are_linear() -> None:
    raw = counts()
    for total in (1.0, 10.0):
        shares = raw / raw.sum(axis=1, keepdims=True) * total
        assert detect_units([sp.csr_matrix(shares)]) == "linear"
        assert detect_units([sp.csr_matrix(shares.astype("float32"))]) == "linear"


def test_blocks_of_one_kind() -> None:
    assert detect_units([sp.csr_matrix(lognorm()), sp.csr_matrix(lognorm())]) == "lognorm"


def test_no_values_are_counts() -> None:
    assert detect_units([sp.csr_matrix((3, 4))]) == "counts"
    assert detect_units([]) == "counts"
