"""Options whose value may be left out, among the words that a command needs."""

from __future__ import annotations

import pytest

from concerto_tf.cli.arguments import make_parser


@pytest.mark.parametrize(
    ("line", "vote"),
    [
        ("annotate model cells -o out", False),
        ("annotate model cells -o out --vote", True),
        ("annotate --vote model cells -o out", True),
        ("annotate model --vote cells -o out", True),
        ("annotate model cells --vote -o out", True),
        ("annotate --seed 3 --vote model cells -o out --json", True),
        ("annotate --vote plate model cells -o out", "plate"),
        ("annotate model --vote plate cells -o out", "plate"),
        ("annotate model cells -o out --modality a=b --vote plate", "plate"),
        ("annotate model cells -o out --vote=plate", "plate"),
        ("annotate --vote -o out -- model cells", True),
        ("map --query cells --vote model -o out", True),
        ("map --query cells --vote plate model -o out", "plate"),
        ("map model --vote --query cells -o out", True),
    ],
)
def test_a_vote_may_stand_anywhere(line: str, vote: object) -> None:
    asked = make_parser().parse_args(line.split())
    assert asked.vote == vote and asked.model == "model" and asked.output == "out"
    assert getattr(asked, "input", None) or asked.query == "cells"


def test_what_is_missed_is_still_said(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["annotate", "--vote", "model", "-o", "out"])
    assert "required: input" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make_parser().parse_args(["annotate", "model", "cells", "more", "--vote", "-o", "out"])
    assert "unrecognized arguments: more" in capsys.readouterr().err
