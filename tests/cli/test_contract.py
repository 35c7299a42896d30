"""What scripts rely on: commands, options, what they leave, keys, streams, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from concerto_tf._version import __version__

SHARED = ["--seed", "--json", "--quiet", "--debug"]
TRAINING = "--genes --method --preset --epochs --batch-size --learning-rate --strategy".split()
OPTIONS = {
    "run": [*"--output --source-key --label-key --layer --modality --workers".split(), *TRAINING],
    "convert": [
        "--output",
        "--source-key",
        "--label-key",
        "--layer",
        "--modality",
        "--shards",
        "--workers",
        "--compression",
        "--like",
        "--orthologs",
    ],
    "inspect": ["--verify"],
    "train": ["--output", "--from", "--modality", *TRAINING],
    "embed": ["--output", "--source-key", "--modality", "--orthologs"],
    "cluster": ["--output", "--algorithm", "--resolution", "--n-clusters", "--rep"],
    "evaluate": ["--label-key", "--source-key", "--rep"],
    "finetune": ["--label-key", "--output", "--target", "--end-to-end", "--epochs"],
    "annotate": ["--output", "--alpha", "--source-key", "--modality"],
    "map": [
        "--reference",
        "--query",
        "--output",
        "--label-key",
        "--finetune",
        "--k",
        "--levels",
        "--adapt",
        "--alpha",
        "--orthologs",
        "--modality",
    ],
    "impute": ["--reference", "--query", "--output", "--modality", "--k"],
    "explain": ["--output", "--groupby", "--modality"],
    "score": ["--output", "--set"],
    "pseudotime": ["--output", "--root", "--groupby", "--rep"],
    "compare": "--output --condition --control --label-key --sample-key --sets --alpha".split(),
    "simulate": [
        "--output",
        "--cells",
        "--genes",
        "--groups",
        "--sizes",
        "--dropout-mid",
        "--de-scale",
        "--batches",
        "--paths",
        "--path-from",
    ],
    "export": ["--output"],
    "demo": ["--output"],
}
METRICS = [
    "cells",
    "genes",
    "ari_kmeans",
    "nmi_kmeans",
    "ari_leiden",
    "nmi_leiden",
    "asw_label",
    "knn_accuracy",
    "knn_macro_f1",
    "ilisi",
    "asw_source",
    "kbet",
    "cilisi",
    "bras",
    "isolated_labels",
    "graph_connectivity",
    "pcr",
]
COST = [
    "seconds_convert",
    "seconds_train",
    "seconds_embed",
    "seconds_cluster",
    "seconds_umap",
    "seconds_markers",
    "seconds_scores",
    "seconds_result",
    "cells_per_second_train",
    "peak_rss_bytes",
]


@pytest.mark.parametrize("command", OPTIONS)
def test_options(command: str, concerto) -> None:
    answer = concerto(command, "--help")
    assert answer.code == 0 and answer.err == ""
    words = answer.out.replace(",", " ").split()
    missing = [name for name in [*OPTIONS[command], *SHARED] if name not in words]
    assert not missing
    assert ("-o" in words) == ("--output" in OPTIONS[command])


def test_help_names_all_commands(concerto) -> None:
    answer = concerto("--help")
    assert answer.code == 0
    assert not [name for name in OPTIONS if not re.search(rf"\n    {name}\s", answer.out)]


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from concerto_tf.cli import main; main(['run', '--help']); "
        "heavy = {'tensorflow', 'keras', 'scanpy', 'anndata', 'h5py', 'sklearn', 'numpy', 'rich'}; "
        "import time; print(time.process_time(), file=sys.stderr); "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        times.append(float(done.stderr))  # on the processor, whatever else the machine is doing
    assert min(times) < 0.5


def test_version(concerto) -> None:
    assert concerto("--version").out == f"concerto_tf {__version__}\n"


def test_command_is_installed(tmp_path: Path) -> None:
    """The entry point by its name, in a process of its own: code, streams, no traceback."""
    command = Path(sys.executable).with_name("concerto")
    if not command.exists():
        pytest.skip("the package is not installed here")
    done = subprocess.run(
        [command, "inspect", tmp_path / "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    if lines[0].startswith("starting: "):  # on a slow machine
        lines = lines[1:]
    assert len(lines) == 1 and lines[0].startswith("concerto: ")


def test_run_leaves_what_it_promises(finished) -> None:
    out, answer = finished
    for name in (
        "records/manifest.json",
        "model/model.keras",
        "model/training.csv",
        "result.h5ad",
        "metrics.json",
        "figures/training.png",
        "figures/umap_label.png",
        "figures/umap_source.png",
        "figures/umap_cluster.png",
    ):
        assert (out / name).stat().st_size > 0, name
    assert not [path for path in out.rglob(".*")] and not (out / "model/checkpoint").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    report = str(out / "report.html")
    assert answer.last == metrics | {"report": report} and answer.out.count("\n") == 1
    assert Path(report).stat().st_size > 0
    assert not [key for key in [*METRICS, *COST] if key not in metrics]
    assert metrics["cells"] == 60 and metrics["genes"] == 40
    assert all(np.isfinite(value) and value >= 0 for value in metrics.values())


def test_result_holds_the_input_s_cells_and_all_that_was_with_them(
    finished, cells_file: Path
) -> None:
    result = anndata.read_h5ad(finished[0] / "result.h5ad")
    given = anndata.read_h5ad(cells_file)
    assert list(result.obs_names) == list(given.obs_names)
    pd.testing.assert_frame_equal(result.obs[given.obs.columns], given.obs)
    pd.testing.assert_frame_equal(result.var, given.var)
    assert (result.X != given.X).nnz == 0
    np.testing.assert_array_equal(result.layers["scaled"], given.layers["scaled"])
    np.testing.assert_array_equal(result.obsm["X_spatial"], given.obsm["X_spatial"])
    assert result.uns["study"]["name"] == "test"
    z = result.obsm["X_concerto"]
    assert z.dtype == np.float32 and z.shape[0] == 60 and np.isfinite(z).all()
    assert result.obsm["X_umap"].shape == (60, 2)
    assert isinstance(result.obs["concerto_cluster"].dtype, pd.CategoricalDtype)


def test_embedding_is_in_the_order_of_the_input(finished, concerto, tmp_path: Path) -> None:
    """A cell has the same embedding wherever it stands."""
    result = anndata.read_h5ad(finished[0] / "result.h5ad")
    order = np.random.default_rng(0).permutation(60)[:45]
    result[order].copy().write_h5ad(tmp_path / "some.h5ad")
    out = tmp_path / "embedded.h5ad"
    answer = concerto(
        "embed",
        finished[0] / "model",
        tmp_path / "some.h5ad",
        "-o",
        out,
        "--source-key",
        "batch",
        "--json",
    )
    assert answer.last == {"cells": 45, "dimensions": 128, "output": str(out)} | {
        "dimensions": result.obsm["X_concerto"].shape[1]
    }
    found = anndata.read_h5ad(out)
    assert list(found.obs_names) == list(result.obs_names[order])
    np.testing.assert_allclose(
        found.obsm["X_concerto"], result.obsm["X_concerto"][order], rtol=1e-4, atol=1e-4
    )


def test_records_are_embedded_clustered_and_scored(finished, concerto, tmp_path: Path) -> None:
    """Records hold no genes' values that an `.h5ad` could give back, but all else goes on."""
    run, out, grouped = finished[0], tmp_path / "out.h5ad", tmp_path / "grouped.h5ad"
    assert concerto("embed", run / "model", run / "records", "-o", out, "--quiet").code == 0
    found = anndata.read_h5ad(out)
    assert {"source", "cell_type"} <= set(found.obs)
    kmeans = ["--algorithm", "kmeans", "--n-clusters", 3]
    answer = concerto("cluster", out, "-o", grouped, *kmeans, "--json")
    assert answer.last == {"cells": 60, "clusters": 3, "output": str(grouped)}
    assert anndata.read_h5ad(grouped).obs["concerto_cluster"].nunique() == 3
    answer = concerto("evaluate", grouped, "--label-key", "cell_type", "--json")
    given = json.loads((run / "metrics.json").read_text())
    assert answer.last["ari_kmeans"] == pytest.approx(given["ari_kmeans"])


def test_evaluate_keys(finished, concerto) -> None:
    result = finished[0] / "result.h5ad"
    answer = concerto(
        "evaluate", result, "--label-key", "cell_type", "--source-key", "batch", "--json"
    )
    assert answer.code == 0 and answer.err == ""
    assert list(answer.last) == METRICS
    table = concerto("evaluate", result, "--source-key", "batch", "--rep", "X_umap")
    assert table.code == 0 and [line.split()[0] for line in table.out.splitlines()] == [
        "cells",
        "genes",
        "asw_source",
        "kbet",
        "ilisi",
        "pcr",
    ]


def test_cells_without_a_label_are_left_out_of_scores(finished, concerto, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(finished[0] / "result.h5ad")
    shifted = adata.obs["cell_type"].astype(object)
    shifted.iloc[:10] = np.nan
    adata.obs["some"] = shifted
    adata.write_h5ad(tmp_path / "some.h5ad")
    adata[10:].copy().write_h5ad(tmp_path / "rest.h5ad")
    scores = [
        concerto("evaluate", tmp_path / name, "--label-key", "some", "--json").last
        for name in ("some.h5ad", "rest.h5ad")
    ]
    assert scores[0]["cells"] == 60 and scores[1]["cells"] == 50
    assert scores[0]["asw_label"] == pytest.approx(scores[1]["asw_label"])
    records = tmp_path / "records"
    answer = concerto("convert", tmp_path / "some.h5ad", "-o", records, "--label-key", "some")
    assert answer.code == 0 and "'some': 10 cells without a value" in answer.err


def test_inspect(finished, concerto) -> None:
    run = finished[0]
    found = concerto("inspect", run / "records", "--json").last
    assert found["kind"] == "records" and found["cells"] == 60 and found["genes"] == 40
    assert found["sources"] == {"first": 30, "second": 30} and found["labels"] == {"cell_type": 3}
    assert concerto("inspect", run, "--json").last == found
    model = concerto("inspect", run / "model", "--json").last
    assert model["kind"] == "model" and model["sources"] == ["first", "second"]
    assert concerto("inspect", run / "model/model.keras", "--json").last == model
    assert concerto("inspect", run / "model").out.startswith("kind")


def test_several_labels_are_kept_in_records(concerto, cells_file, tmp_path: Path) -> None:
    answer = concerto(
        "convert",
        cells_file,
        "-o",
        tmp_path / "records",
        *"--label-key cell_type --label-key batch --shards 3 --compression gzip --json".split(),
    )
    assert answer.last["labels"] == {"cell_type": 3, "batch": 2}
    assert answer.last["shards"] == 3 and answer.last["compression"] == "gzip"


def test_export(finished, concerto, tmp_path: Path) -> None:
    answer = concerto("export", finished[0] / "model", "-o", tmp_path / "served", "--json")
    assert answer.last == {"saved_model": str(tmp_path / "served")}
    assert (tmp_path / "served" / "saved_model.pb").exists()


def test_streams(concerto, cells_file: Path, tmp_path: Path) -> None:
    """Results on stdout, progress on stderr; only errors where quiet is asked for."""
    answer = concerto("convert", cells_file, "-o", tmp_path / "loud")
    assert answer.out.startswith("kind ") and "{" not in answer.out
    assert "convert: 60 of 60 cells" in answer.err and "\x1b" not in answer.err
    answer = concerto("convert", cells_file, "-o", tmp_path / "quiet", "--quiet")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    answer = concerto("convert", cells_file, "-o", tmp_path / "both", "--quiet", "--json")
    assert answer.err == "" and answer.last["cells"] == 60 and answer.out.count("\n") == 1


def test_debug_shows_the_traceback(concerto, tmp_path: Path) -> None:
    answer = concerto("convert", tmp_path / "no.h5ad", "-o", tmp_path / "out", "--debug")
    assert answer.code == 2 and "Traceback" in answer.err
    assert answer.err.splitlines()[-1].startswith("concerto: ")


def test_reader_that_stops_early_is_no_fault(finished) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "concerto_tf.cli", "inspect", finished[0] / "records"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    said = done.stderr.replace("starting: TensorFlow is being loaded\n", "")  # where that is slow
    assert (done.returncode, said) == (0, "")
