"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 5.0


class Reporter:
    """Shows cells done, rate and time left of one stage after the other, on stderr.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stage = ""
        self._began = self._last = 0.0
        self._first = 0
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._last, self._first = stage, now, now, done
            if sys.stderr.isatty():
                self._start_bar(stage, total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif done >= total or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print(self._line(stage, done, total, now), file=sys.stderr, flush=True)

    def stage(self, name: str) -> Any:
        """A function of cells done and of all cells that reports one stage."""
        return lambda done, total: self(name, done, total)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _start_bar(self, stage: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.speed:,.0f} cells/s" if task.speed else "")

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description:8}"),
                BarColumn(),
                MofNCompleteColumn(),
                Rate(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        self._task = self._bar.add_task(stage, total=total)

    def _line(self, stage: str, done: int, total: int, now: float) -> str:
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if rate > 0 and done < total else ""
        speed = f", {rate:,.0f} cells/s" if done > self._first else ""
        return f"{stage}: {done:,} of {total:,} cells{speed}{left}"
