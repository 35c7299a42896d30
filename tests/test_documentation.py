"""What README and docs/ say is true of the commands, the links and the snippets in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from concerto_tf.cli.arguments import make_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [text for name, text in FENCED.findall(page.read_text("utf-8")) if name == language]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `concerto` command in the shell blocks of a page."""
    found = []
    for block in fenced(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "concerto" in words:
                found.append(words[words.index("concerto") + 1 :])
    return found


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    for arguments in commands(page):
        make_parser().parse_args(arguments)  # ends the test with SystemExit where it is not


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCED.sub("", page.read_text("utf-8"))
    for target in LINK.findall(prose):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_blocks_run() -> None:
    for block in fenced(ROOT / "docs" / "blocks.md", "python"):
        exec(compile(block, "blocks.md", "exec"), {})


def test_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
