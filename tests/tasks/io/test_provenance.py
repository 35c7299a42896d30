"""What was done to cells, as the files that tasks write tell it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData

from concerto_tf import (
    annotate,
    cluster,
    embed,
    impute,
    inspect,
    load_model,
    map,
    pseudotime,
    score,
    simulate,
)
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.simulate import SplatParams
from concerto_tf.tasks.io.provenance import steps_in, without_places, write_h5ad


def entry(path: Path) -> dict[str, Any]:
    return anndata.read_h5ad(path).uns["concerto"]


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def texts(value: Any) -> list[str]:
    """All that an entry says, keys included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for of in pair for text in texts(of)]
    return [str(value)]


def test_labels_tell_how_they_were_found(typed_cells: Path, tmp_path: Path) -> None:
    model, query = typed_cells / "typed", typed_cells / "query.h5ad"
    annotate(model, query, tmp_path / "a.h5ad", alpha=0.2, seed=3)
    told = entry(tmp_path / "a.h5ad")
    assert told["command"] == "annotate" and told["seed"] == 3
    assert told["options"]["alpha"] == 0.2 and not told["options"]["vote"]
    assert told["options"]["source_key"] == "none"
    assert told["inputs"] == {"query.h5ad": {"as": "cells", "sha256": checksum(query)}}
    assert told["model"]["fingerprint"] == fingerprint(load_model(model))
    assert {"concerto_tf", "tensorflow", "scanpy", "anndata", "numpy", "python"} <= set(
        told["versions"]
    )
    assert told["date"].endswith("+00:00")


def test_reference_is_told_by_name_and_content(typed_cells: Path, tmp_path: Path) -> None:
    # Without the reference that another test may have left there, with more labels.
    alone = shutil.ignore_patterns("reference")
    shutil.copytree(typed_cells / "model", tmp_path / "model", ignore=alone)
    own = [tmp_path / "model", typed_cells / "query.h5ad"]
    given = {"reference": typed_cells / "records", "label_key": "type"}
    map(*own, tmp_path / "m.h5ad", **given)
    told = entry(tmp_path / "m.h5ad")
    assert told["options"]["k"] == 5 and told["options"]["adapt"] == "auto"
    assert {of["as"] for of in told["inputs"].values()} == {"query", "reference"}
    assert set(told["inputs"]) == {"query.h5ad", "records"}
    assert told["reference"]["cells"] == 240
    map(*own, tmp_path / "kept.h5ad", label_key="type")
    kept = entry(tmp_path / "kept.h5ad")
    assert kept["reference"] == told["reference"] and set(kept["inputs"]) == {"query.h5ad"}
    map(*own, tmp_path / "coarse.h5ad", **{**given, "label_key": "coarse"})
    assert entry(tmp_path / "coarse.h5ad")["reference"] != told["reference"]


def test_steps_follow_each_other(typed_cells: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.h5ad" for n in range(4)]
    embed(typed_cells / "model", typed_cells / "query.h5ad", paths[0])
    first = checksum(paths[0])
    cluster(paths[0], paths[1])
    pseudotime(paths[1], "0", paths[2])
    score(paths[2], ["AB1C", "AB2C"], path := paths[3], name="two")
    steps = steps_in(entry(path))
    assert [step["command"] for step in steps] == ["embed", "cluster", "pseudotime", "score"]
    assert steps[1]["inputs"] == {"0.h5ad": {"as": "cells", "sha256": first}}
    assert steps[1]["options"]["resolution"] == 0.6  # what `auto` came to
    assert steps[2]["options"]["groupby"] == "concerto_cluster"
    assert steps[0]["seed"] == "none"  # draws nothing at random
    told = inspect(path)
    assert told["kind"] == "result" and told["cells"] == 300
    assert [step["command"] for step in told["steps"]] == [step["command"] for step in steps]
    json.dumps(told)


def test_more_than_nine_steps_stay_in_order(tmp_path: Path) -> None:
    adata = AnnData(np.zeros((30, 1), "f4"))
    adata.obsm["X_concerto"] = np.random.default_rng(0).normal(size=(30, 2)).astype("f4")
    adata.write_h5ad(tmp_path / "1.h5ad")
    for n in range(2, 13):
        given, out = tmp_path / f"{n - 1}.h5ad", tmp_path / f"{n}.h5ad"
        cluster(given, out, algorithm="kmeans", n_clusters=n)
    steps = inspect(out)["steps"]
    assert [step["options"]["n_clusters"] for step in steps] == list(range(2, 13))


def test_imputed_values_have_units(typed_cells: Path, tmp_path: Path) -> None:
    shutil.copytree(typed_cells / "model", tmp_path / "model")
    cells = anndata.read_h5ad(typed_cells / "query.h5ad")
    cells.obsm["protein"] = cells.to_df().iloc[:, :3]
    cells.write_h5ad(tmp_path / "reference.h5ad")
    query = typed_cells / "query.h5ad"
    impute(tmp_path / "model", query, tmp_path / "i.h5ad", reference=tmp_path / "reference.h5ad")
    told = entry(tmp_path / "i.h5ad")
    assert told["imputed"]["protein"].startswith("log1p") and told["options"]["k"] == 30
    assert anndata.read_h5ad(tmp_path / "i.h5ad").uns["concerto_imputed"] == told["imputed"]


def test_the_matrix_that_was_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = np.random.default_rng(0).poisson(2, (30, 8)).astype(np.float32)
    cells = AnnData(np.log1p(counts / (1 + counts.sum(axis=1, keepdims=True))))
    cells.raw = AnnData(counts)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with caplog.at_level(logging.INFO, "concerto_tf"):
        score(tmp_path / "cells.h5ad", ["1", "2"], tmp_path / "out.h5ad")
    assert entry(tmp_path / "out.h5ad")["inputs"]["cells.h5ad"]["matrix"] == "raw.X"
    assert "cells.h5ad: X holds no counts; those in raw.X are taken" in caplog.text
    score(tmp_path / "cells.h5ad", ["1", "2"], tmp_path / "x.h5ad", layer="X")
    assert "matrix" not in entry(tmp_path / "x.h5ad")["inputs"]["cells.h5ad"]


def test_simulated_cells_tell_their_parameters(tmp_path: Path) -> None:
    simulate(SplatParams.droplet(n_cells=40, n_genes=30, seed=4), tmp_path / "s.h5ad")
    told = entry(tmp_path / "s.h5ad")
    assert told["command"] == "simulate" and told["seed"] == 4
    assert told["options"]["n_genes"] == 30
    assert "simulation" in anndata.read_h5ad(tmp_path / "s.h5ad").uns


def test_cells_in_memory_have_a_checksum_of_names_and_values(tmp_path: Path) -> None:
    found = []
    for value in (1, 1, 2):
        adata = AnnData(np.full((30, 2), value, "f4"))
        adata.obsm["X_concerto"] = np.random.default_rng(0).normal(size=(30, 2)).astype("f4")
        cluster(adata, tmp_path / "a.h5ad")
        found.append(adata.uns["concerto"]["inputs"]["AnnData"]["sha256"])
    assert found[0] == found[1] != found[2]


def test_nothing_is_noted_where_nothing_is_written(tmp_path: Path) -> None:
    adata = AnnData(np.zeros((30, 1), "f4"))
    adata.obsm["X_concerto"] = np.random.default_rng(0).normal(size=(30, 2)).astype("f4")
    cluster(adata)
    assert "concerto" not in adata.uns
    write_h5ad(adata, tmp_path / "a.h5ad")
    assert inspect(tmp_path / "a.h5ad")["steps"] == []


def test_no_folder_user_or_host_is_told(
    typed_cells: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home" / "lovelace" / "secret project"
    home.mkdir(parents=True)
    for name in ("model", "records"):
        shutil.copytree(typed_cells / name, home / name)
    cells = anndata.read_h5ad(typed_cells / "query.h5ad")[:, :15]
    cells.write_h5ad(home / "query.h5ad")
    with caplog.at_level(logging.WARNING, "concerto_tf"):
        map(
            home / "model",
            str(home / "query.h5ad"),
            home / "out.h5ad",
            reference=str(home / "records"),
            label_key="type",
            groupby="type",
            figure=str(home / "figure.png"),
        )
    told = entry(home / "out.h5ad")
    assert "15 of the 40 genes" in told["warnings"]  # said in the log, with the file's place
    assert told["options"]["figure"] == "figure.png"
    said = "\n".join(texts(told))
    for word in (str(tmp_path), "lovelace", "secret", str(Path.home())):
        assert word not in said, word
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/data/a b/c.h5ad: bad", "a b/c.h5ad: bad"),  # a space ends what is known as a path
        ("see ~/x/y.tsv, or C:\\Users\\ada\\z.csv", "see y.tsv, or z.csv"),
        ("gs://bucket/records: old", "gs://bucket/records: old"),
        ("labels T/NK and CD4+/CD8-", "labels T/NK and CD4+/CD8-"),
    ],
)
def test_places_in_messages(text: str, told: str) -> None:
    assert without_places(text) == told


def test_foreign_entry_of_that_name_is_replaced(tmp_path: Path) -> None:
    adata = AnnData(np.zeros((30, 1), "f4"), uns={"concerto": "in D"})
    adata.obsm["X_concerto"] = np.random.default_rng(0).normal(size=(30, 2)).astype("f4")
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert inspect(tmp_path / "a.h5ad")["kind"] == "cells"
    cluster(tmp_path / "a.h5ad", tmp_path / "b.h5ad")
    assert entry(tmp_path / "b.h5ad")["command"] == "cluster"
    with h5py.File(tmp_path / "b.h5ad") as file:
        assert "earlier" not in file["uns/concerto"]


def test_same_date_where_bytes_are_to_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    for name in ("a.h5ad", "b.h5ad"):
        simulate(SplatParams.droplet(n_cells=20, n_genes=10), tmp_path / name)
    assert entry(tmp_path / "a.h5ad")["date"] == "1970-01-02T00:00:00+00:00"
    assert checksum(tmp_path / "a.h5ad") == checksum(tmp_path / "b.h5ad")
