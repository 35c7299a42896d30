"""The main job, from counts to figures."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from concerto_tf.errors import InputError
from concerto_tf.simulate import SplatParams, simulate_cells
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.run import run

OPTIONS: dict[str, Any] = {
    "source_key": "donor",
    "label_key": "type",
    "genes": "all",
    "epochs": 3,
    "batch_size": 30,
    "options": {
        "units": 8,
        "hidden_units": 8,
        "attention_units": 4,
        "head_units": 8,
        "components": 4,
    },
}


def make_cells(n: int = 90) -> AnnData:
    rng = np.random.default_rng(0)
    kind, donor = rng.integers(0, 3, n), rng.integers(0, 2, n)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (3, 60))[kind])
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"type": np.array(["B", "NK", "T"])[kind], "donor": np.array(["x", "y"])[donor]},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(60)])
    return AnnData(counts.astype("f4"), obs=obs, var=var)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, opened_files) -> tuple:
    folder = tmp_path_factory.mktemp("run")
    make_cells(300).write_h5ad(folder / "cells.h5ad")
    seen: list[tuple[str, int, int]] = []
    with opened_files() as opened:
        found = run(
            folder / "cells.h5ad",
            folder / "out",
            progress=lambda *args: seen.append(args),
            **OPTIONS,
        )
    return folder / "cells.h5ad", folder / "out", found, seen, opened


def test_input_and_vocabulary_are_opened_no_more_than_needed(done: tuple) -> None:
    cells, out, *_, opened = done
    # Once to look at and to convert, and once to write the result beside it.
    by = [names for path, _, names in opened if path == str(cells) and "_open_hdf5" in names]
    assert len(by) <= 2
    vocabulary = str(out / "records" / "vocabulary.tsv")
    assert sum(path == vocabulary for path, *_ in opened) == 1


def test_everything_is_there(done: tuple) -> None:
    _, out, found, seen, _ = done
    left = {str(p.relative_to(out)) for p in out.rglob("*.*") if "tensorboard" not in p.parts}
    assert {
        "run.json",
        "metrics.json",
        "markers.tsv",
        "report.html",
        "result.h5ad",
        "records/manifest.json",
        "model/model.keras",
        "model/training.csv",
        "figures/umap_label.png",
        "figures/umap_source.png",
    } <= left
    assert json.loads((out / "metrics.json").read_text()) == found
    assert {stage for stage, *_ in seen} >= {"convert", "train", "embed"}
    assert all(total >= count > 0 for _, count, total in seen)


def test_metrics_are_numbers_about_these_cells(done: tuple) -> None:
    found = done[2]
    assert (found["cells"], found["genes"]) == (300, 60)
    assert found["clusters"] >= 2 and found["cells_per_second_train"] > 0
    assert found["peak_rss_bytes"] > 1e8
    stages = "convert train embed cluster umap markers scores result".split()
    assert all(found[f"seconds_{stage}"] > 0 for stage in stages)
    scores = {k: v for k, v in found.items() if "ari" in k or "nmi" in k or "f1" in k}
    assert len(scores) >= 3 and all(-1 <= v <= 1 for v in scores.values())


def test_report_tells_of_the_run(done: tuple) -> None:
    cells, out, found, *_ = done
    text = (out / "report.html").read_text("utf-8")
    assert hashlib.sha256(cells.read_bytes()).hexdigest() in text  # of the input
    for words in ("<h1>cells.h5ad</h1>", "resolution = 0.6", "Mixing of sources", "donor", "G1"):
        assert words in text, words
    assert "Agreement of the clusters with the labels" in text
    assert f"{found['ari_clusters']:.3f}" in text and "3 passes over the cells" in text
    assert str(out.parent) not in text
    packed = re.search(r'id="data">([^<]*)<', text)
    assert packed is not None
    figures = json.loads(gzip.decompress(base64.b64decode(packed[1])))["figures"]
    drawn = figures[0]
    assert sorted(drawn["names"]) == sorted(f"cell{i}" for i in range(300))
    assert [color["name"] for color in drawn["colors"]] == [
        "cluster",
        "type",
        "donor",
        "cluster support",
    ]
    assert [of["title"] for of in figures[1:]] == [
        "Loss",
        "Alignment",
        "Uniformity",
        "Effective rank",
    ]


def test_neighbour_graph_is_kept_for_scanpy(done: tuple) -> None:
    result = anndata.io.read_h5ad(done[1] / "result.h5ad")
    graph = result.uns["neighbors"]
    assert graph["params"]["use_rep"] == "X_concerto"
    near = result.obsp[graph["connectivities_key"]]
    assert near.shape == (300, 300) and near.nnz > 0
    sc.tl.leiden(result, flavor="igraph", n_iterations=2, directed=False)


def test_result_holds_the_input_and_what_was_found(done: tuple) -> None:
    path, out, found, *_ = done
    cells, result = anndata.io.read_h5ad(path), anndata.io.read_h5ad(out / "result.h5ad")
    np.testing.assert_array_equal(result.X, cells.X)
    assert list(result.obs_names) == list(cells.obs_names)
    assert result.obsm["X_umap"].shape == (300, 2) and np.isfinite(result.obsm["X_umap"]).all()
    clusters = result.obs["concerto_cluster"]
    assert clusters.nunique() == found["clusters"]
    assert set(result.uns["rank_genes_groups"]["names"]["0"]) == set(cells.var_names)
    table = pd.read_csv(out / "markers.tsv", sep="\t", dtype={"cluster": str})
    assert list(table["cluster"].unique()) == list(clusters.cat.categories)
    assert found["ari_clusters"] == adjusted_rand_score(cells.obs["type"], clusters)
    assert found["nmi_clusters"] == normalized_mutual_info_score(cells.obs["type"], clusters)
    np.testing.assert_allclose(
        result.obsm["X_concerto"], embed(out / "model", path, source_key="donor"), atol=1e-5
    )


def test_finished_run_is_not_done_again_and_another_one_refused(done: tuple) -> None:
    path, out, found, *_ = done
    before = (out / "result.h5ad").stat().st_mtime_ns
    assert run(path, out, **OPTIONS) == found
    assert (out / "result.h5ad").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds a run differing in label_key and seed"):
        run(path, out, **{**OPTIONS, "label_key": None}, seed=1)


def test_what_was_lost_is_made_again(done: tuple) -> None:
    path, out, found, *_ = done
    before = anndata.io.read_h5ad(out / "result.h5ad")
    (out / "metrics.json").unlink()
    (out / "result.h5ad").unlink()
    again = run(path, out, **OPTIONS)
    after = anndata.io.read_h5ad(out / "result.h5ad")
    for key in ("X_concerto", "X_umap"):
        np.testing.assert_array_equal(after.obsm[key], before.obsm[key])
    assert {k: v for k, v in again.items() if "second" not in k and "rss" not in k} == {
        k: v for k, v in found.items() if "second" not in k and "rss" not in k
    }


def test_bad_input_shows_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="type.*donor|donor.*type"):
        run(make_cells(), tmp_path / "out", label_key="celltype")
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "none.h5ad", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="is not empty and holds no run"):
        run(make_cells(), tmp_path / "mine")
    assert not (tmp_path / "out").exists()


def test_files_measured_for_different_genes_are_not_set_apart(tmp_path: Path) -> None:
    """Halves of one experiment, of which one lacks every second gene."""
    params = SplatParams(n_cells=600, n_genes=600, group_sizes=(1, 1, 1), lib_loc=8, de_prob=0.3)
    cells = simulate_cells(params)
    cells.var_names = [f"AB{i}C" for i in range(600)]
    halves = {"one": cells[:300], "two": cells[300:, ::2]}
    for name, part in halves.items():
        part.copy().write_h5ad(tmp_path / f"{name}.h5ad")
    found = run(
        [tmp_path / "one.h5ad", tmp_path / "two.h5ad"],
        tmp_path / "out",
        label_key="group",
        epochs=2,
    )
    # Mixed at random, neighbours are 1.9 to 2 sources in effect (iLISI .9 to 1); apart 0.
    assert found["ilisi"] > 0.8
    assert found["ari_kmeans"] > 0.9
