"""The command line spells the arguments of messages as its own options."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys

import pytest

import concerto_tf
from concerto_tf.cli.arguments import make_parser
from concerto_tf.cli.spelling import line, message, spelled
from concerto_tf.errors import Argument, InputError

# Arguments of the Python calls that the command line gives by itself, or has no option for.
PYTHON_ONLY = {
    "run": {"training"},
    "convert": {"source_name", "chunk_cells", "skip_damaged"},
    "train": {"callbacks", "model"},
    "finetune": {"consistency", "callbacks"},
    "simulate": {"params"},
}

REQUIRED = {
    "run": ["in.h5ad", "-o", "out"],
    "convert": ["in.h5ad", "-o", "out"],
    "train": ["records", "-o", "out"],
    "embed": ["model", "in.h5ad", "-o", "out"],
    "map": ["model", "--query", "q.h5ad", "-o", "out"],
    "score": ["in.h5ad", "--set", "exhaustion", "-o", "out"],
    "cluster": ["in.h5ad", "-o", "out"],
    "simulate": ["-o", "out"],
}


def asked(command: str):
    return make_parser().parse_args([command, *REQUIRED[command]])


@pytest.mark.parametrize(
    ("command", "argument", "option"),
    [
        ("run", Argument("inputs"), "input"),
        ("run", Argument("out"), "-o DIR"),
        ("train", Argument("out"), "-o MODEL"),
        ("train", Argument("start", "other"), "--from other"),
        ("train", Argument("genes", "all"), "--genes all"),
        ("score", Argument("genes", "genes.txt"), "--set genes.txt"),
        ("embed", Argument("cells"), "input"),
        ("embed", Argument("modalities", {"adt": "obsm:a"}), "--modality adt=obsm:a"),
        ("embed", Argument("genes", "all", of="train"), "--genes all"),
        ("map", Argument("adapt", "none"), "--adapt none"),
        ("map", Argument("reference"), "--reference REF"),
        ("map", Argument("label_keys", ["a", "b"], of="convert"), "--label-key a --label-key b"),
        ("cluster", Argument("algorithm"), "--algorithm leiden|kmeans|soft-kmeans|consensus"),
        ("simulate", Argument("workers", 2), "--workers 2"),
        ("embed", Argument("params"), None),
    ],
    ids=str,
)
def test_spelling(command: str, argument: Argument, option: str | None) -> None:
    assert spelled(argument, asked(command)) == option


@pytest.mark.parametrize("command", sorted(make_parser().parse_args(["demo"]).parsers))
def test_every_argument_of_a_call_is_known(command: str) -> None:
    call = inspect.signature(getattr(concerto_tf, command)).parameters
    parsed = make_parser().parse_args(["demo"])
    unknown = {name for name in call if spelled(Argument(name, of=command), parsed) is None}
    assert unknown - {"progress"} == PYTHON_ONLY.get(command, set())


def test_both_spellings() -> None:
    error = InputError("a.h5ad: no cell types; name their column", Argument("label_key", "type"))
    assert str(error) == "a.h5ad: no cell types; name their column (label_key='type')"
    assert message(error, asked("map")).endswith("name their column (--label-key type)")
    # A command that lacks the option says what is wrong all the same.
    assert message(error, asked("train")) == "a.h5ad: no cell types; name their column"
    assert message(InputError("plain"), asked("map")) == "plain"


def test_lines_of_the_log() -> None:
    def told(command: str, text: str, *words: object) -> str:
        record = logging.LogRecord("concerto_tf", logging.INFO, "", 0, text, words, None)
        return line(record, asked(command))

    source = Argument("source_key", "batch")
    assert told("run", "%d values; %s tells", 3, source) == "3 values; --source-key batch tells"
    assert told("cluster", "%d values; %s tells", 3, source) == "3 values; source_key='batch' tells"
    assert told("run", "100% done") == "100% done"
    assert told("run", "%(a)s done", {"a": 1}) == "1 done"


def test_command_and_call_name_the_same(concerto, cells_file, tmp_path) -> None:
    """The same mistake, in Python and on the command line."""
    finished = tmp_path / "records"
    concerto_tf.convert(cells_file, finished)
    with pytest.raises(InputError, match=r"or overwrite this one \(overwrite=True\)"):
        concerto_tf.convert(cells_file, finished, seed=1)
    answer = concerto("convert", cells_file, "-o", finished, "--seed", 1, "--quiet")
    answer.mendable("or overwrite this one (--overwrite)")
    assert "=True" not in answer.err


def test_command_logs_its_options(concerto, cells_file, tmp_path) -> None:
    """What is wrong here shows after the inputs were looked at."""
    (tmp_path / "file").touch()
    answer = concerto("run", cells_file, "-o", tmp_path / "file" / "out")
    assert answer.code == 2 and "another folder (-o DIR)" in answer.err
    assert "--source-key batch would normalize each" in answer.err


def test_tensorflow_does_not_tell_users_of_its_traces() -> None:
    code = (
        "import tensorflow as tf; from concerto_tf.cli import main; main(['inspect', 'nowhere']); "
        "tf.get_logger().warning('5 out of the last 5 calls'); tf.get_logger().error('an error')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "an error" in done.stderr and "5 out of" not in done.stderr
