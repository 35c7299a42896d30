"""The folder that a run leaves: what makes it finished, and how results in it are changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from concerto_tf._paths import as_path, is_zarr
from concerto_tf.errors import InputError
from concerto_tf.jobs import Job, Layout, read_note

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
RESULT, METRICS, FIGURES = "result.h5ad", "metrics.json", "figures"
RECORDS, MARKERS_TABLE = "records", "markers.tsv"
LAYOUT = Layout(
    "run",
    begun="run.json",
    finished="run.json",
    results=(METRICS, RESULT),
    staged=True,
    keep="model",  # what led to a training that has begun can no longer be changed
)


def is_run(cells: Any) -> TypeGuard[str | Path]:
    """Whether cells are given as the folder of a run: any folder but a zarr store."""
    if not isinstance(cells, str | Path):
        return False
    path = as_path(cells)
    return path.is_dir() and not is_zarr(path)


@contextmanager
def finished_run(folder: str | Path) -> Iterator[Job]:
    """A finished run whose results are to be changed; other processes are kept out meanwhile.

    What the run was asked for stays as it is noted, so the same `run` finds it finished still.

    Args:
        folder: The folder of the run.

    Yields:
        The run.

    Raises:
        InputError: There is no finished run, or another process is at work there.
    """
    folder = as_path(folder)
    note = read_note(folder / LAYOUT.finished)
    if note is None:
        raise InputError(
            f"{folder}: holds no run; give the folder of a finished `run`, or an .h5ad"
        )
    asked = note.get("asked")
    with Job(folder, asked, LAYOUT) as job:
        job.acquire()
        if job.changed == (RESULT,):  # as by scanpy; what is damaged does not open
            _log.warning("%s: was changed since; it is taken as it is", job.out / RESULT)
        elif not job.finished:
            raise InputError(
                f"{folder}: the run there is not finished, or damaged; call `run` again as it was "
                "begun"
            )
        yield job


def draw_maps(
    adata: AnnData,
    colors: Iterable[str],
    folder: Path,
    titles: Mapping[str, str | None],
    figure_format: str | None = None,
) -> None:
    """Draws the map of cells once for each column, into the figures of a run.

    Args:
        adata: Cells with `obsm["X_umap"]`.
        colors: Columns of obs.
        folder: The folder of the run.
        titles: What to write above, where that is not the name of the column.
        figure_format: ``png``, ``pdf`` or ``svg``; by default those that are there, or ``png``.
    """
    from concerto_tf.pl.figures import FORMATS, umap_figure

    (folder / FIGURES).mkdir(exist_ok=True)
    for color in colors:
        name = color.removeprefix("concerto_")
        paths = [folder / FIGURES / f"umap_{name}.{suffix}" for suffix in FORMATS]
        there = [path for path in paths if path.exists()]
        if figure_format is not None:
            there = [folder / FIGURES / f"umap_{name}.{figure_format}"]
        for path in there or paths[:1]:
            umap_figure(adata, color, path, title=titles.get(color, name))
