"""What all protocols share: methods, cells, and scores that a stop does not lose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from protocols import embeddings
from protocols.data_sets import data_sets, only_known, prepare, prepare_all
from protocols.embeddings import Variant, check_seeds, variants
from protocols.scores import Scores, summary


@pytest.fixture
def cells(make_cells: Callable[..., AnnData]) -> AnnData:
    return make_cells({("u", "a"): 15, ("v", "b"): 15})


class Model:
    """A model with presets, that is not trained by anybody."""

    presets = {"default": None, "paper": None}


class Plain:
    """A model with its defaults alone."""

    presets = {"default": None}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for training; holds what each training was asked for."""
    calls: list[dict[str, Any]] = []

    def train(records: Any, out: Path, **asked: Any) -> Path:
        calls.append({**asked, "out": out})
        out.mkdir(parents=True)
        (out / "model").write_text("")
        return out

    monkeypatch.setattr(embeddings, "METHODS", {"one": Model, "two": Plain})
    monkeypatch.setattr(embeddings, "configuration", lambda *of: "")
    monkeypatch.setattr(embeddings, "train", train)
    monkeypatch.setattr(
        embeddings, "embed_records", lambda model, records: np.full((records.n_cells, 2), 7.0)
    )
    return calls


def test_methods_run_by_default_and_with_presets_that_they_have(trained: list) -> None:
    made = variants(["one", "two", "one", "pca"], ["paper"])
    assert [(v.name, v.training) for v in made] == [
        ("one", {}),
        ("one (paper)", {"preset": "paper"}),
        ("two", {}),
        ("pca", {}),
    ]
    with pytest.raises(InputError, match="'three'; choose some of one, two, harmony, pca"):
        variants(["three"])
    with pytest.raises(InputError, match=r"'papper' \(there are: paper\)"):
        variants(["one"], ["papper"])
    with pytest.raises(InputError, match=r"\(there are: none\)"):
        variants(["two"], ["paper"])
    wrong = {(): "no seed", (-1,): "-1", (0.5,): "0.5", ("x",): "'x'", (1, 1): "twice"}
    for seeds, message in wrong.items():
        with pytest.raises(InputError, match=message):
            check_seeds(seeds)


def test_a_stop_loses_no_score(cells: AnnData, trained: list, tmp_path: Path) -> None:
    records = prepare(cells, tmp_path / "records", label_key="kind")
    chosen = variants(["one", "pca"])

    def run(seeds: tuple[int, ...], **training: Any) -> pd.DataFrame:
        scores = Scores(tmp_path, "test")
        for seed in seeds:
            scores.add(
                chosen, records, seed, lambda z: {"mean": z.mean()}, training=training, data="d"
            )
        return scores.table()

    first = run((0,))
    assert list(first.columns) == ["data", "method", "seed", "mean", "seconds"]
    assert len(trained) == 1 and trained[0]["method"] == "one" and trained[0]["seed"] == 0
    file = tmp_path / "scores.jsonl"
    with open(file, "a") as torn:  # as a stop leaves it
        torn.write('{"asked": {"prot')
    both = run((0, 1))
    assert len(trained) == 2 and trained[1]["seed"] == 1
    pd.testing.assert_frame_equal(both[both["seed"] == 0], first)
    pd.testing.assert_frame_equal(run((0, 1)), both)
    assert len(trained) == 2
    lines = file.read_text().splitlines()
    assert len(lines) == 5 and json.loads(lines[-1])["asked"]["seed"] == 1
    # other arguments of training are another question, which PCA does not hear
    trained.clear()
    changed = Scores(tmp_path / "other", "test")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scores.jsonl").write_text(file.read_text())
    changed = Scores(tmp_path / "other", "test")
    changed.add(
        chosen,
        records,
        0,
        lambda z: {"mean": 1.0},
        training={"epochs": 3},
        keep_models=False,
        data="d",
    )
    assert [row["mean"] for row in changed.rows] == [1.0, first["mean"][1]]
    assert trained[0]["epochs"] == 3 and not trained[0]["out"].exists()


def test_options_of_a_variant_are_added_to_those_of_all(trained: list) -> None:
    of = Variant("without swap", "one", {"preset": "paper", "options": {"swap": 0.0}})
    asked = of.asked({"epochs": 2, "options": {"units": 8, "swap": 1.0}})
    assert asked == {"epochs": 2, "preset": "paper", "options": {"units": 8, "swap": 0.0}}
    assert Variant("pca", "pca", {"genes": "all"}).asked({"epochs": 2}) == {"genes": "all"}


def test_data_sets_have_names_and_the_source_key_where_they_have_it(
    cells: AnnData, tmp_path: Path
) -> None:
    assert list(data_sets([cells, cells])) == ["data1", "data2"]
    with pytest.raises(InputError, match="called 'x' too"):
        data_sets(["a/x.h5ad", "b/x.h5ad"])
    with pytest.raises(InputError, match="no data set is given"):
        data_sets([])
    plain = cells.copy()
    del plain.obs["donor"]
    records = prepare_all([cells, plain], tmp_path / "r", label_key="kind", source_key="donor")
    assert [len(of.sources) for of in records.values()] == [2, 1]
    with pytest.raises(InputError, match="data1: no column 'donor'"):
        prepare_all([plain], tmp_path / "s", label_key="kind", source_key="donor")
    with pytest.raises(InputError, match="'celltype'"):
        prepare(cells, tmp_path / "t", label_key="celltype")
    plain.obs["kind"] = "u"
    with pytest.raises(InputError, match="AnnData: 'kind' has one type only, 'u'"):
        prepare(plain, tmp_path / "t", label_key="kind")


def test_cells_without_a_label_are_not_scored() -> None:
    kind = np.array(["u", None, "v", "u"], object)
    donor = np.array([None, "a", "b", "b"], object)
    seen = only_known(
        lambda z, k, d, scale: {"z": z.sum() * scale, "n": len(k) + len(d)}, kind, donor, scale=2
    )
    assert seen(np.array([[1.0], [10.0], [100.0], [1000.0]])) == {"z": 2200, "n": 4}


def test_means_and_spreads_are_nested() -> None:
    table = pd.DataFrame(
        {
            "data": ["a", "a", "b"],
            "method": ["x", "x", "x"],
            "seed": [0, 1, 0],
            "ari": [0.0, 1.0, 0.5],
            "only_b": [np.nan, np.nan, 2.0],
        }
    )
    nested = summary(table, ["data", "method"])
    assert nested["a"]["x"] == {"ari": {"mean": 0.5, "standard_deviation": 0.5}}
    assert nested["b"]["x"]["only_b"] == {"mean": 2.0, "standard_deviation": 0.0}
