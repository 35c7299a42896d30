"""``--option NAME=VALUE``: arguments of a method's model on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from concerto_tf.cli.parsing import option
from concerto_tf.models import load_model


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("clusters=8", 8),
        ("dropout=0.25", 0.25),
        ("dropout=1e-3", 1e-3),
        ("standardize=false", False),
        ("standardize=True", True),
        ("head=none", None),
        ("readout=teacher", "teacher"),
        ("backbone=512,128,32", [512, 128, 32]),
        ("backbone=[16, 8]", [16, 8]),
    ],
)
def test_values_are_what_they_look_like(text: str, value: Any) -> None:
    name, read = option(text)
    assert name == text.partition("=")[0]
    assert read == value and type(read) is type(value)


def train(concerto, records, out, *asked):
    return concerto("train", records, "-o", out, "--epochs", 1, "--quiet", *asked)


@pytest.fixture(scope="module")
def records(tmp_path_factory, cells_file):
    import concerto_tf

    path = tmp_path_factory.mktemp("options") / "records"
    concerto_tf.convert(cells_file, path)
    return path


def test_options_reach_the_model(concerto, records, tmp_path) -> None:
    out = tmp_path / "model"
    asked = ["--method", "cicl", "--option", "clusters=3", "--option", "width=8"]
    asked += ["--option", "head_units=12,6", "--option", "depth=1"]
    assert train(concerto, records, out, *asked).code == 0
    model = load_model(out)
    assert (model.clusters, model.width, model.head_units, model.depth) == (3, 8, (12, 6), 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--option", "clusterz=3"], "concerto has no option 'clusterz'; it has align_sources, "),
        (["--option", "clusters=3"], "concerto has no option 'clusters'"),
        (["--option", "dropout=much"], "concerto cannot be made with dropout='much'"),
        (["--option", "dropout=2"], "dropout=2: rate must lie in [0, 1), not 2.0"),
        (["--option", "dropout"], "'dropout' is not NAME=VALUE"),
        (["--option", "dropout=.1", "--option", "dropout=.2"], "dropout is given twice"),
        (["--option", "batch_size=3"], "no option 'batch_size'"),
        (["--option", "modalities=3"], "no option 'modalities'"),
        (["--preset", "papper"], "concerto has no preset 'papper'; it has default, paper"),
    ],
)
@pytest.mark.parametrize("command", ["train", "run"])
def test_unsuitable_ones_are_told(
    concerto, records, cells_file, tmp_path, command, asked, said
) -> None:
    out = tmp_path / "out"
    answer = concerto(command, records if command == "train" else cells_file, "-o", out, *asked)
    answer.mendable(said)
    assert not out.exists() or not any(out.iterdir())


def test_run_takes_them_too(concerto, cells_file, tmp_path) -> None:
    out = tmp_path / "run"
    asked = ["--option", "hidden_units=12", "--epochs", 1, "--quiet"]
    assert concerto("run", cells_file, "-o", out, *asked).code == 0
    assert load_model(out / "model").hidden_units == 12
