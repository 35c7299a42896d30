"""What conversion does, in order: spool every chunk, check, write every shard, write the manifest.

Each step skips what an interrupted conversion of the same has finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from concerto_tf._files import atomic, sha256
from concerto_tf._version import __version__
from concerto_tf.errors import Argument, InputError
from concerto_tf.records.batch import RNA, SOURCE, label_key
from concerto_tf.records.conversion.joining import Joined
from concerto_tf.records.conversion.quality import unfiltered
from concerto_tf.records.conversion.spool import (
    Damaged,
    Part,
    key_bounds,
    open_part,
    read_note,
    write_note,
)
from concerto_tf.records.conversion.workers import Workers
from concerto_tf.records.conversion.writer import (
    ShardPlan,
    gene_dtype,
    spool_chunk,
    widest_dtype,
    write_shard,
)
from concerto_tf.records.genes.overlap import FEWEST_SHARED
from concerto_tf.records.manifest import Manifest, ModalityInfo, ShardInfo, vocabulary_file
from concerto_tf.records.units import COUNTS, TARGET_SUM, scales_with_depth

_log = logging.getLogger("concerto_tf")
SHARD_CELLS = 16_384
#: Least share of an input's RNA that genes which all inputs have must hold to compare them by.
_LEAST_SHARED = 0.05


class CellCount:
    """Counts cells over both passes, each of which is half of the work."""

    def __init__(self, n_cells: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = 0, 2 * n_cells, report

    def add(self, cells: int) -> None:
        self._done += cells
        if self._report is not None and cells:
            self._report(self._done // 2, self._total // 2)


def _spool_task(
    state: tuple[Joined, int, str], path: Path, number: int, start: int, stop: int
) -> None:
    joined, seed, plan = state
    spool_chunk(path, joined.chunk(number, start, stop), joined.targets[number], seed, plan)


def _whole(path: Path, look: Callable[[], Any]) -> Any:
    """What is found in a file of the spool; None where there is none, or none to go on with."""
    try:
        return look() if path.exists() else None
    except Damaged:
        _log.warning("%s: is damaged, or of another conversion, and made again", path)
        return None


def first_pass(
    joined: Joined,
    spool: Path,
    chunk_cells: int,
    seed: int,
    plan: str,
    workers: Workers,
    done: CellCount,
) -> list[Part]:
    """Spools the chunks that are not there yet."""
    tasks: list[tuple[Path, int, int, int]] = []
    for number, cells in enumerate(joined.inputs):
        for start in range(0, cells.n_cells, chunk_cells):
            stop = min(start + chunk_cells, cells.n_cells)
            tasks.append((spool / f"part-{len(tasks):05d}", number, start, stop))
    if any(cells.path is None for cells in joined.inputs):
        workers = Workers(1)  # sending what is in memory takes longer than its conversion
    parts = {path: _whole(path, partial(open_part, path, plan)) for path, *_ in tasks}
    missing = [task for task in tasks if parts[task[0]] is None]
    done.add(joined.n_cells - sum(stop - start for *_, start, stop in missing))
    for (_, _, start, stop), _ in workers.run(_spool_task, (joined, seed, plan), missing, spool):
        done.add(stop - start)
    return [part or open_part(path) for path, part in parts.items()]


def _inputs_of(summaries: Sequence[Mapping[str, Any]], joined: Joined) -> np.ndarray:
    """Number of the input that each part is of, int [parts]."""
    cells = [summary["n_cells"] + summary["n_empty"] for summary in summaries]
    ends = np.cumsum([cells.n_cells for cells in joined.inputs])
    return np.searchsorted(ends, np.cumsum(cells))


def check_parts(summaries: Sequence[Mapping[str, Any]], joined: Joined, drop_empty: bool) -> None:
    """Checks what only a look at every cell can tell; raises InputError, or adds to the report.

    Args:
        summaries: What was found in each part, in order; see `writer.Arranged`.
        joined: The inputs; their report is added to.
        drop_empty: Whether cells without any count are left out.
    """
    empty = sum(summary["n_empty"] for summary in summaries)
    report = joined.report
    input_of = _inputs_of(summaries, joined)
    for number, cells in enumerate(joined.inputs):
        own = [summary for summary, of in zip(summaries, input_of, strict=True) if of == number]
        n_empty = sum(summary["n_empty"] for summary in own)
        if n_empty == cells.n_cells and (empty == joined.n_cells or not drop_empty):
            raise InputError(
                f"{cells.name}: no cell has any count; check that the right layer is named"
            )
        if n_empty and not drop_empty:
            suffix = joined.suffixes[number]
            names = [name.removesuffix(suffix) for summary in own for name in summary["empty"]][:3]
            have = "cell has" if n_empty == 1 else "cells have"
            raise InputError(
                f"{cells.name}: {n_empty} {have} no counts at all ({', '.join(names)}"
                f"{', ...' * (n_empty > 3)}); run sc.pp.filter_cells(adata, min_counts=1) or leave "
                "them out",
                Argument("drop_empty", True),
            )
    if empty:
        report["lines"].append(f"{empty} cells without any count were left out")
    report["cells_dropped"] = empty
    report["cells_blank"] = 0
    for name in joined.units:
        found = [summary["modalities"][name] for summary in summaries]
        blank = sum(entry["n_blank"] for entry in found)
        if blank and name == RNA:
            report["cells_blank"] = blank
            report["lines"].append(f"{blank} cells have no counts in the genes that are kept")
        elif blank == joined.n_cells - empty:
            raise InputError(
                f"modality {name}: no cell has any value of it; check the place it was said to be"
            )
        elif blank:
            report["lines"].append(f"{blank} cells have no value of {name}: they lack it")
        fractional = [
            entry["units"] == COUNTS and np.dtype(entry["value_dtype"]).kind == "f"
            for entry in found
        ]
        if any(fractional):
            first = fractional.index(True)
            number = input_of[first]
            before = sum(cells.n_cells for cells in joined.inputs[:number])
            start, stop = (row - before for row in summaries[first]["rows"])
            raise InputError(
                f"{joined.inputs[number].name}: {name}: most values are counts, but not all "
                f"between cells {start} and {stop} are whole numbers of at most "
                "4,294,967,295; name the layer with the counts"
            )


def check_quality(summaries: Sequence[Mapping[str, Any]], joined: Joined) -> None:
    """Adds to the report which inputs look unfiltered."""
    input_of = _inputs_of(summaries, joined)
    for number, cells in enumerate(joined.inputs):
        own = [summary for summary, of in zip(summaries, input_of, strict=True) if of == number]
        told = None
        if all("quality" in summary for summary in own):
            told = unfiltered(cells, [summary["quality"] for summary in own])
        if told:
            joined.report.setdefault("warnings", []).append(told)


def second_pass(
    out: Path,
    spool: Path,
    parts: Sequence[Part],
    joined: Joined,
    n_shards: int,
    compression: str,
    plan: str,
    workers: Workers,
    done: CellCount,
) -> list[ShardInfo]:
    """Writes the shards that are not there yet."""
    n_blocks = -(-joined.n_cells // (n_shards * SHARD_CELLS))
    bounds = key_bounds(n_shards * n_blocks)
    cuts = np.zeros((len(parts), len(bounds) + 2), np.int64)
    for row, part in zip(cuts, parts, strict=True):
        row[1:-1] = np.searchsorted(part.read("key"), bounds)
        row[-1] = part.summary["n_cells"]
    ending = {"none": "tfrecord", "gzip": "tfrecord.gz"}[compression]
    dtypes = {name: _widest(parts, name) for name in joined.vocabularies}
    tasks, infos = [], {}
    for shard in range(n_shards):
        name = f"shard-{shard:05d}-of-{n_shards:05d}"
        note = spool / f"{name}.json"
        first = shard * n_blocks
        path = out.absolute() / f"{name}.{ending}"
        found = _whole(note, partial(_finished_shard, path, note, plan))
        if found is not None:
            infos[name] = found
            done.add(found.n_cells)
            continue
        shard_plan = ShardPlan(
            path=path,
            cuts=cuts[:, first : first + n_blocks + 1],
            value_dtypes=dtypes,
            integers=[SOURCE, *map(label_key, joined.labels)],
            n_sources=len(joined.sources),
            compression=compression,
        )
        tasks.append((shard_plan, note))
    for (_, note), info in workers.run(_shard_task, (parts, plan), tasks, spool):
        infos[note.stem] = info
        done.add(info.n_cells)
    done.add(sum(part.summary["n_empty"] for part in parts))
    return [infos[name] for name in sorted(infos)]


def _finished_shard(path: Path, note: Path, plan: str) -> ShardInfo:
    """The entry of a shard that an interrupted conversion finished."""
    content = read_note(note, plan)
    content["cells_per_source"] = tuple(content["cells_per_source"])
    info = ShardInfo(**content)
    if not path.exists() or sha256(path) != info.sha256:
        raise Damaged(path.name)
    return info


def _shard_task(state: tuple[Sequence[Part], str], plan: ShardPlan, note: Path) -> ShardInfo:
    parts, of = state
    info = write_shard(plan, parts)
    write_note(note, vars(info), of)
    return info


def _widest(parts: Sequence[Part], name: str) -> np.dtype:
    return widest_dtype(part.summary["modalities"][name]["value_dtype"] for part in parts)


def _having(joined: Joined, modality: str, of_input: np.ndarray) -> np.ndarray:
    """Sum of what each input has [inputs] over those that have each gene at all [genes]."""
    total = np.zeros(len(joined.vocabularies[modality]), of_input.dtype)
    for own, targets in zip(of_input, joined.targets, strict=True):
        total[np.unique(targets[modality].match.reference_index)] += own
    return total


def _coverage(
    joined: Joined, parts: Sequence[Part], input_of: np.ndarray, n_cells: np.ndarray
) -> np.ndarray:
    """Share of a cell's RNA that the genes which its input has are expected to hold [inputs].

    What genes hold beside those that all inputs have is taken from the inputs that have them. 1
    where all have the same, or where those that all have are too little to compare inputs by.

    Args:
        joined: The inputs.
        parts: What was spooled.
        input_of: Number of the input that each part is of, int [parts].
        n_cells: Cells that are kept of each input, int [inputs].
    """
    coverage = np.ones(len(joined.inputs))
    measured = _having(joined, RNA, n_cells)
    shared = measured == n_cells.sum()
    same = (shared | (measured == 0)).all()
    if same or not scales_with_depth(joined.units[RNA]) or shared.sum() < FEWEST_SHARED:
        return coverage
    # Sums of each input would take memory; the parts' own are read again later instead.
    amount, of_shared = np.zeros(len(shared)), np.zeros(len(joined.inputs))
    for number, part in zip(input_of, parts, strict=True):
        own = part.read(f"{RNA}/moments").reshape(3, -1)[1]
        amount += own
        of_shared[number] += own[shared].sum()
    if (of_shared < _LEAST_SHARED * TARGET_SUM * n_cells).any():
        return coverage
    relative = amount / np.maximum(_having(joined, RNA, of_shared), 1e-12)
    for number in np.flatnonzero(n_cells):
        own = np.unique(joined.targets[number][RNA].match.reference_index)
        coverage[number] = min(relative[own].sum() / relative.sum(), 1)
    return coverage


def _by_source(
    coverage: np.ndarray, joined: Joined, parts: Sequence[Part], input_of: np.ndarray
) -> tuple[float, ...]:
    """Mean coverage [inputs] of the cells of each source; () where it is 1 in all."""
    if (coverage == 1).all():
        return ()
    n_cells = np.zeros((len(coverage), len(joined.sources)))
    for number, part in zip(input_of, parts, strict=True):
        n_cells[number] += np.bincount(part.read(SOURCE), minlength=len(joined.sources))
    mean = coverage @ n_cells / np.maximum(n_cells.sum(axis=0), 1)
    return tuple(round(float(share), 6) if share else 1.0 for share in mean)


def write_manifest(
    out: Path,
    parts: Sequence[Part],
    joined: Joined,
    infos: Sequence[ShardInfo],
    seed: int,
    compression: str,
    asked: dict[str, Any] | None,
) -> None:
    """Writes the vocabularies and the manifest."""
    n_cells = sum(info.n_cells for info in infos)
    input_of = _inputs_of([part.summary for part in parts], joined)
    kept = np.zeros(len(joined.inputs), int)
    np.add.at(kept, input_of, [part.summary["n_cells"] for part in parts])
    coverage = _coverage(joined, parts, input_of, kept)
    modalities = {}
    for name, vocabulary in joined.vocabularies.items():
        file = vocabulary_file(name)
        sums = np.zeros((3, len(vocabulary)))
        for number, part in zip(input_of, parts, strict=True):
            # Values are scaled to 10,000 of what was measured, which is less where genes lack.
            power = coverage[number] ** np.arange(3) if name == RNA else np.ones(3)
            sums += part.read(f"{name}/moments").reshape(sums.shape) * power[:, np.newaxis]
        mean = sums[1] / n_cells
        variance = np.maximum(sums[2] - n_cells * mean**2, 0) / max(n_cells - 1, 1)
        columns = {
            "measured": _having(joined, name, kept),
            "n_cells": sums[0].astype(int),
            "mean": [f"{value:.9g}" for value in mean],
            "variance": [f"{value:.9g}" for value in variance],
        }
        with atomic(out / file) as temporary:
            vocabulary.to_tsv(temporary, columns)
            checksum = sha256(temporary)
        modalities[name] = ModalityInfo(
            vocabulary=file,
            n_genes=len(vocabulary),
            gene_dtype=gene_dtype(len(vocabulary)).name,
            value_dtype=_widest(parts, name).name,
            max_nonzeros=max(part.summary["modalities"][name]["max_nonzeros"] for part in parts),
            units=joined.units[name],
            sha256=checksum,
        )
    normalized = scales_with_depth(joined.units[RNA])
    Manifest(
        package_version=__version__,
        n_cells=n_cells,
        modalities=modalities,
        normalisation={"target_sum": TARGET_SUM, "log1p": True} if normalized else {},
        sources=joined.sources,
        labels=joined.labels,
        inputs=tuple({"name": cells.name, "n_cells": cells.n_cells} for cells in joined.inputs),
        seed=seed,
        compression=compression,
        shards=tuple(infos),
        report=joined.report,
        coverage=_by_source(coverage, joined, parts, input_of),
        asked=asked,
    ).save(out)
