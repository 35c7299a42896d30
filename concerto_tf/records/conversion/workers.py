"""Where the tasks of a conversion run: in this process, in several, or on a dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from concerto_tf._files import remove
from concerto_tf._threads import processors
from concerto_tf._version import __version__
from concerto_tf.errors import InputError

# Fewer cells are done before further processes have started.
_WORTH_CELLS = 50_000
_DASK_SECONDS = 10
_POLL_SECONDS = 0.1


class WorkersError(Exception):
    """The workers failed and not the tasks; what is done already stays."""


class Workers:
    """Runs tasks; used in a `with` statement.

    Args:
        number: Processes; 1 stays in this one. None: as many as there are processors, if the cells
            are many enough for that to be quicker.
        dask: Address of a dask scheduler, a `distributed.Client` or a cluster of dask's, to run
            on its workers instead.

    Raises:
        InputError: There is no such cluster, or its workers cannot take part.
    """

    def __init__(self, number: int | None, dask: Any = None) -> None:
        self._number = number
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self._client = None if dask is None else _connect(dask, self._stack)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    @property
    def elsewhere(self) -> bool:
        """Whether tasks run on other machines."""
        return self._client is not None

    def prepare(self, n_cells: int) -> None:
        """Chooses how many processes there are to be, unless that was given."""
        if self._number is None:
            self._number = processors() if n_cells >= _WORTH_CELLS else 1

    def run(
        self, function: Callable[..., Any], state: Any, tasks: Iterable[tuple], folder: Path
    ) -> Iterator[tuple[tuple, Any]]:
        """Calls `function(state, *task)` for each task.

        Args:
            function: A module's function.
            state: What every task needs; read once by each worker.
            tasks: Arguments of each call.
            folder: A place for the state, which all workers see.

        Yields:
            Each task with its result, as they finish.

        Raises:
            WorkersError: A worker was lost, or does not see the folder.
        """
        tasks = list(tasks)
        if self._client is None and (self._number == 1 or len(tasks) < 2):
            for task in tasks:
                yield task, function(state, *task)
            return
        # A file, and not an argument: it outlives any worker, and all tasks of a worker share it.
        shared = folder / f"state-{uuid4().hex}"
        shared.write_bytes(pickle.dumps(state))
        done = partial(_on_cluster, self._client) if self.elsewhere else self._in_processes
        try:
            yield from done(function, shared, tasks)
        finally:
            remove(shared)

    def _in_processes(
        self, function: Callable[..., Any], shared: Path, tasks: list[tuple]
    ) -> Iterator[tuple[tuple, Any]]:
        if self._pool is None:
            # A forked copy of a process that runs TensorFlow's threads may hang, a fresh one not.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._number, context, initializer=_start)
            self._stack.callback(self._pool.shutdown, cancel_futures=True)
        try:
            with _without_main():
                futures = {self._pool.submit(_call, function, shared, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise WorkersError(
                "a process ended before its time, perhaps for lack of memory; take fewer workers, "
                "and the same conversion continues"
            ) from error
        except BaseException:
            # Whoever clears away what was begun must not meet processes that go on writing.
            self._pool.shutdown(cancel_futures=True)
            raise


def _on_cluster(
    client: Any, function: Callable[..., Any], shared: Path, tasks: list[tuple]
) -> Iterator[tuple[tuple, Any]]:
    from distributed import KilledWorker, as_completed

    # Not pure: what a task leaves is files, which no result remembered from before stands for.
    futures = {client.submit(_call, function, shared, task, pure=False): task for task in tasks}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except (KilledWorker, CancelledError) as error:
        raise WorkersError(
            "the dask cluster was lost, or its workers one after the other, perhaps for lack "
            "of memory; start it again, and the same conversion continues"
        ) from error
    finally:
        with suppress(OSError):  # where the cluster is lost
            client.cancel(list(futures))
            while any(client.run(_n_running).values()):  # does not end what has begun
                time.sleep(_POLL_SECONDS)
            client.run(_state.cache_clear)  # closes what the workers hold open


def _connect(dask: Any, stack: ExitStack) -> Any:
    """A client of a cluster whose workers have this version of the package."""
    try:
        from distributed import Client
    except ImportError:
        raise InputError("dask is not installed; pip install 'concerto_tf[dask]'") from None
    client = dask
    if not isinstance(dask, Client):
        try:
            client = stack.enter_context(Client(dask, timeout=_DASK_SECONDS))
        except (TypeError, OSError, ValueError, ImportError) as error:
            raise InputError(
                f"dask scheduler {dask}: cannot be reached ({error or type(error).__name__}); "
                "check the address, as tcp://host:8786"
            ) from error
    try:
        client.wait_for_workers(1, timeout=_DASK_SECONDS)
        versions = client.run(_version)
    except TimeoutError:
        raise InputError(f"the dask cluster {dask} has no workers; start some") from None
    except ImportError as error:
        raise InputError(f"dask's workers lack concerto_tf ({error}); install it there") from error
    other = {worker: found for worker, found in versions.items() if found != __version__}
    for worker, found in other.items():
        raise InputError(
            f"the dask worker {worker} has concerto_tf {found} and not {__version__}; "
            "install the same on all"
        )
    return client


@contextmanager
def _without_main() -> Iterator[None]:
    """Lets processes that are started meanwhile leave the caller's script alone.

    They would run it again up to its `if __name__ == "__main__":`, which costs seconds where it
    imports TensorFlow, and has no end where there is no such line.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _n_running(dask_worker: Any) -> int:
    return len(dask_worker.active_threads)


def _version() -> str:
    return __version__


def _start() -> None:
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[..., Any], shared: Path, task: tuple) -> Any:
    return function(_state(shared), *task)


@lru_cache(maxsize=1)
def _state(shared: Path) -> Any:
    try:
        content = shared.read_bytes()
    except FileNotFoundError:
        raise WorkersError(
            f"{shared.parent}: a worker cannot see this folder; name one that all machines share"
        ) from None
    return pickle.loads(content)
