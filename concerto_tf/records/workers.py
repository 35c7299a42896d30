"""Runs the tasks of a conversion in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

_state: Any = None


def run(
    function: Callable[..., Any], state: Any, tasks: Iterable[tuple], workers: int
) -> Iterator[tuple[tuple, Any]]:
    """Calls `function(state, *task)` for each task.

    Args:
        function: A module's function.
        state: What every task needs; sent once to each process.
        tasks: Arguments of each call.
        workers: Number of processes; 1 stays in this one. More need the caller's script to start
            from `if __name__ == "__main__":`, as processes are started afresh.

    Yields:
        Each task with its result, as they finish.
    """
    tasks = list(tasks)
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, function(state, *task)
        return
    # A forked copy of a process that runs TensorFlow's threads may hang, a fresh one does not.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(tasks)), context, initializer=_start, initargs=(state,)
    ) as pool:
        futures = {pool.submit(_call, function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(state: Any) -> None:
    global _state
    _state = state
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[..., Any], task: tuple) -> Any:
    return function(_state, *task)
