"""The commands about labels, modalities and genes: what they leave, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory, make_cells: Callable) -> Path:
    """150 cells with RNA, protein and two levels of labels."""
    adata = make_cells(150)
    rng = np.random.default_rng(3)
    group = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obsm["protein"] = pd.DataFrame(
        rng.poisson(5 + 40 * np.eye(3)[group]), adata.obs_names, ["CD3", "CD19", "CD56"]
    )
    adata.obs["coarse"] = np.where(group == 0, "one", "other")
    path = tmp_path_factory.mktemp("paired") / "paired.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, concerto: Callable, paired: Path) -> Path:
    """A run on RNA and protein. Not to be changed but for the reference kept with its model."""
    out = tmp_path_factory.mktemp("both") / "run"
    answer = concerto(
        "run", paired, "-o", out, "--modality", "protein=obsm:protein", "--epochs", 3, "--quiet"
    )
    assert answer.code == 0, answer
    return out


@pytest.fixture(scope="module")
def typed(
    tmp_path_factory: pytest.TempPathFactory, concerto: Callable, paired: Path, both: Path
) -> Path:
    """A model of `both` that was fine-tuned on cell types."""
    folder = tmp_path_factory.mktemp("typed")
    for command in (
        (
            "convert",
            paired,
            "-o",
            folder / "records",
            "--modality",
            "protein=obsm:protein",
            "--label-key",
            "cell_type",
            "--like",
            both / "model",
        ),
        (
            "finetune",
            both / "model",
            folder / "records",
            "--label-key",
            "cell_type",
            "-o",
            folder / "model",
        ),
    ):
        answer = concerto(*command, "--json")
        assert answer.code == 0, answer
    assert len(answer.last["classes"]) == 3
    return folder / "model"


def test_run_looks_at_all_modalities(both: Path, concerto: Callable) -> None:
    told = concerto("inspect", both / "model", "--json").last
    assert told["modalities"] == {"rna": 40, "protein": 3}
    assert (both / "result.h5ad").exists()


def test_finetune_and_annotate(
    typed: Path, paired: Path, concerto: Callable, tmp_path: Path
) -> None:
    told = concerto("inspect", typed, "--json").last
    assert told["labels"] == ["type0", "type1", "type2"] and told["label_key"] == "cell_type"
    answer = concerto("annotate", typed, paired, "-o", tmp_path / "out.h5ad", "--json")
    assert answer.code == 0, answer
    result, given = anndata.read_h5ad(tmp_path / "out.h5ad"), anndata.read_h5ad(paired)
    assert list(result.obs_names) == list(given.obs_names)
    label = result.obs["concerto_label"].astype(str)
    confidence = result.obs["concerto_confidence"]
    assert set(label) <= {"type0", "type1", "type2", "unknown"}
    assert confidence.between(0, 1).all() and result.obsm["X_concerto"].shape[0] == 150
    known = label != "unknown"
    assert (label[known] == given.obs["cell_type"].astype(str)[known]).mean() > 0.9
    assert answer.last["labels"] == label.value_counts().to_dict()
    assert answer.last["unknown"] == (~known).sum()
    assert answer.last["sets"]["coverage"] == 0.95
    none = concerto(
        "annotate",
        typed,
        paired,
        "-o",
        tmp_path / "a.h5ad",
        "--vote",
        "--alpha",
        1e-6,
        "--label-key",
        "cell_type",
        "--json",
    )
    assert none.last["agreement"]["accuracy"] > 0.9
    assert none.last["unknown"] == 0
    assert sum(none.last["votes"].values()) == sum(row["cells"] for row in none.last["vote"]) == 150


def test_map_keeps_the_reference_and_goes_without_it(
    both: Path, paired: Path, concerto: Callable, tmp_path: Path
) -> None:
    model, out = both / "model", tmp_path / "out.h5ad"
    first = concerto(
        "map",
        model,
        "--reference",
        paired,
        "--query",
        paired,
        "-o",
        out,
        "--levels",
        "coarse,cell_type",
        "--json",
    )
    assert first.code == 0, first
    assert concerto("inspect", model, "--json").last["reference"]["cells"] == 150
    result = anndata.read_h5ad(out)
    fine, coarse = (result.obs[f"concerto_label_{key}"] for key in ("cell_type", "coarse"))
    both_known = (fine != "unknown") & (coarse != "unknown")
    assert ((fine[both_known] == "type0") == (coarse[both_known] == "one")).all()
    assert (fine[coarse == "unknown"] == "unknown").all()
    query = ["map", model, "--query", paired, "-o", tmp_path / "again.h5ad"]
    again = concerto(*query, "--levels", "coarse,cell_type", "--vote", "coarse", "--json")
    assert again.last["labels"] == first.last["labels"]
    assert {row["group"] for row in again.last["vote"]} == {"one", "other"}
    concerto(*query, "--label-key", "nope", "--quiet").mendable("nope")


def test_impute_gives_the_modality_that_is_missing(
    both: Path, paired: Path, concerto: Callable, tmp_path: Path
) -> None:
    given = anndata.read_h5ad(paired)
    query = given[:50].copy()
    del query.obsm["protein"]
    query.write_h5ad(tmp_path / "query.h5ad")
    answer = concerto(
        "impute",
        both / "model",
        "--reference",
        paired,
        "--modality",
        "protein=obsm:protein",
        "--query",
        tmp_path / "query.h5ad",
        "-o",
        tmp_path / "out.h5ad",
        "--k",
        10,
        "--json",
    )
    assert answer.code == 0, answer
    assert answer.last["features"] == {"protein": 3}
    found = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["protein"]
    assert list(found.columns) == ["CD3", "CD19", "CD56"]
    want = given.obsm["protein"].iloc[:50]
    for name in found:
        assert np.corrcoef(found[name], np.log1p(want[name]))[0, 1] > 0.7


def test_explain_by_cell_and_by_group(
    both: Path, paired: Path, concerto: Callable, tmp_path: Path
) -> None:
    answer = concerto(
        "explain",
        both / "model",
        paired,
        "-o",
        tmp_path / "groups.tsv",
        "--groupby",
        "cell_type",
        "--figure",
        tmp_path / "map.png",
        "--json",
    )
    assert answer.code == 0, answer
    table = pd.read_csv(tmp_path / "groups.tsv", sep="\t")
    assert list(table.columns[:5]) == ["group", "gene", "modality", "weight", "rank"]
    assert set(table["modality"]) == {"rna", "protein"} and set(table["group"]) == {
        "type0",
        "type1",
        "type2",
    }
    assert (tmp_path / "map.png").stat().st_size > 0
    answer = concerto(
        "explain", both / "model", paired, "-o", tmp_path / "cells.tsv", "--top", 3, "--json"
    )
    assert 150 * 5 < answer.last["rows"] <= 150 * 6  # some cells lack a protein


def test_score(paired: Path, concerto: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("AB1C\nAB2C\nNOT\n")
    answer = concerto(
        "score", paired, "--set", tmp_path / "mine.txt", "-o", tmp_path / "out.h5ad", "--json"
    )
    assert answer.code == 0, answer
    assert answer.last["missing genes"] == {"mine": ["NOT"]}
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs["concerto_score_mine"].between(0, 2).all()
    concerto(
        "score", paired, "--set", "exhaustion", "-o", tmp_path / "no.h5ad", "--quiet"
    ).mendable("exhaustion")
    assert not (tmp_path / "no.h5ad").exists()


def test_served_model_gives_labels(
    typed: Path, both: Path, paired: Path, concerto: Callable, tmp_path: Path
) -> None:
    """Fine-tuned: its types; with a reference beside the model: the labels that it transfers."""
    given = anndata.read_h5ad(paired)
    genes = np.tile(given.var_names.to_numpy(str), (150, 1))
    inputs = {
        "genes": tf.constant(genes),
        "values": tf.constant(given.X.toarray()),
        "source": tf.constant(["paired"] * 150),  # as the commands call them
        "protein_genes": tf.constant(np.tile(["CD3", "CD19", "CD56"], (150, 1))),
        "protein_values": tf.constant(given.obsm["protein"].to_numpy(np.float32)),
    }
    concerto(
        "map",
        both / "model",
        "--reference",
        paired,
        "--query",
        paired,
        "-o",
        tmp_path / "mapped.h5ad",
        "--label-key",
        "cell_type",
    )
    concerto("annotate", typed, paired, "-o", tmp_path / "typed.h5ad")
    for model, told in ((typed, "typed.h5ad"), (both / "model", "mapped.h5ad")):
        answer = concerto("export", model, "-o", tmp_path / f"served-{told}", "--json")
        assert answer.code == 0, answer
        served = tf.saved_model.load(str(tmp_path / f"served-{told}"))
        got = served.signatures["by_modality"](**inputs)
        want = anndata.read_h5ad(tmp_path / told).obs
        key = "label" if "label" in got else "label_cell_type"
        confidence = got[key.replace("label", "confidence")].numpy()
        said = np.char.decode(got[key].numpy().astype(bytes))
        rejected = got[key.replace("label", "rejected")].numpy()
        assert (rejected == (said == "unknown")).all()
        # A served model judges each cell by itself, a command by the cells around it, too.
        labelled = ~rejected & (want["concerto_label"] != "unknown").to_numpy()
        assert labelled.mean() > 0.7
        assert (said == want["concerto_predicted"])[~rejected].all()
        both = confidence[labelled], want["concerto_confidence"][labelled]
        assert np.corrcoef(*both)[0, 1] > 0.8
        alone = served.signatures["serving_default"](genes=inputs["genes"], values=inputs["values"])
        assert alone["embedding"].shape == got["embedding"].shape
        assert np.abs(alone["embedding"] - got["embedding"]).max() > 0  # protein counts


@pytest.mark.parametrize(
    "words, expected",
    [
        (["finetune", "MODEL", "RECORDS", "-o", "OUT"], ["--label-key"]),
        (
            ["finetune", "MODEL", "RECORDS", "-o", "OUT", "--label-key", "nope"],
            ["nope", "cell_type"],
        ),
        (["annotate", "MODEL", "CELLS", "-o", "OUT"], ["finetune"]),
        (["annotate", "TYPED", "CELLS", "-o", "OUT", "--alpha", "2"], ["alpha", "2"]),
        (["annotate", "TYPED", "CELLS", "-o", "OUT", "--label-key", "nope"], ["nope", "cell_type"]),
        (["export", "TYPED", "-o", "OUT", "--alpha", "2"], ["alpha", "2"]),
        (
            [
                "map",
                "MODEL",
                "--reference",
                "CELLS",
                "--query",
                "CELLS",
                "-o",
                "OUT",
                "--label-key",
                "cell_type",
                "--k",
                "1000",
            ],
            ["1000", "150"],
        ),
        (
            "map MODEL --reference CELLS --query CELLS -o OUT --levels cell_type,batch".split(),
            ["batch"],
        ),
        (
            "impute MODEL --reference CELLS --query CELLS -o OUT --modality adt=obsm:nope".split(),
            ["nope"],
        ),
        (["explain", "MODEL", "CELLS", "-o", "OUT", "--groupby", "nope"], ["nope"]),
        (["explain", "MODEL", "CELLS", "-o", "OUT", "--modality", "adt=obsm:protein"], ["adt"]),
        (
            ["embed", "MODEL", "CELLS", "-o", "OUT", "--modality", "protein=obsm:no"],
            ["protein", "no"],
        ),
        (["train", "RECORDS", "-o", "OUT", "--modality", "adt"], ["adt", "protein"]),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_left(
    words: list[str],
    expected: list[str],
    both: Path,
    typed: Path,
    paired: Path,
    concerto: Callable,
    tmp_path: Path,
) -> None:
    places = {
        "MODEL": both / "model",
        "RECORDS": typed.parent / "records",
        "TYPED": typed,
        "CELLS": paired,
        "OUT": tmp_path / "out.h5ad",
    }
    concerto(*(places.get(word, word) for word in words), "--quiet").mendable(*expected)
    assert list(tmp_path.iterdir()) == []


def test_normalized_cells_for_a_model_of_counts(
    both: Path, typed: Path, paired: Path, concerto: Callable, tmp_path: Path
) -> None:
    given = anndata.read_h5ad(paired)
    counts = given.X.toarray()
    given.X = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype(np.float32)
    given.write_h5ad(tmp_path / "log.h5ad")
    reference = ["--reference", paired, "--label-key", "cell_type", "--query"]
    for command in (
        ["annotate", typed],
        ["map", both / "model", *reference],
        ["explain", both / "model"],
    ):
        answer = concerto(*command, tmp_path / "log.h5ad", "-o", tmp_path / "out", "--quiet")
        answer.mendable("log-normalized", "counts")
    assert [path.name for path in tmp_path.iterdir()] == ["log.h5ad"]


def test_summary_says_how_sure_the_rejection_is(typed: Path) -> None:
    told = json.loads((typed / "training.json").read_text())["calibration"]
    low, high = told["rejected_interval_95"]
    assert told["cells"] >= 19 and told["alpha"] == 0.05
    assert 0 <= low <= told["rejected"] <= high <= 1 and told["rejected"] <= 0.1
