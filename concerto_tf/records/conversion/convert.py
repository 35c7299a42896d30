"""The public call that turns cells into records; resumable, whole or not there."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from concerto_tf._calls import checked
from concerto_tf._identity import identity_of_cells, json_checksum
from concerto_tf._paths import as_path, is_remote
from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.jobs import Job
from concerto_tf.records.batch import LABEL, RNA
from concerto_tf.records.conversion.joining import join
from concerto_tf.records.conversion.passes import (
    SHARD_CELLS,
    CellCount,
    check_parts,
    check_quality,
    first_pass,
    second_pass,
    write_manifest,
)
from concerto_tf.records.conversion.workers import Workers, WorkersError
from concerto_tf.records.genes.orthologs import read_orthologs
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.input import Input
from concerto_tf.records.inputs.opening import open_input
from concerto_tf.records.manifest import LAYOUT
from concerto_tf.records.reader import Records

if TYPE_CHECKING:
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
_CHUNK_CELLS = 8_192


@checked
def convert(
    inputs: str | Path | AnnData | Input | Sequence[str | Path | AnnData | Input],
    out: str | Path,
    *,
    layer: str | None = None,
    source_key: str | None = None,
    source_name: str | None = None,
    label_keys: Sequence[str] = (),
    like: Records | Vocabulary | Mapping[str, Vocabulary] | str | Path | None = None,
    orthologs: str | Path | None = None,
    modalities: Mapping[str, str] | None = None,
    shards: int | None = None,
    compression: str = "none",
    workers: int | None = None,
    dask: Any = None,
    seed: int = 0,
    chunk_cells: int = _CHUNK_CELLS,
    drop_empty: bool = False,
    overwrite: bool = False,
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Records:
    """Converts cells to shards of TFRecords, in memory bounded by the chunk.

    The cells are permuted over all shards. Called again after it was interrupted, it continues;
    called again when all is done, it opens what is there. The bytes written depend on the inputs
    and the options, not on the number of workers nor on interruptions.

    Args:
        inputs: One or several of: path of an `.h5ad`, `.h5mu`, `.zarr`, 10x `.h5` or 10x `mtx`
            folder, or an AnnData or MuData, or an open `Input`. Several are joined over the union
            of their genes.
        out: Folder to write, or an address of an object store (`gs://bucket/records`); must not
            exist, be empty, or hold an earlier conversion.
        layer: "X", a name in `layers`, or "raw". None: X, or where X holds no counts, the counts in
            `.raw` or else in a layer "counts", which is said.
        source_key: Column of obs that tells batches, donors or studies apart. None: each input is
            one source.
        source_name: What to call the source of a single input without such a column.
        label_keys: Columns of obs to store as labels.
        like: Records, a vocabulary or a path of either, or modality to vocabulary: use these
            genes, in this order.
        orthologs: CSV or TSV with two columns named by species, for inputs of another species.
        modalities: Further modalities, name to place: {"protein": "obsm:protein"}. Of several
            inputs only some need to have one; the cells of the others then lack it. None: none, but
            of a MuData its protein; see `open_input`.
        shards: Number of files; by default one per 16,384 cells.
        compression: "none" or "gzip" (a third of the size, half the reading speed).
        workers: Number of processes, each of which takes about 250 MB. None: one per processor, if
            the cells are enough for that to pay.
        dask: Address of a dask scheduler ("tcp://host:8786"), a `distributed.Client` or a cluster
            of dask's: its workers do the work instead. They must see inputs and `out` by one path.
        seed: Seed of the permutation.
        chunk_cells: Cells held in memory at once, by each worker.
        drop_empty: Leave out cells without any count instead of raising an error.
        overwrite: Replace finished records in `out` that came from something else.
        skip_damaged: Where `out` holds finished records of the same inputs and some are damaged,
            use the intact cells instead of converting again.
        progress: Called with the number of cells done and of all cells.

    Returns:
        The finished records.

    Raises:
        InputError: The input or an option is unsuitable. Nothing is left in `out`.

    Example:
        >>> import anndata, numpy, tempfile
        >>> counts = numpy.array([[0, 2, 1], [3, 0, 0]], "float32")
        >>> records = convert(anndata.AnnData(counts), tempfile.mkdtemp())
        >>> records.n_cells, records.n_genes, records.units
        (2, 3, 'counts')
    """
    if isinstance(inputs, str | Path) or not isinstance(inputs, Sequence):
        inputs = [inputs]
    inputs = [as_path(item) if isinstance(item, str) else item for item in inputs]
    out = as_path(out)
    if isinstance(label_keys, str):
        label_keys = [label_keys]
    modalities = None if modalities is None else dict(modalities)
    label_keys = list(dict.fromkeys(label_keys))
    _check_options(inputs, shards, compression, workers, dask, chunk_cells, modalities)
    vocabularies = _given_vocabularies(like)
    table = None if orthologs is None else read_orthologs(orthologs)
    identities = _identities(inputs, out, layer, modalities)
    asked = {
        "version": __version__,
        "inputs": identities,
        "layer": layer,
        "source_key": source_key,
        "source_name": source_name,
        "label_keys": label_keys,
        "like": {name: genes.digest for name, genes in vocabularies.items()},
        "orthologs": table and json_checksum(table.pairs),
        "modalities": modalities,
        "shards": shards,
        "compression": compression,
        "seed": seed,
        "chunk_cells": chunk_cells,
        "drop_empty": drop_empty,
    }
    try:
        with (
            Workers(workers, dask) as pool,  # before there is anything to clear away
            Job(out, asked if identities else None, LAYOUT, overwrite=overwrite) as job,
            ExitStack() as stack,
        ):
            finished = _finished(job, skip_damaged)
            if finished is not None:
                _warn(finished.report)
                return finished
            job.begin()
            # What cannot be told apart is of this call alone.
            plan = json_checksum(job.asked) if identities else uuid4().hex
            # Absolute, as workers elsewhere have another current folder.
            spool = out.absolute() / "spool"
            if is_remote(out) and not pool.elsewhere:
                # A store would be slow in handing out so many small pieces.
                spool = Path(stack.enter_context(TemporaryDirectory(prefix="concerto-")))
            spool.mkdir(exist_ok=True)
            with ExitStack() as files:
                opened = [
                    files.enter_context(
                        open_input(
                            item,
                            layer=layer,
                            modalities=modalities,
                            lenient=len(inputs) > 1,
                            scratch=None if is_remote(spool) else spool,
                        )
                    )
                    for item in inputs
                ]
                _check_modalities(opened, modalities)
                joined = join(
                    opened,
                    source_key=source_key,
                    source_name=source_name,
                    label_keys=label_keys,
                    like=vocabularies,
                    orthologs=table,
                )
                if shards is not None and shards > joined.n_cells:
                    raise InputError(f"{shards} shards for {joined.n_cells} cells; ask for fewer")
                done = CellCount(joined.n_cells, progress)
                pool.prepare(joined.n_cells)
                parts = first_pass(joined, spool, chunk_cells, seed, plan, pool, done)
            summaries = [part.summary for part in parts]
            check_parts(summaries, joined, drop_empty)
            check_quality(summaries, joined)
            n_shards = shards or -(-joined.n_cells // SHARD_CELLS)
            job.check()
            infos = second_pass(out, spool, parts, joined, n_shards, compression, plan, pool, done)
            job.check()
            write_manifest(out, parts, joined, infos, seed, compression, job.asked)
            job.tidy()
    except WorkersError as error:  # here, as what was done stays
        raise InputError(str(error)) from error
    for line in joined.report["lines"]:
        _log.info(line)
    _warn(joined.report)
    return Records(out)


def _warn(report: Mapping[str, Any]) -> None:
    for line in report.get("warnings", ()):
        _log.warning(line)


def _check_options(
    inputs: Sequence[Path | AnnData | Input],
    shards: int | None,
    compression: str,
    workers: int | None,
    dask: Any,
    chunk_cells: int,
    modalities: Mapping[str, str] | None,
) -> None:
    if not inputs:
        raise InputError("no input given; name at least one file")
    if compression not in ("none", "gzip"):
        raise InputError(f"compression {compression!r} is unknown; use 'none' or 'gzip'")
    for name, number in {"shards": shards, "workers": workers, "chunk_cells": chunk_cells}.items():
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}; it must be at least 1")
    if dask is not None and workers not in (None, 1):
        raise InputError("give one of workers and dask: the cluster has its own")
    check_modality_names(modalities or {})


def check_modality_names(modalities: Mapping[str, str]) -> None:
    """Raises InputError where a further modality cannot be called so."""
    for name, place in modalities.items():
        if name == RNA and place.startswith("mod:"):  # which one of a MuData that is
            continue
        if name in (RNA, LABEL) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise InputError(
                f"{name!r} cannot be the name of a further modality; use letters and digits, "
                f"and neither {RNA!r} nor {LABEL!r}"
            )


def _check_modalities(opened: Sequence[Input], modalities: Mapping[str, str] | None) -> None:
    """Raises InputError for a modality that no input has."""
    for name, place in (modalities or {}).items():
        if not any(name in cells.modalities for cells in opened):
            raise InputError(
                f"modality {name}: none of the {len(opened)} inputs has {place}; check the place"
            )


def _given_vocabularies(
    like: Records | Vocabulary | Mapping[str, Vocabulary] | str | Path | None,
) -> dict[str, Vocabulary]:
    if like is None:
        return {}
    if isinstance(like, Mapping):
        return dict(like)
    if isinstance(like, Vocabulary):
        return {RNA: like}
    if isinstance(like, str | Path):
        if as_path(like).is_file():
            return {RNA: Vocabulary.from_tsv(like)}
        like = Records(like)
    return {name: like.vocabulary_of(name) for name in like.manifest.modalities}


def _identities(
    inputs: Sequence[Path | AnnData | Input],
    out: Path,
    layer: str | None,
    modalities: Mapping[str, str] | None,
) -> list[str] | None:
    """What tells the inputs apart; None if one is in memory: to hash it would take as long as to
    convert it."""
    found = []
    for item in inputs:
        if isinstance(item, Input) and item.identity is not None:
            found.append(item.identity)
            continue
        if isinstance(item, Input) and item.opened is not None:
            path, *how = item.opened
            item = path if how == [layer, modalities] else item  # noqa: PLW2901
        if not isinstance(item, Path):
            return None
        found.append(identity_of_cells(item, without=out))
    return found


def _finished(job: Job, skip_damaged: bool) -> Records | None:
    """The finished records if they are the ones wanted, and whole or to be read as they are."""
    if not job.finished:
        return None
    if skip_damaged:
        return Records(job.out, skip_damaged=True)
    try:
        records = Records(job.out)
        records.check()
    except InputError as error:
        _log.warning("%s: damaged, and converted again (%s)", job.out, error.message)
        return None
    return records
