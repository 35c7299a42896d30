"""Requests that wait together: merged, split again, and none at the cost of another."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from concerto_tf.serve.batching import Batcher, BusyError


def request(*cells: int, genes: int = 2) -> dict[str, np.ndarray]:
    return {
        "genes": np.full([len(cells), genes], "G", object),
        "values": np.tile(np.array(cells, float)[:, None], (1, genes)),
    }


def largest(inputs):
    if (inputs["values"] == 13).any():
        raise ZeroDivisionError("unlucky")
    return {"largest": inputs["values"].max(1)}


def test_each_gets_its_own_answer_from_few_batches() -> None:
    sizes: list[int] = []

    async def all_of() -> list:
        batcher = Batcher(largest, most_cells=10, note=sizes.append)
        asked = [batcher(request(i, i + 100, genes=1 + i % 3)) for i in range(12)]
        return await asyncio.gather(*asked)

    found = asyncio.run(all_of())
    assert [x["largest"].tolist() for x in found] == [[i, i + 100] for i in range(12)]
    assert sum(sizes) == 24 and max(sizes) <= 10 and len(sizes) <= 4


def test_one_that_fails_fails_alone() -> None:
    async def all_of() -> list:
        batcher = Batcher(largest)
        asked = [batcher(request(cell)) for cell in (1, 13, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    one, error, two = asyncio.run(all_of())
    assert one["largest"] == [1] and two["largest"] == [2]
    assert isinstance(error, ZeroDivisionError)


def test_a_client_that_goes_away_is_left_out_and_too_many_are_turned_away() -> None:
    busy, seen = threading.Event(), []

    def slow(inputs):
        seen.extend(inputs["values"][:, 0].tolist())
        busy.wait(10)
        return largest(inputs)

    async def all_of() -> list:
        batcher = Batcher(slow, most_cells=1, most_waiting=2)
        first = asyncio.ensure_future(batcher(request(1)))
        await asyncio.sleep(0.05)
        gone, last = (asyncio.ensure_future(batcher(request(cell))) for cell in (2, 3))
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="2 cells wait already"):
            await batcher(request(4))
        gone.cancel()
        await asyncio.sleep(0)
        fourth = asyncio.ensure_future(batcher(request(5)))
        await asyncio.sleep(0)
        busy.set()
        return await asyncio.gather(first, last, fourth)

    found = asyncio.run(all_of())
    assert [x["largest"].tolist() for x in found] == [[1], [3], [5]]
    assert seen == [1, 3, 5]
