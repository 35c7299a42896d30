"""Simulated cells as an `.h5ad` or as records, of any number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._calls import checked
from concerto_tf._files import atomic
from concerto_tf._identity import json_checksum
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.records import Records, Vocabulary, convert
from concerto_tf.records.batch import RNA
from concerto_tf.records.inputs.input import Input, InputPart
from concerto_tf.simulate import Experiment, SplatParams
from concerto_tf.tasks.io.provenance import recorded
from concerto_tf.tasks.io.result import assemble, check_target, stamp

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    Report = Callable[[int, int], None]

# Cells whose table is drawn at once: blocks of the simulation, hence a multiple of 2,048.
_TABLE_CELLS = 65_536


@recorded("simulate")
@checked
def simulate(
    params: SplatParams | None = None,
    out: str | Path | None = None,
    *,
    shards: int | None = None,
    compression: str = "none",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> AnnData | Records | Path:
    """Simulates cells with known groups, batches or trajectories (the Splat model).

    Counts are drawn as they are written, so memory does not grow with them: of an `.h5ad` the
    table of cells is held, of records 8,192 cells and a few bytes per cell.

    Args:
        params: The experiment; by default 1,000 cells as droplet protocols give them.
        out: The `.h5ad` to write, or the folder of records, where group (or path, step and
            pseudotime) are labels, several batches sources, and cells without any count left out.
            None keeps the cells in memory.
        shards: Number of files of the records.
        compression: Of the records: "none" or "gzip".
        workers: Threads that draw; by default the machine's processors, at most 4. The cells do
            not depend on it.
        overwrite: Replace finished records.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The AnnData for None, the finished records for a folder, the path of an `.h5ad`.

    Raises:
        InputError: The place cannot be written or is taken.

    Example:
        >>> import tempfile
        >>> from concerto_tf.simulate import SplatParams
        >>> params = SplatParams.droplet(n_cells=60, n_genes=200, group_sizes=(2, 1))
        >>> records = simulate(params, tempfile.mkdtemp())
        >>> records.n_cells, records.n_genes, list(records.labels)
        (60, 200, ['group'])

    Reference:
        Zappia, Phipson and Oshlack, "Splatter: simulation of single-cell RNA sequencing data",
        Genome Biology 18:174 (2017).
    """
    params = SplatParams.droplet() if params is None else params
    if out is None:
        from concerto_tf.simulate import simulate_cells

        return simulate_cells(params, workers)
    out = as_path(out)
    if out.suffix == ".h5ad":
        check_target(out)
        experiment = Experiment(params, workers)
        with atomic(out) as temporary:
            _write_h5ad(experiment, temporary, progress)
        return out
    if out.suffix and not out.is_dir():
        raise InputError(
            f"{out}: {out.suffix} cannot be written; name an .h5ad, or a folder for records"
        )
    cells = _as_input(Experiment(params, workers))
    return convert(
        cells,
        out,
        source_key="batch" if params.n_batches > 1 else None,
        source_name="simulation",
        label_keys=[key for key in cells.columns if key not in ("batch", "library_size")],
        shards=shards,
        compression=compression,
        seed=params.seed,
        drop_empty=True,
        overwrite=overwrite,
        progress=progress,
    )


def parameters(
    *,
    cells: int | None = None,
    genes: int | None = None,
    groups: int | None = None,
    sizes: Sequence[float] | None = None,
    batches: int | None = None,
    counts: float | None = None,
    path_from: Sequence[float] | None = None,
    **further: Any,
) -> SplatParams:
    """Parameters of an experiment in the words of `simulate`.

    Args:
        cells: Number of cells.
        genes: Number of genes.
        groups: Number of groups of one size (of paths).
        sizes: Relative sizes of the groups instead, or as many as there are groups.
        batches: Number of batches of one size.
        counts: Median of the expected counts of a cell, before dropout.
        path_from: As in `SplatParams`.
        further: Fields of `SplatParams`.

    Returns:
        The parameters; those of `SplatParams.droplet` where nothing is given.

    Raises:
        InputError: A value is out of its range, or two do not fit together.

    Example:
        >>> parameters(cells=100, groups=3, counts=1_000).group_sizes
        (1.0, 1.0, 1.0)
    """
    for name, number in (("groups", groups), ("batches", batches)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    if sizes is not None and groups is not None and len(sizes) != groups:
        raise InputError(f"{len(sizes)} sizes for {groups} groups; give one for each")
    if counts is not None and not (counts > 0 and math.isfinite(counts)):
        raise InputError(f"counts is {counts}; it must be a positive number")
    given = {
        "n_cells": cells,
        "n_genes": genes,
        "group_sizes": tuple(sizes) if sizes else (1.0,) * groups if groups else None,
        "batch_sizes": (1.0,) * batches if batches else None,
        "lib_loc": math.log(counts) if counts else None,
        # numbers of paths; what is not whole is for `SplatParams` to complain about
        "path_from": path_from and tuple(int(x) if x == int(x) else x for x in path_from),
        **further,
    }
    return SplatParams.droplet(**{key: value for key, value in given.items() if value is not None})


def _write_h5ad(experiment: Experiment, path: Path, progress: Report | None) -> None:
    """Cells chunk by chunk, then what is true of the genes, and the parameters."""
    import h5py
    from anndata.io import write_elem

    n = experiment.params.n_cells
    with _as_input(experiment, progress) as cells:
        assemble([cells], path, {}, {}, cells.barcodes(0, n), np.arange(n))
    with h5py.File(path, "r+") as file:
        write_elem(file, "var", experiment.var())
        write_elem(file, "uns", experiment.uns())
    stamp(path)


def _as_input(experiment: Experiment, progress: Report | None = None) -> Input:
    """An experiment as whatever reads cells takes it."""
    genes = Vocabulary(tuple(experiment.var().index))
    return Input(
        "simulation",
        experiment.params.n_cells,
        {RNA: InputPart(genes, _Counts(experiment, progress), "X")},
        _Table(experiment),
        identity=json_checksum(asdict(experiment.params)),
    )


class _Counts:
    """Counts by consecutive cells, drawn when they are read (`records.inputs.rows.Rows`)."""

    def __init__(self, experiment: Experiment, progress: Report | None) -> None:
        self.shape = (experiment.params.n_cells, experiment.params.n_genes)
        self._experiment, self._progress = experiment, progress

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        counts = self._experiment.counts(start, stop)
        if self._progress is not None:
            self._progress(stop, self.shape[0])
        return counts


class _Table:
    """Names and columns of the cells (`concerto_tf.records.inputs.observations.Observations`)."""

    def __init__(self, experiment: Experiment) -> None:
        self.columns = list(experiment.obs(0, 0))
        self._experiment = experiment

    def barcodes(self, start: int, stop: int) -> list[str]:
        return [f"Cell{i + 1}" for i in range(start, stop)]

    def values(self, key: str) -> pd.Series:
        import pandas as pd

        n = self._experiment.params.n_cells
        parts: list[Any] = [
            self._experiment.obs(start, min(start + _TABLE_CELLS, n))[key]
            for start in range(0, n, _TABLE_CELLS)
        ]
        return pd.concat(parts, ignore_index=True)
