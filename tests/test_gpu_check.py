"""`tools/gpu_check` on two logical CPU devices: what it would leave where GPUs are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow  # each figure is made in a process of its own


def gpu_check(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, ROOT / "tools" / "gpu_check", "--cells", 96, "--genes", 40, *arguments]
    return subprocess.run([str(part) for part in line], capture_output=True, text=True)


def test_devices_are_compared_timed_and_used_together(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    small = ["--batch-size", 32, "--steps", 1, "--quick", "--device", "CPU"]
    ran = gpu_check(*small, "-o", path)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(path.read_text())
    assert found["machine"]["devices"] == ["CPU:0", "CPU:1"] and found["within_bounds"]
    assert found["equality"]["CPU:0"] == {"embedding": 0, "weights": 0}
    assert 0 < found["equality"]["all"]["weights"] < 1e-3
    assert list(found["together"]) == ["1", "2"]
    rates = [*found["cells_per_second"].values(), *found["together"].values()]
    assert len(rates) == 11 and min(rates) > 0
    assert "concerto, 2 together" in ran.stdout


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    ran = gpu_check("-o", tmp_path / "found.json")
    assert ran.returncode == 2 and ran.stderr.endswith("TensorFlow sees no GPU here\n")
    assert not (tmp_path / "found.json").exists()
