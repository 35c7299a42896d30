"""`tools/scale` in small: every stage runs, and memory does not grow with the cells."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "scale"
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


def scale(folder: Path, *options: object) -> tuple[dict[tuple[str, int], dict], str]:
    """What a run of the tool measured, by stage and cells, and what it printed."""
    ran = subprocess.run(
        [
            sys.executable,
            str(TOOL),
            "--results",
            folder / "scale.jsonl",
            "--folder",
            folder,
            *map(str, options),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = map(json.loads, (folder / "scale.jsonl").read_text().splitlines())
    return {(row["stage"], row["cells"]): row for row in rows}, ran.stdout


@pytest.mark.slow
def test_conversion_is_measured_once(tmp_path: Path) -> None:
    options = ["--cells", 3000, "--genes", 300, "--stages", "simulate", "convert"]
    rows, printed = scale(tmp_path, *options)
    assert set(rows) == {(s, n) for s in ("simulate", "convert") for n in (1000, 3000)}
    for row in rows.values():
        assert 0 < row["seconds"] < 100 and row["cpu_seconds"] > 0
        assert 20 < row["peak_bytes"] / 2**20 < 4000
    assert "| convert |" in printed
    # What is there is not run again, and no cells are left lying about.
    again, _ = scale(tmp_path, *options)
    assert again == rows
    assert [path.name for path in tmp_path.iterdir()] == ["scale.jsonl"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """All stages, 300 genes; from 60,000 cells to twice as many nothing grows by a tenth."""
    rows, printed = scale(
        tmp_path, "--cells", 60_000, 120_000, "--genes", 300, "--figure", tmp_path / "f" / "s.png"
    )
    for stage in ("simulate", "convert", "train", "train-all", "embed", "reference", "map"):
        assert f"| {stage} |" in printed
    assert (tmp_path / "f" / "s.png").stat().st_size > 1000
    for stage in ("convert", "train", "embed"):
        small, large = (rows[stage, n]["peak_bytes"] for n in (60_000, 120_000))
        assert large < 1.1 * small, stage


@pytest.mark.slow
def test_search_agreement_and_graph_are_measured(tmp_path: Path) -> None:
    rows, _ = scale(tmp_path, "--embeddings", 3000, "--agreement", 1200, "--graph", 1500)
    search, agreed = rows["search", 3000], rows["agreement", 1200]
    assert search["recall"] > 0.95 and search["labels_alike"] > 0.97
    assert search["microseconds"] > 0 and search["index_bytes"] < 3000 * 128 * 4
    made = rows["graph", 1500]
    assert made["clusters"] > 5 and made["umap_bytes"] > 1e7 and made["neighbours_seconds"] > 0
    assert agreed["ari"] >= 0.9 * agreed["ari_of_two_seeds"] and agreed["recall"] > 0.95
    assert [path.name for path in tmp_path.iterdir()] == ["scale.jsonl"]
