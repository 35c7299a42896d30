"""What is delivered: parts and their tasks, the commands as printed, peers, tables."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

from protocols import delivered_peers as peers
from protocols.delivered import kept
from protocols.delivered_commands import PRINTED, Desk, Refused
from protocols.delivered_parts import OURS, PARTS, Bench, mixing
from protocols.delivered_report import report
from protocols.quality_cells import labelled_sets

ROOT = Path(__file__).parents[2]
SIZES = {(kind, donor): n for kind, n in zip("tuv", (40, 24, 16), strict=True) for donor in "ab"}


def tool(*arguments: object) -> int:
    """The return code of tools/quality delivered."""
    path = ROOT / "tools" / "quality"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), "delivered", *map(str, arguments)])
        return runpy.run_path(str(path))["main"]()


@pytest.fixture
def file(make_cells: Callable[..., AnnData], tmp_path: Path) -> Path:
    """Cells of three types in two sources, with proteins that follow the types."""
    cells = make_cells(SIZES)
    cells.obs = cells.obs.rename(columns={"kind": "cell_type", "donor": "batch"})
    rng = np.random.default_rng(0)
    means = np.array([[60, 5, 9], [5, 60, 9], [20, 20, 9]])
    of_type = cells.obs["cell_type"].cat.codes.to_numpy()
    cells.obsm["protein"] = pd.DataFrame(
        rng.poisson(means[of_type]), cells.obs_names, ["CD3", "CD19", "CD4"]
    )
    cells.write_h5ad(tmp_path / "small.h5ad")
    return tmp_path / "small.h5ad"


@pytest.fixture
def bench(file: Path, tmp_path: Path) -> Bench:
    return Bench(labelled_sets([file])[0].cells(), 0, tmp_path / "work", 2)


def test_the_commands_are_those_of_readme_and_docs() -> None:
    """The same command with the same options, keys and seeds aside."""
    printed = set()
    for text in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for said in re.findall(r"concerto [a-z]+ [^`\n]*-[^`\n]*", text.read_text("utf-8")):
            printed.add(shape(said))
    ours = [said.format(source="", modality="") for said in sum(PRINTED.values(), ())]
    assert [said for said in ours if shape(said) not in printed] == []
    assert shape("concerto run cells.h5ad -o result --resolution 2") not in printed


def shape(said: str) -> tuple[str, frozenset[str]]:
    """A command, and the names of its options."""
    place = {"--modality"}  # where cells lie, which is added where they have it
    return said.split()[1], frozenset(re.findall(r"(?<= )--?[a-z-]+", said)) - place


def test_a_command_that_ends_with_an_error_is_run_once(bench: Bench) -> None:
    desk = bench.desk("half", lambda: bench.part(~bench.aside, "label", "source"))
    assert bench.desk("half", lambda: bench.part(bench.aside)) is desk
    file = bench.folder / "desk0" / "cells.h5ad"
    cells = read_h5ad(file)
    del cells.obs["source"]
    desk.put("cells", cells)
    said = "concerto run cells.h5ad -o result --source-key source"
    assert desk.commands("run") == [said]
    for _ in range(2):
        with pytest.raises(Refused, match=f"{said}: .*no column 'source'"):
            desk.left("run")
        file.unlink(missing_ok=True)  # the second time nothing is read
    cells.obs["source"] = "a"
    cells.X[0] = 0
    desk.put("cells", cells)  # and other cells are looked at anew
    with pytest.raises(Refused, match=f"{said}: .*no counts at all"):
        desk.left("run")
    with_protein = Desk(bench.folder / "other", 3, False, "protein")
    assert with_protein.commands("impute") == [
        "concerto run cells.h5ad -o result --modality protein=obsm:protein --seed 3",
        "concerto impute result/model --reference cells.h5ad --query new-cells.h5ad "
        "-o imputed.h5ad --modality protein=obsm:protein --seed 3",
    ]


def test_parts_ask_what_the_cells_suit(bench: Bench) -> None:
    tasks = {name: part.tasks(bench) for name, part in PARTS.items()}
    assert tasks == {
        "clusters": ["all cells"],
        "labels": ["all types", "without t", "without u"],
        "shift": ["a to b", "b to a"],
        "panels": ["20% of the counts", "10% of the counts"],
        "impute": ["all cells"],
        "mixing": ["all cells"],
    }
    del bench.cells.obs["source"], bench.cells.obsm["protein"]
    bench.cells.X = np.log1p(bench.cells.X)
    assert [name for name, part in PARTS.items() if part.tasks(bench)] == ["clusters", "labels"]


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")  # of three genes
def test_peers_tell_types_that_are_apart(bench: Bench) -> None:
    for peer in ("logistic", "knn"):
        answer = PARTS["labels"].answers[peer]
        whole = answer(bench, "all types")
        assert whole["known"] == 80 and whole["accuracy"] == whole["accuracy_unrejected"] > 0.9
        assert answer(bench, "without u")["f1"] > 0.9
        thinned = PARTS["panels"].answers[peer](bench, "10% of the counts")
        assert 0.5 < thinned["accuracy"] < 1
        many, few = (PARTS["panels"].answers[peer](bench, f"{n} genes") for n in (30, 3))
        assert many["accuracy"] > 0.85 > few["accuracy"]
    assert PARTS["impute"].answers["knn"](bench, "all cells")["r"] > 0.4
    for scaled in (True, False):
        found = peers.scanpy_clusters(bench.cells, 0, scaled)
        assert pd.crosstab(found, bench.cells.obs["label"].to_numpy()).max(axis=1).sum() > 140
    assert PARTS["mixing"].answers["pca"](bench, "all cells")["types"] == 3


def test_one_source_is_the_reference_and_the_other_the_query(bench: Bench) -> None:
    obs = bench.cells.obs
    bench.cells = bench.cells[(obs["label"] != "v") | (obs["source"] != "a")].copy()
    answer = PARTS["shift"].answers["logistic"]
    there, back = answer(bench, "a to b"), answer(bench, "b to a")
    assert (there["known"], there["unseen"], there["rejected_unseen"]) == (64, 16, 0)
    assert (back["known"], back["unseen"]) == (64, 0)


def test_mixing_is_of_types_that_two_sources_share() -> None:
    labels = np.repeat(["one", "both", "few"], (60, 120, 40))
    sources = np.concatenate([["a"] * 60, np.tile(["a", "b"], 60), ["a"] * 35, ["b"] * 5])
    z = np.random.default_rng(0).normal(size=(220, 4))
    mixed = mixing(z, labels, sources)
    apart = mixing(z + 20 * (sources == "b")[:, None], labels, sources)
    assert mixed["types"] == apart["types"] == 1
    assert mixed["ilisi"] > 0.8 > 0.5 > apart["ilisi"] and mixed["kbet"] > 0.8 > apart["kbet"]
    assert np.isnan(mixing(z[:60], labels[:60], sources[:60])["ilisi"])


def test_a_peer_is_given_the_genes_that_both_have(bench: Bench) -> None:
    half, rest = (bench.part(of, "label") for of in (~bench.aside, bench.aside))
    told = peers.labels_by("logistic", half, rest[:, 20:].copy(), 0)
    assert np.mean(told == rest.obs["label"].to_numpy(str)) < 0.9  # own genes are the first 16
    told = peers.labels_by("logistic", half, rest[:, :20].copy(), 0)
    assert np.mean(told == rest.obs["label"].to_numpy(str)) > 0.9


def rows() -> list[dict[str, Any]]:
    def row(data: str, variant: str, **scores: Any) -> dict[str, Any]:
        part = "clusters" if "ari" in scores else "labels"
        whole = {"part": part, "data": data, "task": "all", "seed": 0, "variant": variant}
        return {**whole, **scores}

    new = {"rejected_unseen": 0.5, "rejected_known": 0.25}
    return [
        row("x", OURS + "run", ari=0.5, best_of_ten=0.75),
        row("x", OURS + "run", ari=0.7, best_of_ten=0.75) | {"seed": 1},
        row("x", "scanpy", ari=0.4),
        row("y", OURS + "run", ari=0.2, best_of_ten=0.25),
        row("y", "scanpy", ari=0.8),
        row("z", "scanpy", ari=0.9),
        row("x", OURS + "map", **new) | {"task": "without B"},
        row("x", OURS + "annotate", error="concerto annotate: no") | {"task": "without B"},
        row("x", "knn", f1=0.875) | {"task": "without B"},
    ]


def test_tables_tell_means_over_sets_and_what_was_held_out() -> None:
    lines = report(rows(), ["y"]).splitlines()
    assert "| data set | task | held out | run | scanpy | oracle: best of ten" in "\n".join(lines)
    for line in (
        "| x | all | no | 0.60 | 0.40 | 0.75 |",
        "| y | all | yes | 0.20 | 0.80 | 0.25 |",
        "| z | all | no | - | 0.90 | - |",
        "| mean, all (2) |  |  | 0.40 | 0.60 | 0.50 |",
        "| mean, held out (1) |  |  | 0.20 | 0.80 | 0.25 |",
        "| mean, others (1) |  |  | 0.60 | 0.40 | 0.75 |",
        # A command that ended with an error caught nothing and lost all.
        "| x | without B | no | 0.00 · 1.00 | 0.50 · 0.25 | 0.88 |",
        "- concerto annotate: no",
    ):
        assert line in lines
    assert report([]) == "Nothing is computed.\n"


def test_the_tool_scores_what_is_missing_and_names_errors(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cell without counts is an error of ours, which is quick, and none of scanpy's recipe."""
    cells = read_h5ad(file)
    cells.X[0] = 0
    cells.write_h5ad(file)
    out, results = tmp_path / "table.md", tmp_path / "table.jsonl"
    call = [file, "--parts", "clusters", "--seeds", 1, "-o", out]
    assert tool(*call, "--report") == 0 and out.read_text() == "Nothing is computed.\n"
    assert "3 scores are not computed" in caplog.text
    capsys.readouterr()
    assert tool(*call, "--held-out", "small") == 0
    rows = list(kept(results).values())
    assert [row["variant"] for row in rows] == ["concerto run", "scanpy", "scanpy, scaled"]
    assert rows[0]["error"].startswith("concerto run cells.h5ad -o result --source-key source")
    want = "tools/quality delivered small.h5ad --parts clusters --seeds 1 -o table.md"
    assert {row["command"] for row in rows} == {want}
    said = capsys.readouterr().out
    assert said.strip() == out.read_text().strip()
    shown = " | ".join(f"{row['ari']:.2f}" for row in rows[1:])
    assert f"| small | all cells | yes | 0.00 | {shown} | 0.00 |" in said
    assert f"- {rows[0]['error']}" in said

    # A stop in the middle of a line: that score alone is computed again.
    whole = results.read_bytes()
    results.write_bytes(whole[:-40])
    assert tool(*call) == 0
    assert results.read_bytes().startswith(whole[:-40])
    assert [row["variant"] for row in kept(results).values()] == [r["variant"] for r in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.h5ad"], "none.h5ad"),
        (["FILE", "--left-out", "few"], "--left-out few: give a whole number, or all"),
        (["FILE", "--held-out", "large"], "--held-out large: is no set of this call"),
        (["FILE", "--seeds", "1", "1"], "a seed is given twice"),
        (["FILE", "-o", "nowhere/table.md"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_said_before_any_work(
    arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(file) if a == "FILE" else a for a in arguments]
    out = [] if "-o" in given else ["-o", str(file.with_name("table.md"))]
    assert tool(*given, *out) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert sorted(path.name for path in file.parent.iterdir()) == ["small.h5ad"]


@pytest.mark.slow
def test_the_commands_label_impute_and_cluster(bench: Bench) -> None:
    """All commands on small cells; what they read holds no label that they are to tell."""
    labels = PARTS["labels"].answers
    for kind in ("annotate", "map"):
        found = labels[OURS + kind](bench, "without t")
        assert found["known"] == 40 and found["unseen"] == 40
        assert found["accuracy_unrejected"] > 0.8
        assert len(found["commands"]) in (3, 4)
    reference, query = (
        read_h5ad(bench.folder / "desk0" / f"{name}.h5ad") for name in ("cells", "new-cells")
    )
    assert set(reference.obs) == {"label", "source"} and set(query.obs) == {"source"}
    assert set(reference.obs["label"]) == {"u", "v"} and query.n_obs == 80
    assert not set(reference.obs_names) & set(query.obs_names)
    assert PARTS["clusters"].answers[OURS + "run"](bench, "all cells")["ari"] > 0.5
    assert 0 <= PARTS["mixing"].answers[OURS + "run"](bench, "all cells")["ilisi"] <= 1
    assert PARTS["impute"].answers[OURS + "impute"](bench, "all cells")["r"] > 0.4
    assert not set(read_h5ad(bench.folder / "desk2" / "new-cells.h5ad").obsm)


@pytest.mark.slow
def test_goolam_as_a_user_has_it(shared_data: Path, tmp_path: Path) -> None:
    call = [shared_data / "goolam_embryo.h5ad", "--parts", "clusters", "labels"]
    assert tool(*call, "--left-out", 1, "--seeds", 0, "-o", tmp_path / "table.md") == 0
    told = kept(tmp_path / "table.jsonl").values()
    of = {(row["task"], row["variant"]): row for row in told}
    assert of["all cells", "concerto run"]["ari"] > 0.4
    assert of["all types", "concerto annotate"]["accuracy_unrejected"] > 0.7
    assert of["without 4cell", "concerto map"]["unseen"] == 32
