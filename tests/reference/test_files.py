"""The folder that a reference is kept in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.reference.cells import Labels, Reference, Values
from concerto_tf.reference.conformity import calibrated
from concerto_tf.reference.files import load_reference, save_reference
from concerto_tf.reference.transfer import transfer


def make_reference(n: int = 300, **arguments: str) -> Reference:
    z = np.random.default_rng(0).normal(size=(n, 8)) + 3 * np.eye(8)[np.arange(n) % 3]
    labels = {"type": Labels((np.arange(n) % 3).astype(np.int32), ("B", "NK", "T"))}
    values = {
        "protein": Values(np.arange(2 * n, dtype="f4").reshape(n, 2), ("CD3", "CD4"), "as given"),
        "atac": Values(sp.random(n, 9, 0.2, "csr", "f4", 0), tuple("abcdefghi"), "as given"),
    }
    return Reference(z, labels, values, **arguments)


def test_a_saved_reference_comes_back_whole(tmp_path: Path) -> None:
    reference = make_reference(model="m", cells="c")
    calibrated(reference, "type")
    save_reference(reference, tmp_path / "reference")
    save_reference(reference, tmp_path / "reference")  # replaces the one that is there
    again = load_reference(tmp_path / "reference")
    z = np.random.default_rng(4).normal(size=(20, 8))
    for name, values in transfer(reference, z, "type", 5).items():
        np.testing.assert_array_equal(transfer(again, z, "type", 5)[name], values)
    assert (again.model, again.cells, again.n_cells) == ("m", "c", 300)
    for name, held in reference.values.items():
        assert again.values[name].features == held.features
        assert sp.issparse(again.values[name].matrix) == sp.issparse(held.matrix)
        assert abs(again.values[name].matrix - held.matrix).max() == 0
    assert not [path for path in tmp_path.iterdir() if path.name != "reference"]


def test_many_cells_stay_on_disk_with_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, novelty and shares are as by exact neighbours, and nothing is built again."""
    rng = np.random.default_rng(1)
    names = tuple("abcdefgh")
    codes = rng.choice(8, 5000, p=[0.3, 0.25, 0.2, 0.1, 0.1, 0.04, 0.005, 0.005]).astype(np.int32)
    group = rng.integers(0, 8, 900)
    of_groups = 3 * rng.normal(size=(8, 16))
    z = of_groups[codes] + rng.normal(size=(5000, 16))
    query = of_groups[group] + rng.normal(size=(900, 16))
    reference = Reference(z, {"type": Labels(codes, names)})
    calibrated(reference, "type")
    want = transfer(reference, query, "type", 5)
    for module in ("index", "files"):
        monkeypatch.setattr(f"concerto_tf.reference.{module}.EXACT_CELLS", 1000)
    save_reference(reference, folder := tmp_path / "reference")
    again = load_reference(folder)
    assert isinstance(again.embedded.unit, np.memmap)
    assert (again.index.built == np.load(folder / "index.npy")).all()
    found = transfer(again, query, "type", 5)
    exact = Reference(z).neighbours(query, 15)[0]
    assert (again.neighbours(query, 15)[0] != exact).any()  # or it was not approximate
    assert (found["code"] == want["code"]).mean() >= 0.99
    assert np.abs(found["novelty"] - want["novelty"]).mean() < 0.01
    assert ((found["novelty"] < 0.1) == (want["novelty"] < 0.1)).mean() >= 0.99
    assert np.abs(found["shares"] - want["shares"]).max(axis=1).mean() < 0.01
    _flip(folder / "index.npy")
    with pytest.raises(InputError, match=r"index\.npy: is missing, damaged"):
        load_reference(folder)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [_cut, _flip, Path.unlink], ids=["cut", "changed", "removed"])
@pytest.mark.parametrize(
    "file", ["embeddings.npy", "labels-0.npy", "values-1-indptr.npy", "reference.json"]
)
def test_damage_is_found(tmp_path: Path, file: str, harm: object) -> None:
    save_reference(make_reference(), tmp_path / "reference")
    harm(tmp_path / "reference" / file)
    with pytest.raises(InputError, match="reference"):
        load_reference(tmp_path / "reference")


def test_a_newer_or_altered_description_is_refused(tmp_path: Path) -> None:
    save_reference(make_reference(), tmp_path / "reference")
    path = tmp_path / "reference" / "reference.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "saved_format": 99}))
    with pytest.raises(InputError, match="newer"):
        load_reference(tmp_path / "reference")
    path.write_text(json.dumps({**whole, "model": "another"}))
    with pytest.raises(InputError, match="changed or damaged"):
        load_reference(tmp_path / "reference")
