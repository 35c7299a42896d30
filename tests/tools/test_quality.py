"""The protocol that defaults are chosen by: configurations, trials, tables, and its command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from concerto_tf.errors import InputError
from concerto_tf.metrics import embedding_scores
from concerto_tf.simulate import SplatParams, simulate_cells
from protocols import baselines, quality_cells
from protocols.lines import append_line, read_lines
from protocols.quality import Trial, configured, kept, planned, scib
from protocols.quality_cells import DataSet, labelled_sets
from protocols.quality_report import Findings, figure, leave_one_out, report

SMALL = (
    "concerto,epochs=1,genes=all,units=8,hidden_units=8,attention_units=4,head_units=8,"
    "components=4,batch_size=32"
)


@pytest.fixture
def file(make_cells: Callable[..., AnnData], tmp_path: Path) -> Path:
    """Cells of two types, in two sources, five of them without a label."""
    cells = make_cells({(kind, donor): 20 for kind in "uv" for donor in "ab"})
    cells.obs = cells.obs.rename(columns={"kind": "cell_type"})
    cells.obs.loc[cells.obs_names[:5], "cell_type"] = np.nan
    cells.write_h5ad(tmp_path / "small.h5ad")
    return tmp_path / "small.h5ad"


def test_a_configuration_is_read_as_it_is_written() -> None:
    made = configured("clear:paper,temperature=0.2,genes=hvg:200,backbone=[64, 8],ensemble=2")
    assert made.method == "clear"
    assert made.training == {
        "preset": "paper",
        "genes": "hvg:200",
        "ensemble": 2,
        "options": {"temperature": 0.2, "backbone": [64, 8]},
    }
    assert made.name == "clear:paper,backbone=[64, 8],ensemble=2,genes=hvg:200,temperature=0.2"
    assert configured(made.name) == made
    assert configured("pca").training == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("umap", "no method 'umap'; choose one of concerto, .*, pca, scvi"),
        ("concerto:best", "no preset 'best'"),
        ("concerto,mask_rat=0.1", "concerto has no option 'mask_rat'; it has align"),
        ("concerto,epochs=no", "epochs is no"),
        ("concerto,temperature=warm", "concerto,temperature=warm': .*warm"),
        ("concerto,seed=3", "seed is not set in this way"),
        ("concerto,epochs=3,epochs=4", "epochs is given twice"),
        ("pca,epochs=3", "pca takes no epochs"),
        ("pca,genes=many", "neither all nor hvg:N"),
    ],
)
def test_what_is_no_configuration_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        configured(text)


def test_a_trial_is_another_where_data_defaults_or_columns_are(file: Path) -> None:
    (data,) = labelled_sets([file], source_key="donor")
    (simulated,) = labelled_sets(["sim:easy"])
    trials = [
        Trial(data, configured("concerto"), 0),
        Trial(data, configured("concerto:paper"), 0),
        Trial(data, configured("concerto,epochs=2"), 0),
        Trial(data, configured("concerto"), 1),
        Trial(replace(data, settings={**data.settings, "source_key": None}), configured("pca"), 0),
        Trial(data, configured("pca"), 0),
        Trial(simulated, configured("pca"), 0),
        Trial(replace(simulated, settings={"simulated": "otherwise"}), configured("pca"), 0),
    ]
    assert len({trial.key() for trial in trials}) == len(trials)
    assert trials[2].command() == (
        "tools/quality small.h5ad --configurations concerto,epochs=2 --seed 0 --source-key donor"
    )
    assert trials[6].command() == "tools/quality sim:easy --configurations pca --seed 0"


def test_peers_run_where_they_say_something(file: Path) -> None:
    sets = labelled_sets([file, "sim:rare", "sim:batches"])
    asked = [
        (t.data.name, t.variant.name, t.seed)
        for t in planned(sets, map(configured, ("pca", "concerto")), (0, 1))
    ]
    assert asked == [
        ("small", "pca", 0),
        ("small", "concerto", 0),
        ("small", "concerto", 1),
        ("sim:rare", "pca", 0),
        ("sim:rare", "concerto", 0),
        ("sim:rare", "pca", 1),
        ("sim:rare", "concerto", 1),
        ("sim:batches", "pca", 0),
        ("sim:batches", "concerto", 0),
        ("sim:batches", "concerto", 1),
    ]
    pytest.importorskip("harmonypy")
    harmony = list(planned(sets, [configured("harmony")], (2,)))
    assert [(t.data.name, t.seed) for t in harmony] == [("sim:batches", 2)]


def test_the_rare_type_has_its_cells_and_every_seed_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SplatParams(n_cells=400, n_genes=50, group_sizes=(5, 4, 1), seed=4)
    monkeypatch.setattr(quality_cells, "SIMULATED", {"rare": small, "easy": small})
    monkeypatch.setattr(quality_cells, "RARE_CELLS", (20, 300))
    rare, easy = labelled_sets(["sim:rare", "sim:easy"])
    first, second = rare.cells(0), rare.cells(1)
    for cells in (first, second):
        assert dict(cells.obs["label"].value_counts())[rare.rare] == 20
        assert cells.n_obs == 300
    assert (first.X != second.X).nnz
    assert not (rare.cells(0).X != first.X).nnz
    assert not (easy.cells(0).X != easy.cells(1).X).nnz


def test_simulated_sets_are_what_they_say() -> None:
    names = [f"sim:{name}" for name in quality_cells.SIMULATED]
    sets = {data.name: data for data in labelled_sets(names)}
    assert [name for name, data in sets.items() if data.has_sources] == [
        "sim:batches",
        "sim:lacking",
        "sim:crossed",
    ]
    assert [name for name, data in sets.items() if data.rare] == ["sim:rare", "sim:crossed"]
    trajectory = replace(quality_cells.SIMULATED["trajectory"], n_cells=60, n_genes=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_cells, "SIMULATED", {"trajectory": trajectory})
        labels = sets["sim:trajectory"].cells().obs["label"]
    assert set(labels) == {f"Path{i}" for i in range(1, 6)}


def test_each_batch_lacks_two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SplatParams(n_cells=400, n_genes=50, group_sizes=(1,) * 6, batch_sizes=(1,) * 3)
    monkeypatch.setattr(quality_cells, "SIMULATED", {"lacking": small})
    obs = labelled_sets(["sim:lacking"])[0].cells().obs
    held = obs.groupby("source", observed=True)["label"].agg(set)
    for i in (1, 2, 3):
        groups = {f"Group{g}" for g in range(1, 7)} - {f"Group{i}", f"Group{i + 1}"}
        assert held[f"Batch{i}"] == groups


def test_batches_of_a_group_differ_by_no_shift_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SplatParams(n_cells=800, n_genes=50, group_sizes=(1, 1), batch_sizes=(1, 1))
    monkeypatch.setattr(quality_cells, "SIMULATED", {"crossed": small})
    cells = labelled_sets(["sim:crossed"])[0].cells()
    whole = simulate_cells(small)
    assert np.all(np.asarray(cells.X.sum(0)) <= np.asarray(whole.X.sum(0)))
    of = cells.obs["label"].astype(str) + cells.obs["source"].astype(str)
    lost = {
        name: np.asarray(cells[own].X.sum(0) / np.maximum(whole[own].X.sum(0), 1)).ravel() < 0.9
        for name in of.unique()
        for own in [(of == name).to_numpy()]
    }
    assert len(lost) == 4
    assert all(4 <= genes.sum() <= 20 for genes in lost.values())  # a fifth of 50, by chance
    assert len({tuple(genes) for genes in lost.values()}) == 4


def test_scvi_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scvi-tools, or leave scvi out"):
        configured("scvi")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("scvi") is None, reason="no scvi-tools here")
def test_scvi_embeds_in_a_process_of_its_own(make_cells: Callable[..., AnnData]) -> None:
    cells = make_cells({(kind, donor): 30 for kind in "uv" for donor in "ab"})
    z = baselines.scvi(cells, "donor")
    assert z.shape == (120, 30) and z.dtype == np.float32
    assert embedding_scores(z, cells.obs["kind"])["knn_accuracy"] > 0.9
    with pytest.raises(InputError, match="scVI failed: .*absent"):
        baselines.scvi(cells, "absent")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("scib_metrics") is None, reason="no scib-metrics here")
def test_scib_tells_mixed_sources_from_separate_ones() -> None:
    rng = np.random.default_rng(0)
    labels, sources = np.repeat(["u", "v"], 100), np.tile(["a", "b"], 100)
    mixed = rng.normal(size=(200, 5)) + 10 * (labels == "u")[:, np.newaxis]
    apart = mixed + np.outer(sources == "a", [0, 0, 0, 30, -30])
    good, bad = (scib(z.astype(np.float32), labels, sources) for z in (mixed, apart))
    assert good["scib_batch"] > bad["scib_batch"] + 0.2
    for found in (good, bad):
        total = 0.6 * found["scib_bio"] + 0.4 * found["scib_batch"]
        assert found["scib_total"] == pytest.approx(total)


def findings(values: dict[str, dict[str, list[float]]], **more: dict[str, list[float]]) -> Findings:
    """ARIs by configuration and data set, one for each seed; Leiden's and kNN's are alike."""
    sets = [
        DataSet(name, path=None if name.startswith("sim:") else Path(name))
        for name in dict.fromkeys(name for of in values.values() for name in of)
    ]
    rows = [
        {
            "data": name,
            "configuration": made,
            "seed": seed,
            "cells": 2000,
            "seconds": 1.0,
            "ari_kmeans": ari,
            "ari_leiden": ari,
            "knn_macro_f1": ari,
            **({"rare_f1": more[made][name][seed]} if name in more.get(made, {}) else {}),
        }
        for made, of in values.items()
        for name, aris in of.items()
        for seed, ari in enumerate(aris)
    ]
    return Findings(pd.DataFrame(rows), sets, {made: made.split(",")[0] for made in values})


def test_no_set_takes_part_in_its_own_choice() -> None:
    values = pd.DataFrame(
        {"a": [1.0, 0.2, 0.2], "b": [0.1, 0.6, 0.6], "c": [0.9, 0.9, np.nan]},
        index=["x", "y", "sim:z"],
    )
    # x alone speaks for a, the mean of all sets would choose a for none but by x: .47 to .43.
    assert leave_one_out(values, ["x", "y"]) == {"x": "b", "y": "a"}
    assert leave_one_out(values[["c"]], ["x"]) == {}
    assert leave_one_out(values.iloc[:1], ["x"]) == {}


def test_tables_hold_what_is_known_by_hand() -> None:
    made = findings(
        {
            "pca": {"x": [0.5], "y": [0.7], "sim:z": [0.4, 0.6]},
            "harmony": {"y": [0.9]},
            "concerto": {"x": [0.9, 0.7], "y": [0.6, 0.6], "sim:z": [0.9, 0.9]},
            "concerto,epochs=2": {"x": [0.2], "y": [0.8], "sim:z": [0.6]},
        },
        concerto={"sim:z": [0.95, 0.89]},
    )
    made = replace(made, sets=[replace(d, has_sources=d.name == "y") for d in made.sets])
    means = made.means("ari_kmeans")
    assert means["harmony"].to_dict() == {"x": 0.5, "y": 0.9, "sim:z": 0.5}
    said = report(made)
    rows = {line.split(" | ")[0].strip("| "): line for line in said.splitlines() if "|" in line}
    x = "0.80 ±0.14 · 0.80 ±0.14 · 0.80"
    assert f"| x | 0.50 · 0.50 · 0.50 | 0.50 · 0.50 · 0.50 | {x} | 0.20 · 0.20 · 0.20 |" in said
    assert "| mean, real | 0.60 · 0.60 · 0.60 | 0.70 · 0.70 · 0.70 | 0.70" in said
    assert "Best single peer on the real sets: K-means ARI harmony 0.70; Leiden ARI harmony" in said
    assert "| 0.70 · 0.70 · 0.70 | 0.90 · 0.90 · 0.90 | +0.00 · +0.00 · +0.00 |" in said
    assert "-0.10 y · -0.10 y | 0.14 x · 0.14 x | 1 of 2 | 1 |" in rows["concerto"]
    # x is chosen for by y and sim:z (.75 to .70), y by x and sim:z (.85 to .40).
    assert "| x | concerto | 0.80 · 0.80 · 0.80 | +0.30 · +0.30 · +0.30 |" in said
    assert "| y | concerto | 0.60 · 0.60 · 0.60 | -0.10 · -0.10 · -0.10 |" in said
    assert "| mean |  | 0.70 · 0.70 · 0.70 | +0.10 · +0.10 · +0.10 |" in said
    drawn = figure(made)
    assert drawn is not None and len(drawn.axes) == 2
    points = [
        p for line in drawn.axes[0].lines if line.get_marker() == "o" for p in line.get_ydata()
    ]
    assert sorted(np.round(points, 2)) == [-0.3, -0.1, -0.1, 0.1, 0.1, 0.2, 0.2, 0.4, 0.4, 0.4]


def test_nothing_computed_is_reported_as_such() -> None:
    sets, chosen = labelled_sets(["sim:easy"]), [configured("concerto"), configured("pca")]
    none = Findings.of(sets, chosen, planned(sets, chosen, (0,)), {})
    assert "| sim:easy | - · - · - | - · - · - |" in report(none)
    assert figure(none) is None


def test_lines_survive_a_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    append_line(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2, "b')
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: line 2 is no whole result, as a stop leaves it; passed over"
    ]


def test_the_tool_scores_what_is_missing_and_goes_on(
    tool: Callable[..., int],
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    results, drawn = tmp_path / "rows.jsonl", tmp_path / "drawn.png"
    old = {"data": "small", "method": "pca", "seed": 0, "configuration": "a01d5d71"}
    results.write_text(json.dumps(old) + "\n")
    call = [file, "--configurations", "pca", SMALL, "--results", results, "--figure", drawn]
    assert tool("quality", *call, "--seeds", 1) == 0
    rows = kept(results)
    assert len(rows) == 2 and read_lines(results)[0] == old
    pca, small = rows.values()
    assert pca["cells"] == small["cells"] == 75 and pca["seconds"] >= 0
    assert small["command"].endswith(f"{configured(SMALL).name} --seed 0")
    # What embedding_scores says of scanpy's own components, of the cells with a label.
    cells = read_h5ad(file)
    cells = cells[cells.obs["cell_type"].notna()].copy()
    z_pca = baselines.pca(baselines.log_normalized(cells))
    want = embedding_scores(z_pca, cells.obs["cell_type"])
    assert {name: pca[name] for name in want} == pytest.approx(want, abs=6e-5)
    assert "| small | " in capsys.readouterr().out
    assert drawn.read_bytes()[1:4] == b"PNG"

    # A stop in the middle of a line: that trial alone is computed again.
    before = results.read_bytes()
    results.write_bytes(before[:-40])
    assert tool("quality", *call, "--seeds", 1, "--report") == 0
    assert "1 of 2 trials are not computed" in capsys.readouterr().err
    assert f"{results}: line 3 is no whole result" in caplog.text
    assert results.read_bytes() == before[:-40]
    assert tool("quality", *call, "--seed", 0) == 0
    lines = results.read_bytes().split(b"\n")
    assert lines[:2] == before.split(b"\n")[:2] and len(kept(results)) == 2
    again = results.read_bytes()
    assert tool("quality", *call, "--seeds", 1) == 0
    assert results.read_bytes() == again
    same = {k: v for k, v in kept(results)[tuple(rows)[1]].items() if k != "seconds"}
    assert same == {k: v for k, v in small.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.h5ad"], "none.h5ad"),
        (["sim:none"], "no such simulated set; choose some of sim:unbalanced"),
        ([], "no data set is given"),
        (["FILE", "FILE"], None),
        (["FILE", "--label-key", "tissue"], "no column 'tissue' in obs; name one with --label-key"),
        (["FILE", "--label-key", "one"], "'one' tells no two types apart"),
        (["FILE", "--configurations", "concerto,blur=1"], "concerto has no option 'blur'"),
        (["FILE", "--seeds", "0"], "no seed is left"),
        (["FILE", "--results", "nowhere/rows.jsonl"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_said_before_any_work(
    tool: Callable[..., int],
    arguments: list[str],
    message: str | None,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = read_h5ad(file)
    cells.obs["one"] = "same"
    cells.write_h5ad(file)
    given = [str(file) if a == "FILE" else a for a in arguments]
    if message is None:  # the same file again is the same set
        given += ["--report"]
    if "--results" not in given:
        given += ["--results", str(tmp_path / "rows.jsonl")]
    code = tool("quality", *given, "--figure", tmp_path / "drawn.png")
    said = capsys.readouterr().err
    if message is None:
        assert code == 0
    else:
        assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "rows.jsonl").exists()
