"""What a reference states of queries, beside what is then seen of such queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from concerto_tf.expected import expected
from concerto_tf.novelty import UNKNOWN
from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.files import load_reference, save_reference
from concerto_tf.reference.levels import label_levels
from concerto_tf.reference.stated import stated

NAMES = ("B", "CD4 T", "CD8 T", "DC", "Mono", "NK")
#: Shares of the types; two lie close to each other.
SHARES = np.array([0.2, 0.3, 0.15, 0.03, 0.22, 0.1])
ALPHA = 0.1


def make_cells(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = 2.5 * np.eye(12)[: len(NAMES)]
    mean[2] = mean[1] + 1.0 * np.eye(12)[7]
    mean[5] = mean[2] + 1.6 * np.eye(12)[8]
    kind = rng.choice(len(NAMES), n, p=SHARES).astype(np.int32)
    return mean[kind] + rng.normal(0, 0.4, (n, 12)), kind


def make_reference(n: int, without: int = -1, seed: int = 0) -> Reference:
    z, kind = make_cells(n, seed)
    kept = kind != without
    there, codes = np.unique(kind[kept], return_inverse=True)
    labels = Labels(codes.astype(np.int32), tuple(NAMES[i] for i in there))
    return Reference(z[kept], {"type": labels})


def seen(reference: Reference, z: np.ndarray, alpha: float) -> np.ndarray:
    found, _ = label_levels(reference, z, ["type"], 5, alpha)
    return (found["type"]["label"] == UNKNOWN).to_numpy()


@pytest.mark.parametrize("alpha", [0.05, ALPHA])
def test_stated_rates_are_those_of_new_queries(alpha: float) -> None:
    """Within 5 points, and what chance moves shares of so few cells by."""
    rates = expected(stated(make_reference(3000), "type"), alpha)
    query, kind = make_cells(1500, seed=1)
    lost = seen(make_reference(3000), query, alpha).mean()
    assert abs(rates["known_lost"] - lost) < 0.05, (rates, lost)
    assert set(rates["by_type"]) == set(rates["lost_by_type"]) == set(NAMES)
    for code, name in enumerate(NAMES):
        of_type = seen(make_reference(3000), query, alpha)[kind == code]
        error = np.sqrt(0.25 / len(of_type) + 0.25 / (1500 * SHARES[code]))
        assert abs(rates["lost_by_type"][name] - of_type.mean()) < 0.05 + error, (name, rates)
    caught = {}
    for code, name in enumerate(NAMES):
        own = kind == code
        caught[name] = seen(make_reference(3000, without=code), query, alpha)[own].mean()
        error = np.sqrt(0.25 / own.sum() + 0.25 / (1500 * SHARES[code]))
        assert abs(rates["by_type"][name] - caught[name]) < 0.05 + 2 * error, (name, rates, caught)
    assert abs(rates["new_caught"] - np.mean(list(caught.values()))) < 0.05
    assert min(caught.values()) < 0.6 < 0.95 < max(caught.values())  # there is something to tell


def test_rates_are_kept_with_the_reference(tmp_path: Path) -> None:
    reference = make_reference(400)
    told = stated(reference, "type")
    save_reference(reference, tmp_path / "reference")
    again = load_reference(tmp_path / "reference")
    assert again.stated == {"type": told} and stated(again, "type") is again.stated["type"]
    assert "DC" not in told["new"]  # of which there are too few


def test_a_reference_of_two_types_or_one_cell_says_what_it_can() -> None:
    z, kind = make_cells(300, 0)
    two = np.isin(kind, [0, 4])
    reference = Reference(z[two], {"type": Labels((kind[two] == 4).astype(np.int32), ("B", "M"))})
    assert expected(stated(reference, "type"), ALPHA)["by_type"] == {}
    one = Reference(z[:1], {"type": Labels(np.zeros(1, np.int32), ("B",))})
    assert stated(one, "type") == {}
