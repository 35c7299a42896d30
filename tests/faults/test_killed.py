"""Commands that are killed anywhere: run again, they end as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# The file that says that all is done.
LAST = {
    "convert": "records/manifest.json",
    "overwrite": "records/manifest.json",
    "train": "model/training.json",
    "finetune": "fine/training.json",
    "export": "served/saved_model.pb",
    "compare": "compared/compare.json",
}
#: How often each command is killed by default, and where slow tests are asked for. A kill costs
#: seconds where much is imported or trained anew.
KILLS = {
    "convert": (3, 20),
    "overwrite": (2, 14),
    "train": (1, 12),
    "finetune": (0, 5),
    "run": (0, 6),
    "embed": (2, 10),
    "annotate": (0, 4),
    "map": (0, 6),
    "impute": (0, 4),
    "explain": (0, 4),
    "export": (0, 8),
    "cluster": (0, 4),
    "cluster run": (0, 6),
    "score": (1, 4),
    "pseudotime": (0, 4),
    "compare": (0, 5),
    "simulate": (1, 4),
    "simulate records": (1, 6),
}


@pytest.mark.parametrize(
    ("command", "n"),
    [
        *((name, few) for name, (few, _) in KILLS.items() if few),
        *(pytest.param(name, n, marks=pytest.mark.slow) for name, (_, n) in KILLS.items()),
    ],
)
def test_killed_and_run_again(
    command: str, n: int, victim, given, content_of, tmp_path: Path, count: Callable
) -> None:
    undisturbed = given.undisturbed(command)
    whole, old, last = undisturbed["content"], undisturbed["old"], LAST.get(command)
    assert last is None or last in whole
    before = {path: path.stat().st_mtime_ns for path in given.folder.rglob("*")}
    rng, folder, killed = np.random.default_rng(n), tmp_path / "killed", 0
    while killed < n:
        line, out = given.command(command, folder)
        if killed % 2:
            when: dict[str, Any] = {"seconds": rng.uniform(0, undisturbed["seconds"])}
        else:
            when = {"event": int(rng.integers(1, undisturbed["events"] + 1))}
        code = victim(*line, folder=folder, **when)["code"]
        left = content_of(out)
        if code == 0:  # done before the time was over
            assert left == whole
        else:
            assert code == -9, when
            killed += 1
            # What bears a final name is whole, and with the last of them all is.
            if command not in ("cluster run", "run"):  # whose notes say what is not done
                known = {*whole.items(), *old.items()}
                # Of a comparison before its last file nothing else is promised.
                assert {*left.items()} <= known or command == "compare", when
            assert last not in left or left in (whole, old), when
            told = victim(*line, folder=folder)
            if command == "export" and left:
                assert told["code"] == 2, told  # does not write over what is there
            else:
                assert told["code"] == 0, (when, told["stderr"], sorted(left))
        found = content_of(out)
        assert found == whole, (when, {key for key in whole if found.get(key) != whole[key]})
        count("harmless")
        if out.is_dir() and command != "export":
            assert not [path for path in out.rglob("*") if path.name.startswith(".tmp-")]
            assert not any((out / part).exists() for part in ("spool", "checkpoint", "plan.json"))
        shutil.rmtree(folder)
    # Nothing is lost of what was given.
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if after[path] != before[path]} <= reference(given, command)


def reference(given: Any, command: str) -> set[Path]:
    """What `map` may write beside its output: the reference, which is kept with the model."""
    model = given.folder / "model"
    return {model, *(model / "reference").rglob("*"), model / "reference"} & (
        {*model.rglob("*"), model} if command == "map" else set()
    )
