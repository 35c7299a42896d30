"""How the model of human blood is built: one set of names, mixtures in place of cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.errors import InputError
from protocols.blood_cells import FILES, LABELS, OR, TYPES, bring, group_of, joined, sources
from protocols.blood_model import mixtures, resolved
from protocols.blood_scores import peers
from protocols.delivered_peers import is_there


def test_every_label_means_types_of_one_group() -> None:
    for types in LABELS["types"].str.split(OR):
        assert set(types) <= set(TYPES.index) and TYPES.loc[types, "group"].nunique() == 1
    assert not LABELS.duplicated(["collection", "label"]).any()
    assert set(TYPES.index) == {name for types in LABELS["types"] for name in types.split(OR)}
    assert TYPES[["id", "group_id"]].stack().str.fullmatch(r"CL:\d{7}").all()
    assert group_of(pd.Series(["naive B|memory B", "NK"])).tolist() == ["B", "NK"]


def test_every_file_has_an_address_and_a_licence() -> None:
    assert FILES["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert FILES["commit"].str.fullmatch("[0-9a-f]{40}").all()
    assert FILES[["repository", "path", "licence"]].notna().all(axis=None)


def test_a_file_that_is_another_one_is_an_error(tmp_path: Path) -> None:
    for name in FILES.index:
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(InputError, match="checksum"):
        bring(tmp_path / "kept", tmp_path)
    assert not list((tmp_path / "kept").iterdir())
    with pytest.raises(InputError, match="--from"):
        bring(tmp_path / "kept", tmp_path / "nowhere")


def test_studies_are_joined_over_genes_that_all_have_and_named_by_both_identifiers() -> None:
    def study(name: str, symbols: list[str], ids: list[str] | None = None) -> AnnData:
        var = pd.DataFrame({"gene_ids": ids} if ids else {}, index=symbols)
        obs = pd.DataFrame({"study": name}, index=["a", "b"])
        return AnnData(sp.csr_matrix(np.ones((2, len(symbols)), "float32")), obs=obs, var=var)

    cells = joined([study("x", ["B", "A"]), study("y", ["A", "C", "B"], ["ENSA", "ENSC", "ENSB"])])
    assert cells.var_names.tolist() == ["ENSB", "ENSA"]
    assert cells.var["gene_symbols"].tolist() == ["B", "A"]
    assert cells.obs_names.is_unique and cells.obs["study"].tolist() == ["x", "x", "y", "y"]


def test_sets_of_sources_hold_lineages_and_few_cells_of_a_study() -> None:
    types = ["CD4 naive T|regulatory T", "CD4 naive T|CD8 naive T", "HSPC", "CD8 memory T|MAIT"]

    def study(name: str) -> AnnData:
        obs = pd.DataFrame({"study": name, "types": types * 300, "source": ["x", "y"] * 600})
        return AnnData(
            sp.csr_matrix(np.ones((1200, 2), "float32")), obs.set_index(obs.index.astype(str))
        )

    names = ("Zheng", "10x 3k", "BREM-SC", "ICA", "Ding", "10x chemistries")
    made = sources({name: study(name) for name in names})
    assert list(made) == ["blood_studies", "blood_chemistries"]
    for cells, held in zip(made.values(), (set(names[:5]), {"x", "y"}), strict=True):
        assert set(cells.obs["cell_type"]) == {"CD4 T", "CD8 T"}
        assert set(cells.obs["batch"]) == held
        assert cells.obs["batch"].value_counts().max() <= 500


def test_a_label_that_leaves_types_open_takes_the_likeliest_of_these_alone() -> None:
    place = np.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1], [0.05], [8.9]])
    types = np.array(["T", "T", "B", "B", "NK", "NK", "B|NK", "B|T"])
    assert resolved(place, types)[-2:].tolist() == ["B", "B"]


def test_mixtures_are_no_cell_and_of_one_part_each() -> None:
    rng = np.random.default_rng(0)
    part = np.repeat(["a", "b"], 20)
    mean = np.where((part == "a")[:, None], [20, 20, 0, 0], [0, 0, 20, 20])
    counts = sp.csr_matrix(rng.poisson(mean))
    mixed, first = mixtures(counts, counts.toarray(), part, 8)
    assert mixed.shape == (16, 4) and sorted(part[first]) == ["a"] * 8 + ["b"] * 8
    dense = mixed.toarray()
    assert (dense[part[first] == "a"][:, 2:] == 0).all()
    known = {tuple(row) for row in counts.toarray()}
    assert sum(tuple(row) in known for row in dense) < 3
    depth = counts.sum(axis=1).A1[first]
    assert np.abs(dense.sum(axis=1) / depth - 1).mean() < 0.2


@pytest.mark.filterwarnings("ignore:lbfgs failed")
def test_peers_tell_types_and_groups_that_have_genes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    types = np.repeat(["CD8 memory T", "NK", "naive B", "CD14 monocyte"], 40)
    own = np.repeat(np.eye(4), 40, axis=0)[:, np.arange(80) % 4]

    def study(name: str) -> AnnData:
        obs = pd.DataFrame(
            {"study": name, "types": types}, index=[f"{name}{i}" for i in range(160)]
        )
        return AnnData(sp.csr_matrix(rng.poisson(1 + 6 * own).astype("float32")), obs=obs)

    asked = study("y")
    told = {name: levels for name, *levels in peers(joined([study("x")]), asked, 0)}
    assert list(told)[:2] == ["logistic regression", "kNN on PCA"]
    assert ("scANVI" in told) == is_there("scanvi")
    for fine, coarse in told.values():
        assert np.mean(fine == types) > 0.95
        assert np.mean(coarse == group_of(pd.Series(types)).to_numpy()) > 0.95
