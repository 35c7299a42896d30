"""What a user gets from the commands as printed, beside what a user would do instead.

`delivered_parts` has what is asked, `delivered_report` what is made of the scores.
"""

from __future__ import annotations

import ast
import json
import logging
import shlex
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import concerto_tf
from concerto_tf._identity import json_checksum
from protocols.delivered_commands import Refused
from protocols.delivered_parts import OURS, PARTS, Bench
from protocols.delivered_peers import NEEDS, is_there
from protocols.lines import Lines
from protocols.quality_cells import DataSet
from protocols.report import plain

_log = logging.getLogger("concerto_tf")
#: Raised where peers are to be scored anew.
_PEERS = 1
_KEY = ("part", "data", "seed", "task", "variant", "hash")


@dataclass(frozen=True)
class Asked:
    """What a call asks for.

    Args:
        sets: The data sets.
        seeds: Of halves, commands and peers.
        parts: Of `PARTS`.
        left_out: How many types are left out of the reference in turn; None for each.
    """

    sets: Sequence[DataSet]
    seeds: Sequence[int]
    parts: Sequence[str]
    left_out: int | None = 3

    def command(self, data: DataSet, part: str, seed: int) -> str:
        """The call of tools/quality that computes one part of one set with one seed."""
        words = ["tools/quality", "delivered", data.path.name if data.path else data.name]
        words += ["--parts", part, "--seeds", str(seed)]
        for option, default in (("label_key", "cell_type"), ("source_key", "batch")):
            if data.settings.get(option) not in (None, default):
                words += [f"--{option.replace('_', '-')}", str(data.settings[option])]
        if part == "labels" and self.left_out != 3:
            words += ["--left-out", "all" if self.left_out is None else str(self.left_out)]
        return shlex.join([*words, "-o", "table.md"])


def kept(results: Path) -> Lines:
    """Rows of a results file by what tells them apart.

    Args:
        results: JSON lines; nothing is kept where there is no file.
    """
    return Lines(results, lambda row: tuple(row[name] for name in _KEY))


def run(asked: Asked, results: Path, compute: bool = True) -> list[dict[str, Any]]:
    """Computes the scores that a results file lacks, and adds each to it as it comes.

    Args:
        asked: What is asked for.
        results: JSON lines; made where there is none. The same call after a stop goes on. Rows of
            ours are told apart by the package's code, comments aside.
        compute: Whether to compute; otherwise what is missing is left out, and said.

    Returns:
        The rows that were asked for.

    Raises:
        InputError: A command ended with a fault of ours; what was computed before stays.
    """
    missing = [peer for peer in NEEDS if not is_there(peer)]
    if missing:
        _log.warning("left out, as not installed: %s", ", ".join(missing))
    done, rows, lacking = kept(results), [], 0
    for bench, data, part, task, variant in _planned(asked):
        ours = variant.startswith(OURS)
        told = [dict(data.settings), _code() if ours else _PEERS]
        key = (part, data.name, bench.seed, task, variant, json_checksum(told)[:8])
        if key not in done and compute:
            began = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scores = PARTS[part].answers[variant](bench, task)
            except Refused as error:
                scores = {"error": str(error)}
            row = {
                **dict(zip(_KEY, key, strict=True)),
                **{k: round(v, 4) if isinstance(v, float) else v for k, v in scores.items()},
                "seconds": round(time.perf_counter() - began, 1),
                "command": asked.command(data, part, bench.seed),
            }
            done.add(plain(row))
            _log.info("%s", json.dumps(done[key]))
        if key in done:
            rows.append(done[key])
        else:
            lacking += 1
    if lacking:
        _log.warning("%d scores are not computed", lacking)
    return rows


def _planned(asked: Asked) -> Iterator[tuple[Bench, DataSet, str, str, str]]:
    for data in asked.sets:
        for seed in asked.seeds:
            cells = data.cells(seed if data.rare else 0)
            with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
                bench = Bench(cells, seed, Path(folder), asked.left_out)
                for part in asked.parts:
                    for task in PARTS[part].tasks(bench):
                        for variant in filter(is_there, PARTS[part].answers):
                            yield bench, data, part, task, variant


@cache
def _code() -> str:
    """A checksum of the package's code, which comments are no part of."""
    folder = Path(concerto_tf.__file__).parent
    files = sorted(folder.rglob("*.py"))
    return json_checksum([ast.dump(ast.parse(file.read_text("utf-8"))) for file in files])
