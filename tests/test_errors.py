"""Errors name the argument in Python's spelling; the command line's is its own."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from concerto_tf.cli.arguments import make_parser
from concerto_tf.errors import Argument, InputError, checked_share, choices

PACKAGE = Path(__file__).resolve().parents[1] / "concerto_tf"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        (None, "no counts"),
        ("layer", "no counts (layer=...)"),
        (Argument("layer", "counts"), "no counts (layer='counts')"),
        (Argument("overwrite", True), "no counts (overwrite=True)"),
        (Argument("label_keys", ["a"], of="convert"), "no counts (label_keys=['a'])"),
    ],
)
def test_python_spelling(argument: str | Argument | None, told: str) -> None:
    error = InputError("no counts", argument)
    assert str(error) == told
    assert error.message == "no counts"
    # Processes that convert hand their errors to the one that waits for them.
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == told and again.argument == error.argument


def options() -> set[str]:
    """Every option of every command."""
    commands = make_parser().parse_args(["inspect", "records"]).parsers.values()
    return {word for made in commands for word in made._option_string_actions} | {"-m"}


def test_no_option_outside_the_command_line() -> None:
    """Whoever calls from Python has arguments and no options; pages name commands to try next."""
    short = "|".join(re.escape(word) for word in options() if not word.startswith("--"))
    option = re.compile(rf"(?<![\w-])(--[a-z][\w-]*|({short})(?![\w-]))")
    assert option.search("name one (--rep)") and option.search("another folder with -o")
    assert not option.search("top - one") and not option.search("# --- words ---")
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "cli" and path.parent.name != "reporting"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if option.search(line)
    ]
    assert found == []


def test_a_share_lies_from_0_to_1() -> None:
    assert checked_share("denoise", 1) == 1.0
    for wrong in (-0.1, 1.5, float("nan"), "half"):
        with pytest.raises(InputError, match=r"denoise must lie in \[0, 1\], not"):
            checked_share("denoise", wrong)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\), not 1"):
        checked_share("rate", 1, below_one=True)


@pytest.mark.parametrize(
    ("key", "there", "text"),
    [
        (
            "celltype",
            ["batch", "cell_type"],
            "did you mean 'cell_type'? There are: batch, cell_type",
        ),
        ("BATCH", ["batch"], "did you mean 'batch'? There are: batch"),
        ("day", ["batch"], "there are: batch"),
        ("day", [], "there are none"),
        ("zz", [f"x{i:02}" for i in range(14)], "x11 and 2 more"),
    ],
)
def test_choices(key: str, there: list[str], text: str) -> None:
    assert choices(key, there).endswith(text)
