"""Requests that wait together are answered together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from concerto_tf.serve.answers import Arrays, padded_together


class BusyError(RuntimeError):
    """More cells wait than the server takes on; the client may try again."""


class Batcher:
    """Answers requests in batches, one batch at a time, in a thread of its own.

    While one batch is computed, requests gather for the next: no request waits for others to come.
    A request whose client has gone away is left out if it has not begun.

    Args:
        answer: From inputs of several cells to all outputs.
        most_cells: Cells of a batch, but for a single request that has more.
        most_waiting: Cells that may wait; further requests are turned away.
        note: Called with the number of cells of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Arrays], dict[str, np.ndarray]],
        most_cells: int = 256,
        most_waiting: int = 16_384,
        note: Callable[[int], None] = lambda n_cells: None,
    ) -> None:
        self._answer, self._note = answer, note
        self._most_cells, self._most_waiting = most_cells, most_waiting
        self._waiting: deque[tuple[Arrays, asyncio.Future]] = deque()
        self._working: asyncio.Task | None = None
        self._thread = ThreadPoolExecutor(1, "concerto")

    async def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """All outputs about the cells of a request.

        Raises:
            BusyError: Too many cells wait already.
        """
        waiting = sum(_size(held) for held, future in self._waiting if not future.done())
        if waiting and waiting + _size(inputs) > self._most_waiting:
            raise BusyError(f"{waiting} cells wait already; try again later")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((inputs, future))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            try:
                found = await loop.run_in_executor(self._thread, self._together, batch)
            except Exception as error:  # noqa: BLE001 - whoever waits has to be told
                found = [error] * len(batch)
            for (_, future), result in zip(batch, found, strict=True):
                if future.done():  # its client has gone away meanwhile
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _next(self) -> list[tuple[Arrays, asyncio.Future]]:
        """The next requests with the same inputs, in their order."""
        batch: list[tuple[Arrays, asyncio.Future]] = []
        n_cells = 0
        while self._waiting:
            inputs, future = self._waiting[0]
            fits = not batch or (
                inputs.keys() == batch[0][0].keys() and n_cells + _size(inputs) <= self._most_cells
            )
            if not future.done() and not fits:
                break
            self._waiting.popleft()
            if not future.done():
                batch.append((inputs, future))
                n_cells += _size(inputs)
        return batch

    def _together(
        self, batch: list[tuple[Arrays, asyncio.Future]]
    ) -> list[dict[str, np.ndarray] | Exception]:
        parts = [inputs for inputs, _ in batch]
        self._note(sum(map(_size, parts)))
        try:
            found = self._answer(padded_together(parts))
        except Exception as error:  # noqa: BLE001 - one of them must not fail the others
            if len(batch) == 1:
                return [error]
            return [self._together([one])[0] for one in batch]
        ends = np.cumsum([_size(part) for part in parts])
        return [
            {name: x[end - _size(part) : end] for name, x in found.items()}
            for part, end in zip(parts, ends, strict=True)
        ]

    def close(self) -> None:
        """Ends the thread, behind the batch that it is at."""
        self._thread.shutdown()


def _size(inputs: Arrays) -> int:
    return len(next(iter(inputs.values())))
