"""Two writers of one folder: one of them writes, the other is told, and nothing is mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from concerto_tf import inspect


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture(scope="session")
def two(cells, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two inputs that are alike in all but their values. Not to be changed."""
    folder = tmp_path_factory.mktemp("two")
    cells.write_h5ad(folder / "A.h5ad")
    other = cells.copy()
    other.X = other.X * 2
    other.write_h5ad(folder / "B.h5ad")
    return folder


@pytest.mark.parametrize("n", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("over", [False, True], ids=["new", "overwrite"])
def test_two_conversions(
    over: bool, n: int, victim, two: Path, tmp_path: Path, count: Callable
) -> None:
    """The second comes and goes at every step of the first: forced, not left to chance."""
    options = ["--shards", 3, "--quiet", *(["--overwrite"] if over else [])]

    def line(name: str, folder: Path) -> list[Any]:
        return ["convert", two / f"{name}.h5ad", "-o", folder / "records", *options]

    whole, events = {}, 0
    for name in "AB":
        (tmp_path / name).mkdir()
        told = victim(*line(name, tmp_path / name), folder=tmp_path / name)
        assert told["code"] == 0
        whole[name], events = content(tmp_path / name / "records"), told["events"]
    assert whole["A"] != whole["B"]

    met = 0
    for event in np.unique(np.linspace(1, events, n).astype(int)):
        folder = tmp_path / "out"
        folder.mkdir()
        if over:
            shutil.copytree(tmp_path / "A" / "records", folder / "records")
            (folder / "records" / "manifest.json").write_text("{}")
        told = victim(*line("A", folder), folder=folder, event=int(event), rival=line("B", folder))
        codes = (told["code"], told["rival"])
        count("noticed" if 2 in codes else "harmless")
        assert "Traceback" not in told["stderr"] and set(codes) <= {0, 2}, told
        found = content(folder / "records")
        if codes == (0, 2):
            assert found == whole["A"], (event, told)
            assert told["stderr"].count("\n") == 1
            met += "another process is at work there" in told["stderr"]
        else:  # one was through before the other looked
            assert found == whole["A" if over and codes[0] == 0 else "B"], (event, told)
        assert inspect(folder / "records", verify=True)["problems"] == []
        shutil.rmtree(folder)
    assert met >= n // 2


# Which write a folder, or one of their inputs' own; and what of its size they are met at.
FOLDERS = ["train", "finetune", "run", "export", "cluster run", "compare", "simulate records"]
FILES = ["embed", "map", "explain", "simulate"]
MEETINGS = (0.02, 0.3, 0.6, 0.95)


@pytest.mark.parametrize(
    ("command", "meetings"),
    [
        ("export", MEETINGS[1:2]),
        ("simulate records", MEETINGS[::2]),
        *(pytest.param(name, MEETINGS, marks=pytest.mark.slow) for name in FOLDERS + FILES),
    ],
)
def test_two_of_every_command(
    command: str,
    meetings: tuple[float, ...],
    victim,
    given,
    content_of,
    tmp_path: Path,
    judge: Callable,
) -> None:
    """Both are the same call: one of them may do the work, or be told, but neither breaks it."""
    alone, folder = given.undisturbed(command), tmp_path / "out"
    for share in meetings:
        line, out = given.command(command, folder)
        event = max(1, round(share * alone["events"]))
        told = victim(*line, folder=folder, event=event, rival=line)
        codes = {told["code"], told["rival"]}
        assert 0 in codes, told
        assert command in FOLDERS or codes == {0}, told
        left = content_of(out)
        judge(max(codes), told["stderr"], lambda left=left: left == alone["content"])
        assert left == alone["content"], (share, told)
        shutil.rmtree(folder)
