"""Clustering, ablation, batches, dropout, simulations and robustness on cells that are quick."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.metrics import kbet
from concerto_tf.models import METHODS
from protocols import embeddings
from protocols.ablation import AUGMENTATIONS, ablation
from protocols.baselines import cells_of, log_normalized, pca
from protocols.batch_scores import batch_scores
from protocols.batches import batches
from protocols.clustering import clustering
from protocols.clustering_scores import clustering_scores
from protocols.dropout import dropout, mask_entries
from protocols.printed import printed
from protocols.robustness import robustness
from protocols.simulations import simulations, splat

PROTOCOLS = (
    "ablation",
    "annotated_ladders",
    "annotation",
    "batches",
    "clustering",
    "dropout",
    "imputation",
    "integration",
    "mapping",
    "modalities",
    "overcorrection",
    "pseudotime",
    "rejection",
    "robustness",
    "signatures",
    "simulations",
)
PCA = {"methods": ("pca",), "seeds": (0,)}


@pytest.fixture(scope="module")
def cells(make_cells: Callable[..., AnnData]) -> AnnData:
    return make_cells({(kind, donor): 20 for kind in "uv" for donor in "ab"})


def left(out: Path, result: dict[str, Any]) -> pd.DataFrame:
    """The table of a protocol, having made sure that the rest is there too."""
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "figure.png").read_bytes()[1:4] == b"PNG"
    return pd.read_csv(out / "table.tsv", sep="\t")


def components(cells: AnnData, seed: int = 0) -> np.ndarray:
    return pca(log_normalized(AnnData(sp.csr_matrix(cells.X), cells.obs, cells.var)), seed)


def test_clustering_scores_what_has_a_label(cells: AnnData, tmp_path: Path) -> None:
    part = cells.copy()
    part.obs.loc[part.obs_names[:9], "kind"] = np.nan
    part.write_h5ad(tmp_path / "few.h5ad")
    out = tmp_path / "out"
    result = clustering(
        [tmp_path / "few.h5ad", cells], out, label_key="kind", methods=("pca",), seeds=(0, 1)
    )
    table = left(out, result)
    assert list(table["data"]) == ["few", "few", "data2", "data2"]
    known = part.obs["kind"].notna().to_numpy()
    want = clustering_scores(components(part)[known], part.obs["kind"][known])
    for name, value in want.items():
        assert table[name][0] == pytest.approx(value, abs=1e-5)
    assert result["data"]["few"]["pca"]["ari_leiden1"]["mean"] == pytest.approx(
        table["ari_leiden1"][:2].mean(), abs=1e-5
    )
    means = [result["data"][name]["pca"]["nmi_leiden1"]["mean"] for name in ("few", "data2")]
    assert result["mean"]["pca"]["nmi_leiden1"]["mean"] == pytest.approx(np.mean(means))
    assert result["printed"] == {}


def test_printed_values_stand_beside_the_same_data_alone() -> None:
    assert printed(2126, 10)["scores"]["clear"] == {"ari_kmeans": 0.5134, "nmi_max_kmeans": 0.7014}
    assert "muraro" in printed(2126, 10)["source"]
    assert printed(2126, 9) == {} == printed(2125, 10)
    for size in ((4186, 10), (2746, 16), (2100, 16)):
        assert "scores" not in printed(*size) and "prints no number" in printed(*size)["notes"][0]


def test_printed_means_are_those_of_the_paper() -> None:
    """The last row of CICL's table 3, which is the mean of the others."""
    from protocols.printed import _CICL

    found = np.mean([values[2:] for values in _CICL.values()], axis=0)
    np.testing.assert_allclose(found, [0.7757, 0.8057, 0.5835, 0.6940], atol=6e-5)


def test_batches_are_scored_over_cells_with_a_type(cells: AnnData, tmp_path: Path) -> None:
    result = batches([cells], tmp_path / "out", label_key="kind", source_key="donor", **PCA)
    table = left(tmp_path / "out", result)
    z = components(cells)
    want = batch_scores(z, cells.obs["kind"], cells.obs["donor"])
    want["kbet"] = kbet(z, cells.obs["donor"])
    for name, value in want.items():
        assert table[name][0] == pytest.approx(value, abs=1e-4), name
    with pytest.raises(InputError, match="all cells with a type are of one batch"):
        only_a = cells[cells.obs["donor"] == "a"].copy()
        batches([only_a], tmp_path / "a", label_key="kind", source_key="donor", **PCA)


def test_exactly_a_share_of_the_entries_is_masked_and_shares_are_nested() -> None:
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(rng.poisson(1.0, (400, 50)).astype(np.float32))
    before = x.copy()
    some, more = mask_entries(x, 0.3, 5), mask_entries(x, 0.6, 5)
    assert some.nnz == x.nnz - round(0.3 * x.nnz) and more.nnz == x.nnz - round(0.6 * x.nnz)
    kept = some != 0
    assert ((some - x.multiply(kept)) != 0).nnz == 0  # what is left is as it was
    assert ((more != 0) > kept).nnz == 0
    assert (mask_entries(x, 0.3, 6) != some).nnz > 0
    assert ((x != before).nnz, mask_entries(x, 0.0).nnz, mask_entries(x, 1.0).nnz) == (0, x.nnz, 0)
    # Masked in a cell: hypergeometric. The mean of 400 standardized squares is 1 +- 0.07, so that
    # five of these (an error rate below 1e-6) tell it from the binomial's 1 / 0.7.
    n, drawn = np.diff(x.indptr), np.diff(x.indptr) - np.diff(some.indptr)
    share, total = round(0.3 * x.nnz) / x.nnz, x.nnz
    variance = n * share * (1 - share) * (total - n) / (total - 1)
    assert np.mean((drawn - n * share) ** 2 / variance) == pytest.approx(1, abs=0.35)


def test_dropout_masks_scores_and_counts(cells: AnnData, tmp_path: Path) -> None:
    result = dropout(
        [cells], tmp_path / "out", label_key="kind", source_key="donor", rates=(0.0, 0.95), **PCA
    )
    table = left(tmp_path / "out", result)
    assert list(table["rate"]) == [0.0, 0.95]
    dense = (cells.X != 0).mean()
    assert result["zeros"]["data1"]["0.95"] == pytest.approx(1 - 0.05 * dense, abs=1e-3)
    by_rate = result["data"]["data1"]
    whole, masked = (by_rate[rate]["pca"]["ari_kmeans"]["mean"] for rate in ("0", "0.95"))
    assert whole == 1 and masked < 0.9
    assert not (tmp_path / "out" / "models").exists()
    with pytest.raises(InputError, match=r"rate 1 is not a share"):
        dropout([cells], tmp_path / "b", label_key="kind", rates=(1,), **PCA)


def test_simulations_are_drawn_as_the_paper_draws_them() -> None:
    size = {"n_genes": 2500, "cells_per_cluster": 250, "unbalanced_cells": 3000, "de_scale": 0.2}
    even = splat(("balanced", 8, 1.5, 3), **size)
    assert (even.n_cells, even.seed, even.dropout_mid) == (2000, 3, 1.5)
    assert len(set(even.group_sizes)) == 1 and even.n_groups == 8
    uneven = splat(("unbalanced", 4, -1.0, 0), **size)
    sizes = np.array(uneven.group_sizes)
    assert uneven.n_cells == 3000 and sizes.max() / sizes.min() == pytest.approx(60)
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], sizes[1] / sizes[0])


@pytest.mark.slow
def test_simulations_score_every_design_and_dropout(tmp_path: Path) -> None:
    result = simulations(
        tmp_path / "out",
        clusters=(2,),
        dropout_mids=(0.0, 1.5),
        n_genes=60,
        de_scale=0.8,
        cells_per_cluster=20,
        unbalanced_cells=320,
        **PCA,
    )
    table = left(tmp_path / "out", result)
    assert list(table["design"]) == ["balanced"] * 2 + ["unbalanced"] * 2
    assert result["zeros"]["0"] < result["zeros"]["1.5"]


def test_unsuitable_simulations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smallest of 4 unbalanced clusters; ask for"):
        simulations(tmp_path / "b", clusters=(4,), unbalanced_cells=50, **PCA)
    with pytest.raises(InputError, match="clusters: 1 is not a whole number from 2 on"):
        simulations(tmp_path / "b", clusters=(1,), **PCA)
    with pytest.raises(InputError, match="no design 'even'"):
        simulations(tmp_path / "b", designs=("even",), **PCA)


@pytest.mark.slow
def test_robustness_climbs_its_ladders(cells: AnnData, tmp_path: Path) -> None:
    result = robustness(
        tmp_path / "out",
        data=[cells],
        label_key="kind",
        n_cells=60,
        n_genes=50,
        de_scales=(0.2, 3.0),
        dropout_mids=(0.0,),
        hvgs=(2, 20, 4000),
        **PCA,
    )
    left(tmp_path / "out", result)
    ladders = result["ladders"]
    assert list(ladders["hvg, data1"]) == ["2", "20", "all"]
    ari = [ladders["de_scale"][level]["pca"]["ari_kmeans"]["mean"] for level in ("0.2", "3")]
    assert ari[0] + 0.2 < ari[1]
    hvg = [of["pca"]["ari_kmeans"]["mean"] for of in ladders["hvg, data1"].values()]
    assert hvg[0] < hvg[2] == 1


def test_unsuitable_ladders_are_refused(cells: AnnData, tmp_path: Path) -> None:
    for options, message in (
        ({"data": [cells]}, "label key"),
        ({"source_key": "donor"}, "belongs to data"),
        ({"de_scales": (), "dropout_mids": ()}, "no ladder is left"),
        ({"hvgs": ("all",)}, "hvgs: 'all' is not a whole number from 2 on"),
        ({"dropout_mids": ("x",)}, "dropout mids: 'x' is not a number"),
        ({"de_scales": (-0.1,)}, "de scales: -0.1 is not a number from 0 on"),
    ):
        with pytest.raises(InputError, match=message):
            robustness(tmp_path / "b", **options, **PCA)


def test_ablation_leaves_out_one_augmentation_at_a_time(
    cells: AnnData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    class Clear:
        presets = {"default": None, "paper": None}

    monkeypatch.setattr(embeddings, "METHODS", {"clear": Clear})
    monkeypatch.setattr(embeddings, "configuration", lambda *of: "")
    monkeypatch.setattr(embeddings, "train", lambda records, out, **given: asked.append(given))
    monkeypatch.setattr(  # ever worse embeddings
        embeddings,
        "embed_records",
        lambda model, records: (
            components(cells_of(records))
            + np.random.default_rng(0).normal(0, 4 * (len(asked) - 1), (records.n_cells, 1))
        ),
    )
    result = ablation(
        [cells],
        tmp_path / "out",
        label_key="kind",
        preset="paper",
        seeds=(0,),
        options={"components": 8},
    )
    left(tmp_path / "out", result)
    assert [given["options"] for given in asked] == [
        {"components": 8},
        *({"components": 8, name: 0.0} for name in AUGMENTATIONS),
    ]
    assert {given["preset"] for given in asked} == {"paper"}
    assert list(result["data"]["data1"]) == [
        "all",
        *(f"without {name}" for name in AUGMENTATIONS),
        "pca",
    ]
    worst = result["data"]["data1"]["without crossover_many"]["ari_kmeans"]["mean"]
    assert result["change"]["crossover_many"]["ari_kmeans"] == pytest.approx(worst - 1)
    with pytest.raises(InputError, match="no augmentation 'blur'"):
        ablation([cells], tmp_path / "b", label_key="kind", leave_out=("blur",))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("foo=1", "foo is no argument of training; choose among preset, ensemble, genes, modal"),
        ("seed=1", "seed is set by the protocol itself"),
        ("method=clear", "method is set by the protocol itself"),
        ("records=1", "records is no argument of training"),
        ("seeds=1", "--set seeds: is no argument of training but the protocol's own"),
        ("epochs=banana", "epochs is banana"),
        ("preset=best", "no preset 'best'"),
        ("options=3", "options is 3; give values by name"),
    ],
)
def test_wrong_settings_are_said_before_any_work(
    tool: Callable[..., int],
    setting: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = tool(
        "reproduce",
        "clustering",
        tmp_path / "none.h5ad",
        "-o",
        tmp_path / "out",
        "--label-key",
        "kind",
        "--seeds",
        0,
        "--set",
        setting,
    )
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_markers_come_from_a_file(
    tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    markers = tmp_path / "markers.tsv"
    markers.write_text("group\tgene\n")
    code = tool(
        "reproduce",
        "signatures",
        tmp_path / "none.h5ad",
        markers,
        "-o",
        tmp_path / "out",
        "--groupby",
        "kind",
    )
    assert code == 2 and f"{markers}: there is no marker in it" in capsys.readouterr().err


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_checks_its_training_first(name: str, tmp_path: Path) -> None:
    run = getattr(import_module(f"protocols.{name}"), name)
    arguments = inspect.signature(run).parameters.values()
    needed: dict[str, Any] = {
        a.name: {"x": "y"} if "Mapping[str, str]" in str(a.annotation) else ["x"]
        for a in arguments
        if a.default is a.empty and a.kind is not a.VAR_KEYWORD
    }
    needed["out"] = tmp_path / "out"
    if any(a.name == "methods" and "harmony" in a.default for a in arguments):
        needed["methods"] = ["concerto", "pca"]  # Harmony is not installed everywhere
    spread = any(a.kind is a.VAR_KEYWORD for a in arguments)
    for wrong in ({"foo": 1}, {"seed": 1}, {"epochs": "banana"}):
        given = wrong if spread else {"training": wrong}
        with pytest.raises(InputError, match=next(iter(wrong))):
            run(**needed, **given)
        if not spread:
            with pytest.raises(InputError, match=next(iter(wrong))):
                run(**needed, finetuning=wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(
    cells: AnnData, method: str, quick: dict[str, Any], tmp_path: Path
) -> None:
    training = {**quick, "epochs": 1}
    if method != "concerto":
        del training["options"]
    result = clustering(
        [cells],
        tmp_path / "out",
        label_key="kind",
        source_key="donor",
        methods=(method,),
        presets=("paper",),
        seeds=(0,),
        **training,
    )
    assert list(result["data"]["data1"]) == [method, f"{method} (paper)"]


@pytest.mark.slow
@pytest.mark.skipif("clear" not in METHODS, reason="no CLEAR here")
def test_clear_trains_without_any_of_its_augmentations(cells: AnnData, tmp_path: Path) -> None:
    result = ablation(
        [cells],
        tmp_path / "out",
        label_key="kind",
        preset="paper",
        seeds=(0,),
        genes="all",
        epochs=1,
        batch_size=32,
    )
    assert set(result["change"]) == set(AUGMENTATIONS)
