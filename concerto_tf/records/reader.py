"""Finished records: what they hold, and their cells as a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError, choices
from concerto_tf.records.batch import CELL, RNA, ROW, SOURCE, Genes, key, label_key
from concerto_tf.records.gather import gather
from concerto_tf.records.genes.gene_table import GeneStats, GeneTable, vocabulary_content
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.manifest import Manifest, ModalityInfo, ShardInfo
from concerto_tf.records.shards import (
    count_problem,
    intact,
    problem_of,
    reading_errors,
    size_problem,
)
from concerto_tf.records.share import check_request, worker_share

if TYPE_CHECKING:
    import tensorflow as tf

_READERS = 4
#: Cells whose totals tell what a typical one is.
_SAMPLE_CELLS = 4096
_TOTAL = key(RNA, "total")


class Records:
    """A folder that `convert` has finished.

    Args:
        path: The folder.
        skip_damaged: Leave out the cells that are damaged or missing, and say how many of which
            shard. All shards are read for it; what is intact of a damaged one is copied.

    Attributes:
        path: The folder.
        manifest: What it holds; with `skip_damaged`, what is left.
        lost: With `skip_damaged`, name of each damaged shard to the number of its cells that are
            lost.

    Raises:
        InputError: The folder is missing, unfinished, of a newer schema or damaged as far as names
            and sizes of its files tell; `dataset` and `verify` look inside them.

    Example:
        >>> import anndata, tempfile
        >>> from concerto_tf.records import convert
        >>> counts = np.array([[0, 2, 1], [3, 0, 0]], "float32")
        >>> records = convert(anndata.AnnData(counts), tempfile.mkdtemp())
        >>> for batch in Records(records.path).dataset(batch_size=2):
        ...     order = np.argsort(batch["row"])
        ...     print(batch["values"].numpy()[order, :3])
        [[2. 1. 0.]
         [3. 0. 0.]]
    """

    def __init__(self, path: str | Path, *, skip_damaged: bool = False) -> None:
        self.path = as_path(path)
        #: What to call them in messages; temporary records go by what they were made of.
        self.name = str(path)
        self.manifest = Manifest.load(self.path)
        self.lost: dict[str, int] = {}
        self._whole: set[str] = set()
        self._genes: dict[str, GeneTable] = {}
        if skip_damaged:
            self.manifest, self.lost = intact(self.path, self.manifest)
            self._whole = {shard.file for shard in self.manifest.shards}
        for shard in self.manifest.shards:
            problem = size_problem(self.path, shard)
            if problem:
                raise InputError(f"{self.path}: {problem}; convert again or restore the file")

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.manifest.n_cells

    def n_cells_of(self, index: int, count: int, every: int = 0) -> int:
        """Number of cells that are read of a `Share`; see `shard_of` of `dataset`."""
        return worker_share(self.manifest, (index, count, every))[2]

    @property
    def n_genes(self) -> int:
        """Number of RNA genes."""
        return self.manifest.modalities[RNA].n_genes

    @property
    def units(self) -> str:
        """What the RNA values are: "counts", "linear", "lognorm" or "values"."""
        return self.manifest.modalities[RNA].units

    @property
    def scales_with_depth(self) -> bool:
        """Whether cells' RNA values are to be scaled to one total, and log1p to be taken."""
        return self.manifest.modalities[RNA].scales_with_depth

    @property
    def sources(self) -> list[str]:
        """Name of each source code."""
        return list(self.manifest.sources)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Label key to the name of each code."""
        return {key: list(names) for key, names in self.manifest.labels.items()}

    @property
    def modalities(self) -> dict[str, ModalityInfo]:
        """What the cells were measured for, by name."""
        return self.manifest.modalities

    @property
    def report(self) -> dict[str, Any]:
        """What conversion found worth saying: {"lines": [...], ...}."""
        return self.manifest.report

    def without(self, modalities: Iterable[str]) -> Records:
        """The same cells, as if they had not been measured for some modalities."""
        left = set(modalities)
        rest = {name: of for name, of in self.modalities.items() if name not in left}
        other = copy(self)
        other.manifest = replace(self.manifest, modalities=rest)
        return other

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The RNA genes."""
        return self.vocabulary_of(RNA)

    def vocabulary_of(self, modality: str) -> Vocabulary:
        """The genes of a modality."""
        return self._genes_of(modality).vocabulary

    @property
    def gene_stats(self) -> GeneStats:
        """Statistics of the RNA genes."""
        return self.gene_stats_of(RNA)

    def gene_stats_of(self, modality: str) -> GeneStats:
        """Statistics of the genes of a modality."""
        return self._genes_of(modality).stats

    @cached_property
    def typical_total(self) -> float:
        """Median total of the RNA values of a cell, by a sample of the cells.

        A part of the shards is read, which hold a random part of the cells: all where there are
        few, 4,096 cells or somewhat more of an atlas.
        """
        if self.n_cells <= _SAMPLE_CELLS:
            return float(np.median(self._per_cell[_TOTAL]))
        parts = max(1, min(len(self.manifest.shards), self.n_cells // _SAMPLE_CELLS))
        with self.naming_damage():
            batches = self._without_values(256, shard_of=(0, parts))
            return float(np.median(gather(batches, [_TOTAL], _SAMPLE_CELLS)[_TOTAL]))

    def measured(self, modality: str = RNA) -> np.ndarray:
        """Which genes were measured at all, bool [genes].

        With ``like`` a conversion keeps the genes of another data set; those that no input has
        are missing, which is not the same as a count of zero.

        Args:
            modality: Whose genes.
        """
        return self.share_measured(modality) > 0

    def share_measured(self, modality: str = RNA) -> np.ndarray:
        """Share of the cells whose input has each gene, float64 [genes]; 1 where all have it.

        Args:
            modality: Whose genes.
        """
        measured = self._genes_of(modality).measured
        # Cells that are lost were counted when the records were written.
        return measured / max(self.n_cells, measured.max(initial=0))

    def dataset(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        repeat: bool = False,
        first_epoch: int = 0,
        genes: Genes | Mapping[str, Genes] | None = None,
        modalities: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        cells: bool = False,
        shard_of: tuple[int, ...] = (0, 1),
        drop_remainder: bool | None = None,
        pad_last: bool = True,
        packed: bool = False,
        replicas: int = 1,
        one_source: bool = False,
    ) -> tf.data.Dataset:
        """The cells in padded batches of one shape.

        Args:
            batch_size: Cells per batch.
            shuffle: Another order in every epoch, fixed by (`seed`, epoch) alone; each cell comes
                exactly once per epoch. False: the order of the shards.
            seed: Seed of the order.
            repeat: Endless, epoch after epoch.
            first_epoch: Epoch to begin with, to continue where training stopped.
            genes: Indices of the RNA genes to emit, or of some modalities' by name; the others are
                left out. Indices stay those of the whole vocabulary.
            modalities: Which modalities to emit; by default all.
            sources: Names of a model's sources, to emit its codes instead of the records' own; -1
                for a source it does not know.
            labels: Keys of the labels to emit.
            cells: Whether to emit barcodes.
            shard_of: (index, count) of this worker, each of which gets its share of the cells; give
                it in a `fit` of your own under MultiWorkerMirroredStrategy. A `Share` of
                `records.share` also holds cells out.
            drop_remainder: Whether an incomplete last batch of an epoch is dropped. By default it
                is when shuffling, as training wants whole batches.
            pad_last: Whether an incomplete last batch is filled up with cells of row -1, source -1
                and no values, so that every batch has the same shape.
            packed: Let cells share their places in "genes" and "values", which takes most of the
                padding out. Steps are several times faster. Batches then hold "offset" too.
            replicas: Number of replicas that a packed batch is divided between.
            one_source: Whether every batch holds cells of one source, as Concerto is printed; by
                default sources are mixed, and their statistics taken apart within a batch.

        Returns:
            A dataset of the minibatches that `concerto_tf.records.batch` describes, of one shape: K
            is the most nonzeros of a cell, rounded up to a multiple of 32. With `packed` they have
            "offset", where it pays. "total" is divided by the source's `Manifest.coverage` where
            inputs were measured for different genes.

        Raises:
            InputError: A label that is not there, batches that cannot be filled, or a damaged
                shard: the first call reads those of this worker against their checksums, 0.6 s per
                GB. What is damaged later shows while reading, see `naming_damage`.
        """
        from concerto_tf.records.pipeline import build

        names = list(self.manifest.modalities) if modalities is None else modalities
        if not isinstance(genes, Mapping):
            genes = {} if genes is None else {RNA: genes}
        drop = shuffle if drop_remainder is None else drop_remainder
        check_request(self.path, self.manifest, batch_size, labels, shard_of, drop, one_source)
        self.check(worker_share(self.manifest, shard_of)[0])
        return build(
            self.path,
            self.manifest,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            repeat=repeat,
            first_epoch=first_epoch,
            genes=genes,
            modalities=names,
            sources=sources,
            labels=labels,
            cells=cells,
            shard_of=shard_of,
            drop_remainder=drop,
            pad_last=pad_last,
            gene_cells={name: self.gene_stats_of(name).n_cells for name in names}
            if packed
            else None,
            replicas=replicas,
            one_source=one_source,
        )

    def obs(self) -> dict[str, np.ndarray]:
        """What is known of the cells, in the order of the input.

        Returns:
            "row" int64 [n], ascending; "cell", "source" and each "label/<key>": names as an object
            array [n], None where a label is missing.
        """
        found = self._per_cell
        columns = {ROW: found[ROW], CELL: found[CELL]}
        columns[SOURCE] = np.array(self.sources, object)[found[SOURCE]]
        for name, known in self.labels.items():
            # The last entry is the one that the code -1 (missing) takes.
            names = np.array([*known, None], object)
            columns[label_key(name)] = names[found[label_key(name)]]
        return columns

    @cached_property
    def _per_cell(self) -> dict[str, np.ndarray]:
        """What `obs` and `typical_total` need of each cell [n], in the order of the input."""
        keys = [ROW, SOURCE, CELL, _TOTAL, *map(label_key, self.labels)]
        with self.naming_damage():
            batches = self._without_values(4096, labels=list(self.labels), cells=True)
            found = gather(batches, keys)
        order = np.argsort(found[ROW])
        found = {name: values[order] for name, values in found.items()}
        found[CELL] = np.array([name.decode() for name in found[CELL]], object)
        return found

    def _without_values(self, batch_size: int, **options: Any) -> tf.data.Dataset:
        none = np.zeros(0, np.int64)
        size = min(batch_size, self.n_cells)
        return self.dataset(size, genes=none, modalities=[RNA], pad_last=False, **options)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Reads every file and compares it with the manifest.

        Args:
            progress: Called with the number of cells checked and of all cells.

        Returns:
            What is wrong, one line per problem; empty if all is well.
        """
        problems = []
        for name in self.manifest.modalities:
            try:
                vocabulary_content(*self._vocabulary_file(name))
            except InputError as error:
                problems.append(error.message)
        done = 0
        for shard in self.manifest.shards:
            problem = self._problem(shard) or count_problem(self.path, shard, self.manifest)
            if problem:
                problems.append(problem)
            done += shard.n_cells
            if progress is not None:
                progress(done, self.n_cells)
        return problems

    @contextmanager
    def naming_damage(self) -> Iterator[None]:
        """Turns what TensorFlow raises on a damaged shard into an InputError that names it.

        Put it around whatever reads: `with records.naming_damage(): model.fit(...)`.
        """
        try:
            yield
        except reading_errors() as error:
            # Other causes raise these too; only what is wrong with the files is ours to explain.
            problems = self.verify()
            if not problems:
                raise
            raise InputError(
                f"{self.path}: {problems[0]}; convert again or restore the file"
            ) from error

    def _genes_of(self, modality: str) -> GeneTable:
        """What the file of a vocabulary says, read and checked when it is first needed."""
        if modality not in self._genes:
            self._genes[modality] = GeneTable.read(*self._vocabulary_file(modality), self.n_cells)
        return self._genes[modality]

    def _vocabulary_file(self, modality: str) -> tuple[Path, ModalityInfo]:
        """Where a vocabulary lies, and what is known of it."""
        if modality not in self.manifest.modalities:
            known = choices(modality, self.manifest.modalities)
            raise InputError(
                f"{self.path}: has no modality {modality!r}; {known}; or convert again with its "
                "place",
                Argument("modalities", {modality: f"obsm:{modality}"}, of="convert"),
            )
        info = self.manifest.modalities[modality]
        return self.path / info.vocabulary, info

    def check(self, shards: Sequence[ShardInfo] | None = None) -> None:
        """Reads shards that were not read before against their checksums; `dataset` calls it.

        Args:
            shards: Some of the manifest's shards; by default all.

        Raises:
            InputError: One of them, or a vocabulary, is not as it was written.
        """
        for name in self.manifest.modalities:
            self._genes_of(name)
        shards = self.manifest.shards if shards is None else shards
        new = [shard for shard in shards if shard.file not in self._whole]
        with ThreadPoolExecutor(_READERS) as pool:
            problem = next(filter(None, pool.map(self._problem, new)), None)
        if problem:
            raise InputError(f"{self.path}: {problem}; convert again or restore the file")
        self._whole.update(shard.file for shard in new)

    def _problem(self, shard: ShardInfo) -> str | None:
        return problem_of(self.path, shard, self.manifest.compression)
