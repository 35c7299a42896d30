"""The examples run as users run them, with warnings as errors, and say what they promise."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
# Keras' own, with NumPy 2, when it writes weights; see setup.cfg.
KERAS_SAVING = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def run(*command: str) -> str:
    """What `python COMMAND` prints."""
    ran = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONWARNINGS": f"error,{KERAS_SAVING}"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def numbers(line: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d+\.\d+", line)]


def test_every_example_is_tested_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tested = set(re.findall(r'EXAMPLES / "(\w+\.py)"', Path(__file__).read_text("utf-8")))
    listed = set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text("utf-8")))
    assert scripts == tested == listed


def test_quickstart(tmp_path: Path) -> None:
    import anndata

    run(str(EXAMPLES / "quickstart.py"), str(tmp_path / "out.h5ad"))
    adata = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    assert adata.shape == (700, 765)
    assert np.isfinite(adata.obsm["X_concerto"]).all()
    assert adata.obsm["X_umap"].shape == (700, 2)
    # Clusters that say something of the cell types, whatever their number.
    crossed = adata.obs.groupby(["concerto_cluster", "bulk_labels"], observed=True).size()
    assert crossed.groupby(level=0, observed=True).max().sum() > 0.6 * 700


def test_quickstart_is_about_ten_lines() -> None:
    text = (EXAMPLES / "quickstart.py").read_text("utf-8")
    shown = text.split("# ---- from here")[1].split("# ---- to here")[0]
    assert 1 <= len(shown.strip().splitlines()) <= 10


@pytest.mark.stack
def test_blocks_in_your_model() -> None:
    classifier, views, embedding = run(str(EXAMPLES / "blocks_in_your_model.py")).splitlines()
    first, *_, last = numbers(classifier)
    assert last > first and last > 0.5  # of three groups
    first, *_, last = numbers(views)
    assert last < first
    assert embedding == "embedding: (1024, 32)"


@pytest.mark.slow
def test_several_devices() -> None:
    losses, embedding = run(str(EXAMPLES / "several_devices.py")).splitlines()
    assert losses.startswith("2 devices")
    first, *_, last = numbers(losses)
    assert last < first
    assert embedding == "embedding: (1024, 32)"


@pytest.mark.slow  # tests/export/test_saved_model.py has the same in the default run
def test_serve_without_concerto(tmp_path: Path) -> None:
    answers = [
        "concerto_tf imported: False",
        "embedding: [2, 32]",
        "share of unknown genes: [0.0, 0.5]",
    ]
    script = str(EXAMPLES / "serve_without_concerto.py")
    assert run(script).splitlines() == answers


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Records of small counts in shards, and the sum of these."""
    from concerto_tf.records import convert
    from concerto_tf.simulate import SplatParams, simulate_cells

    cells = simulate_cells(SplatParams.droplet(n_cells=300, n_genes=200, seed=1))
    folder = tmp_path_factory.mktemp("simulated")
    cells.write_h5ad(folder / "cells.h5ad")
    convert(cells, folder / "records", shards=3, drop_empty=True)
    return folder, int(cells.X.sum())


def needs(*packages: str) -> None:
    """Skips the test where one is not installed, without importing it beside TensorFlow."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")


def lines_shown(path: Path) -> int:
    shown = path.read_text("utf-8").split("# ---- from here")[1].split("# ---- to here")[0]
    return sum(bool(line.strip()) for line in shown.splitlines())


def test_records_without_concerto(simulated: tuple[Path, int]) -> None:
    script = EXAMPLES / "records_without_concerto.py"
    cells, counts, imported = run(str(script), str(simulated[0] / "records")).splitlines()
    assert cells == "cells: 300 of 300" and counts == f"counts: {simulated[1]}"
    assert imported == "concerto_tf imported: False"
    assert lines_shown(script) <= 20


def test_records_in_pytorch(simulated: tuple[Path, int]) -> None:
    needs("tfrecord")
    script = EXAMPLES / "records_in_pytorch.py"
    cells, counts = run(str(script), str(simulated[0] / "records")).splitlines()
    assert cells == "cells: 300 of 300" and counts == f"counts: {simulated[1]}"
    assert lines_shown(script) <= 20


def test_to_onnx(simulated: tuple[Path, int], tmp_path: Path) -> None:
    needs("tf2onnx", "onnxruntime")
    from concerto_tf.models import Concerto, save_model
    from concerto_tf.records import Records

    records = Records(simulated[0] / "records")
    small = {"units": 8, "hidden_units": 8, "attention_units": 4}
    save_model(Concerto.from_records(records, **small), tmp_path / "model.keras")
    script = str(EXAMPLES / "to_onnx.py")
    given = [str(tmp_path / "model.keras"), str(simulated[0] / "cells.h5ad")]
    told, difference = run(script, *given, str(tmp_path / "m.onnx")).splitlines()[-2:]
    assert told == "cells: 64, dimensions: 8"
    assert float(difference.rsplit(" ", 1)[1]) < 1e-5


def test_track_with_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow", "alembic")
    # Of others: MLflow's own warnings are errors here otherwise.
    monkeypatch.setattr(sys.modules[__name__], "KERAS_SAVING", f"{KERAS_SAVING},ignore")
    told = run(str(EXAMPLES / "track_with_mlflow.py"), str(tmp_path)).splitlines()[-3:]
    assert told[:2] == ["rounds: 5", "loss falls: True"] and "MODEL_CARD.md" in told[2]


def test_track_with_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setattr(sys.modules[__name__], "KERAS_SAVING", f"{KERAS_SAVING},ignore")
    rounds, loss, kept = run(str(EXAMPLES / "track_with_wandb.py"), str(tmp_path)).splitlines()[-3:]
    assert rounds == "rounds: 5" and numbers(loss)[0] > 0 and kept == "kept: 1"


@pytest.mark.slow
def test_tune_with_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("optuna")
    monkeypatch.setattr(sys.modules[__name__], "KERAS_SAVING", f"{KERAS_SAVING},ignore")
    for trials in ("1", "2"):  # the second call adds to the first
        told = run(str(EXAMPLES / "tune_with_optuna.py"), str(tmp_path), trials)
    total, default, best = told.splitlines()[-3:]
    assert total == "trials: 3" and 0.5 < numbers(default)[0] <= numbers(best)[0] <= 1


@pytest.mark.slow
def test_annotate(tmp_path: Path) -> None:
    lines = run(str(EXAMPLES / "annotate.py"), str(tmp_path / "out.h5ad")).splitlines()
    (told, _), (seen,), (unseen, _), (auroc,) = (
        [float(x) for x in re.findall(r"\b\d+(?:\.\d+)?\b", line.partition(": ")[2])][:2]
        if i in (0, 2)
        else numbers(line)[:1]
        for i, line in enumerate(lines)
    )
    assert told > 0.7 and seen < 0.2 and unseen > 0.5 and auroc > 0.85


@pytest.mark.slow
def test_map_query() -> None:
    right, known, new, nearest = run(str(EXAMPLES / "map_query.py")).splitlines()[-4:]
    assert numbers(right)[-1] > 0.7
    assert numbers(new)[-1] < numbers(known)[-1] - 0.1
    assert nearest.startswith("the new type lies nearest to: ")


@pytest.mark.slow
def test_impute() -> None:
    *lines, units = run(str(EXAMPLES / "impute.py")).splitlines()
    assert len(lines) == 3 and min(numbers(line)[-1] for line in lines) > 0.7
    assert units == "units: log1p of counts scaled to 10,000 per cell"


@pytest.mark.slow
def test_explain(tmp_path: Path) -> None:
    lines = run(str(EXAMPLES / "explain.py"), str(tmp_path)).splitlines()
    markers = dict(line.split(": ") for line in lines if ": " in line and "/" not in line)
    assert {"CD79A", "MS4A1"} & set(markers["CD19+ B"].split(", "))
    assert "NK" in markers["highest cytotoxic score"]
    assert (tmp_path / "signatures.png").stat().st_size > 0


def test_simulate(tmp_path: Path) -> None:
    lines = run(str(EXAMPLES / "simulate.py"), str(tmp_path)).splitlines()
    assert lines == ["records: 3000 cells of 3 groups", "h5ad: paths.h5ad"]
    assert (tmp_path / "records" / "manifest.json").exists() and (tmp_path / "paths.h5ad").exists()


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    composition, markers, modules = run(str(EXAMPLES / "compare.py"), str(tmp_path)).splitlines()[
        -3:
    ]
    assert composition == "composition: 0 significant, in none"
    assert markers.startswith("markers: 10 significant, in Group1")
    assert modules == "modules: 1 significant, in Group1"
    assert (tmp_path / "figures" / "heatmap.png").stat().st_size > 0


@pytest.mark.slow
def test_case_study(tmp_path: Path) -> None:
    said = dict(
        line.split(": ", 1)
        for line in run(str(EXAMPLES / "case_study.py"), str(tmp_path)).splitlines()[-3:]
    )
    for table in ("modules", "gsea"):  # both sets that were changed, in the cells where they were
        assert "monocyte: interferon response" in said[table]
        assert "monocyte: MHC II" in said[table]
        assert "cytotoxicity" not in said[table]
    assert "monocyte: CD74" in said["markers"] and "monocyte: IFITM3" in said["markers"]
    assert (tmp_path / "compared" / "figures" / "heatmap.png").stat().st_size > 0


def test_quickstart_in_the_readme_is_the_example() -> None:
    text = (EXAMPLES / "quickstart.py").read_text("utf-8")
    shown = text.split("# ---- from here")[1].split("# ---- to here")[0]
    readme = (ROOT / "README.md").read_text("utf-8")
    for line in shown.strip().splitlines():
        assert line in readme
