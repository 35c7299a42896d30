"""Cells that a task is given: without files where that is possible, and the same either way."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.models import Concerto
from concerto_tf.models.classifier import Classifier
from concerto_tf.records import Records, convert
from concerto_tf.tasks.annotate import annotate
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.explain import explain
from concerto_tf.tasks.impute import impute
from concerto_tf.tasks.io import reading as of_cells
from concerto_tf.tasks.io.agreement import vocabularies_of
from concerto_tf.tasks.io.reading import Reading, open_cells
from concerto_tf.tasks.map import map  # noqa: A004 - the command's name

N_GENES, N_CELLS = 60, 100


def make_cells(seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, N_GENES), (N_CELLS, N_GENES))
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"donor": rng.choice(["a", "c"], N_CELLS), "type": rng.choice(["B", "T"], N_CELLS)},
        index=[f"cell{seed}-{i}" for i in range(N_CELLS)],
    )
    cells = AnnData(
        counts.astype("f4"), obs=obs, var=pd.DataFrame(index=[f"AB{i}C" for i in range(N_GENES)])
    )
    protein = rng.poisson(4.0, (N_CELLS, 3)).astype("f4")
    cells.obsm["protein"] = pd.DataFrame(protein, cells.obs_names, ["CD3", "CD4", "CD8"])
    return cells


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Concerto:
    records = convert(make_cells(7), tmp_path_factory.mktemp("model") / "r", source_key="donor")
    made = Concerto.from_records(
        records, genes=range(5, N_GENES), units=8, hidden_units=8, attention_units=4
    )
    made.calibrate(records.dataset(50))
    return made


#: Each task that reads cells, as a call with a model and cells that gives tables to compare.
TASKS: dict[str, Callable[[Concerto, Any], list[np.ndarray]]] = {
    "embed": lambda model, cells: [embed(model, cells)],
    "explain": lambda model, cells: [explain(model, cells, top=3).to_numpy()],
    "explain groups": lambda model, cells: [explain(model, cells, groupby="type").to_numpy()],
    "annotate": lambda model, cells: [
        annotate(Classifier(model, ["B", "T"], label_key="type"), cells).to_numpy()
    ],
    "map": lambda model, cells: [
        found := map(model, cells, reference=make_cells(3), label_key="type"),
        np.array(found.attrs["report"]),
    ],
    "map by own statistics": lambda model, cells: [
        map(model, cells, reference=make_cells(3), label_key="type", adapt="source").to_numpy()
    ],
    "impute": lambda model, cells: [
        impute(model, cells, reference=make_cells(3))["protein"].to_numpy()
    ],
}


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        one, other = pd.DataFrame(np.asarray(one)), pd.DataFrame(np.asarray(other))
        pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_no_records_are_written_and_what_is_found_is_the_same(
    task: str,
    model: Concerto,
    tmp_path: Path,
    opened_files: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = make_cells()[:, ::-1][:, :50].copy()  # in another order, some genes missing
    cells.write_h5ad(tmp_path / "cells.h5ad")
    by_records = convert(
        tmp_path / "cells.h5ad",
        tmp_path / "r",
        like=vocabularies_of(model),
        label_keys=["type"],
        source_name="cells",
    )
    theirs = TASKS[task](model, by_records)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    # Own statistics take a random sample: where cells are not held, that goes by way of records.
    for held_bytes in [0, 2**20] if task != "map by own statistics" else [2**20]:
        monkeypatch.setattr(of_cells, "HELD_BYTES", held_bytes)
        with opened_files() as opened:
            ours = TASKS[task](model, tmp_path / "cells.h5ad")
        assert_same(ours, theirs)
        written = [path for path, mode, _ in opened if set(mode) & set("wax+")]
        # TensorFlow leaves code that it wrote itself there.
        assert not [path for path in written if "tfrecord" in path or "concerto-" in path]
        assert not list((tmp_path / "temporary").glob("concerto-*"))


def test_a_query_that_is_written_out_leaves_nothing_else(
    model: Concerto, tmp_path: Path, opened_files: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cells().write_h5ad(tmp_path / "query.h5ad")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with opened_files() as opened:
        map(
            model,
            tmp_path / "query.h5ad",
            tmp_path / "out.h5ad",
            reference=make_cells(3),
            label_key="type",
        )
    assert anndata.io.read_h5ad(tmp_path / "out.h5ad").obs["concerto_label"].notna().all()
    assert not [path for path, *_ in opened if "tfrecord" in path]
    assert {p.name for p in tmp_path.iterdir()} == {
        "query.h5ad",
        "out.h5ad",
        "report.html",
        "temporary",
    }
    assert not list((tmp_path / "temporary").glob("concerto-*"))


def test_training_and_samples_of_many_cells_go_by_way_of_records(
    model: Concerto, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, reading = make_cells(), Reading(source_key="donor")
    with open_cells(model, cells, reading, trained=True) as found:
        assert isinstance(found, Records) and found.sources == ["a", "c"]
        folder = found.path
    assert not folder.exists()
    with open_cells(model, cells, reading, sampled=True) as found:
        assert not isinstance(found, Records)
    monkeypatch.setattr(of_cells, "HELD_BYTES", 0)
    with open_cells(model, cells, reading) as found:
        assert not isinstance(found, Records)
    with open_cells(model, cells, reading, sampled=True) as found:
        assert isinstance(found, Records) and found.name == "AnnData"


def test_what_there_is_to_say_is_said_once(
    model: Concerto, caplog: pytest.LogCaptureFixture
) -> None:
    cells = make_cells()
    cells.X[:3] = 0
    with caplog.at_level(logging.INFO, "concerto_tf"):
        embed(model, cells, drop_empty=True)
    assert caplog.text.count("3 cells without any count were left out") == 1
    assert caplog.text.count("60 of 60 genes found by") == 1


def test_several_inputs_are_joined(model: Concerto) -> None:
    both = [make_cells(0), make_cells(1)]
    np.testing.assert_allclose(
        embed(model, both, source_key="donor"),
        np.concatenate([embed(model, one, source_key="donor") for one in both]),
        atol=1e-5,
    )


def test_an_input_is_opened_once(model: Concerto, tmp_path: Path, opened_files: Callable) -> None:
    make_cells().write_h5ad(tmp_path / "cells.h5ad")
    with opened_files() as opened:
        embed(model, tmp_path / "cells.h5ad", source_key="donor")
    path = str(tmp_path / "cells.h5ad")
    assert sum(name == path and "_open_hdf5" in names for name, _, names in opened) == 1


def test_a_model_of_normalized_values_is_given_x(tmp_path: Path) -> None:
    cells = make_cells()
    cells.raw = cells.copy()
    cells.X = np.log1p(1e4 * cells.X / cells.X.sum(axis=1, keepdims=True))
    records = convert(cells, tmp_path / "r", layer="X")
    assert records.units == "lognorm"
    made = Concerto.from_records(records, units=8, hidden_units=8, attention_units=4)
    made.calibrate(records.dataset(50))
    alone = cells.copy()
    alone.raw = None
    np.testing.assert_array_equal(embed(made, cells), embed(made, alone))


def test_a_mudata_is_read_as_its_rna_with_protein(model: Concerto, tmp_path: Path) -> None:
    mudata = pytest.importorskip("mudata")
    cells = make_cells()
    protein = AnnData(cells.obsm["protein"])[::-1].copy()
    rna = cells.copy()
    rna.obs = rna.obs[["donor"]]
    del rna.obsm["protein"]
    rna.layers["kept"] = rna.X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what mudata is going to change
        mdata = mudata.MuData({"rna": rna, "prot": protein})
        mdata.obs["type"] = cells.obs["type"].reindex(mdata.obs_names)
        mdata.write(tmp_path / "cells.h5mu")
    places = {"protein": "obsm:protein"}
    records = convert(cells, tmp_path / "r", modalities=places)
    both = Concerto.from_records(records, units=8, hidden_units=8, attention_units=4)
    both.calibrate(records.dataset(50))
    for number, given in enumerate([mdata, tmp_path / "cells.h5mu"]):
        out = tmp_path / f"{number}.h5ad"
        for one in (model, both):
            np.testing.assert_array_equal(embed(one, given, out), embed(one, cells))
        written = anndata.read_h5ad(out)
        np.testing.assert_array_equal(written.layers["kept"], cells.X)
        assert written.obs["type"].tolist() == cells.obs["type"].tolist()
        assert written.uns["concerto"]["command"] == "embed"
    found = impute(model, make_cells(5), reference=tmp_path / "cells.h5mu")
    ours = impute(model, make_cells(5), reference=cells)
    np.testing.assert_array_equal(found["protein"], ours["protein"])
