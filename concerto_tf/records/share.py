"""Which of the cells of records are read: the share of a worker, without those held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from concerto_tf.errors import InputError
from concerto_tf.records.manifest import Manifest, ShardInfo, check_label

#: All cells, also of a shard; as (index, count) of what is read.
WHOLE = (0, 1)


class Share(NamedTuple):
    """What is read of the cells; as ``shard_of`` of `Records.dataset`.

    Attributes:
        worker: Number of the worker, from 0.
        workers: How many there are.
        every: Of its cells only every so many-th of each shard, in which they lie in random order;
            with a minus all cells but those. 0 for all.
    """

    worker: int = 0
    workers: int = 1
    every: int = 0


def check_request(
    folder: Path,
    manifest: Manifest,
    batch_size: int,
    labels: Sequence[str],
    shard_of: tuple[int, ...],
    drop_remainder: bool,
    one_source: bool = False,
) -> None:
    """Raises InputError where records cannot be read as `Records.dataset` was asked to."""
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; it must be at least 1")
    for name in labels:
        check_label(folder, manifest.labels, name)
    index, count, _ = Share(*shard_of)
    if not 0 <= index < count:
        raise InputError(f"share {index} of {count} is none; count from 0")
    if one_source and drop_remainder:
        for name, n in zip(manifest.sources, manifest.cells_per_source, strict=True):
            if n < batch_size:
                raise InputError(
                    f"{folder}: source {name!r} has {n} cells, which do not fill a batch of "
                    f"{batch_size} of one source; make the batch smaller",
                    "batch_size",
                )
    if drop_remainder and batch_size > worker_share(manifest, shard_of)[2]:
        raise InputError(
            f"{folder}: {manifest.n_cells} cells for {count} workers do not fill a batch of "
            f"{batch_size}; make the batch smaller"
        )


def worker_share(
    manifest: Manifest, shard_of: tuple[int, ...]
) -> tuple[list[ShardInfo], list[tuple[int, int]], int]:
    """What one of several workers reads: as many shards as the others, and a part of those left.

    Args:
        manifest: What there is.
        shard_of: (index, count) of the worker, or a `Share`.

    Returns:
        Its shards, for each of them (index, count) of the part of its cells that is read, and the
        number of cells in all.
    """
    index, count, every = Share(*shard_of)
    divisible = len(manifest.shards) // count * count
    own, left = manifest.shards[index:divisible:count], manifest.shards[divisible:]
    # Nobody is always the first, who gets the cell that is left when a shard is divided.
    parts = [WHOLE] * len(own) + [((index + i) % count, count) for i in range(len(left))]
    shards = [*own, *left]
    cells = [
        len(range(first, shard.n_cells, step))
        for shard, (first, step) in zip(shards, parts, strict=True)
    ]
    if every:
        held_out = [-(-n // abs(every)) for n in cells]
        cells = held_out if every > 0 else [n - m for n, m in zip(cells, held_out, strict=True)]
    return shards, parts, sum(cells)
