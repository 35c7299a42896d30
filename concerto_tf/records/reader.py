"""Finished records: what they hold, and their cells as a `tf.data.Dataset`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError
from concerto_tf.records.batch import CELL, RNA, ROW, SOURCE, key, label_key
from concerto_tf.records.manifest import Manifest, ModalityInfo, ShardInfo
from concerto_tf.records.shards import intact, problem_of, size_problem
from concerto_tf.records.vocabulary import Vocabulary, read_table

if TYPE_CHECKING:
    import tensorflow as tf

_READERS = 4


@dataclass(frozen=True)
class GeneStats:
    """Statistics of each gene over all cells, taken while converting.

    Attributes:
        n_cells: int64 [genes], cells in which the gene is not zero.
        mean: float64 [genes], mean of the values scaled to 10,000 per cell, zeros included, not
            logarithmic. Values that were normalised in another way ("values") are as they are.
        variance: float64 [genes], their unbiased variance.
    """

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class _Genes:
    """What the file of a vocabulary holds: genes, statistics, cells measured for each [genes]."""

    vocabulary: Vocabulary
    stats: GeneStats
    measured: np.ndarray


class Records:
    """A folder that `convert` has finished.

    Args:
        path: The folder.
        skip_damaged: Go on without the cells that are damaged or missing, as if they had never
            been there, and say how many of which shard are lost. All shards are read for it, and
            what is intact of a damaged one is copied to a temporary folder.

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
        self._genes: dict[str, _Genes] = {}
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

    def n_cells_of(self, index: int, count: int) -> int:
        """Number of cells that worker `index` of `count` reads; see `shard_of` of `dataset`."""
        from concerto_tf.records.pipeline import share

        return share(self.manifest, (index, count))[2]

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
    def max_nonzeros(self) -> int:
        """Most RNA nonzeros of any cell."""
        return self.manifest.modalities[RNA].max_nonzeros

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

    @cached_property
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
        cells = min(4096, self.n_cells)
        if cells == self.n_cells:
            return float(np.median(self._per_cell[key(RNA, "total")]))
        parts = max(1, min(len(self.manifest.shards), self.n_cells // cells))
        with self.naming_damage():
            batches = self.dataset(
                min(256, cells),
                genes=np.zeros(0, np.int64),
                modalities=[RNA],
                pad_last=False,
                shard_of=(0, parts),
            )
            totals, n = [np.zeros(0, np.float32)], 0
            for batch in batches:
                totals.append(batch[key(RNA, "total")].numpy())
                n += len(totals[-1])
                if n >= cells:
                    break
        return float(np.median(np.concatenate(totals)))

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
        genes: np.ndarray | Mapping[str, Sequence[int]] | None = None,
        modalities: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
        labels: Sequence[str] = (),
        cells: bool = False,
        shard_of: tuple[int, int] = (0, 1),
        drop_remainder: bool | None = None,
        pad_last: bool = True,
        packed: bool = False,
        replicas: int = 1,
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
            shard_of: (index, count) of this worker, each of which gets its share of the cells. In a
                `fit` of your own under MultiWorkerMirroredStrategy all would read the same ones
                without it.
            drop_remainder: Whether an incomplete last batch of an epoch is dropped. By default it
                is when shuffling, as training wants whole batches.
            pad_last: Whether an incomplete last batch is filled up with cells of row -1, source -1
                and no values, so that every batch has the same shape.
            packed: Let cells share their places in "genes" and "values", which takes most of the
                padding out and makes a model's steps several times faster on cells that differ in
                their number of genes. Batches then hold "offset" too.
            replicas: Number of replicas that a packed batch is divided between.

        Returns:
            A dataset of the minibatches that `concerto_tf.records.batch` describes, of one shape: K
            is the most nonzeros of a cell, rounded up to a multiple of 32. With `packed` they have
            "offset", where it pays. "total" is over the source's `Manifest.coverage` where inputs
            were measured for different genes.

        Raises:
            InputError: A label that is not there, batches that cannot be filled, or a damaged
                shard: the first call reads those of this worker against their checksums, 0.6 s per
                GB. What is damaged later shows while reading, see `naming_damage`.
        """
        from concerto_tf.records.pipeline import build, share

        names = list(self.manifest.modalities) if modalities is None else modalities
        if genes is None or not isinstance(genes, Mapping):
            genes = {} if genes is None else {RNA: genes}
        drop = shuffle if drop_remainder is None else drop_remainder
        self._check_dataset(batch_size, labels, shard_of, drop)
        self.check(share(self.manifest, shard_of)[0])
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
        names = (ROW, SOURCE, CELL, key(RNA, "total"), *map(label_key, self.labels))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        with self.naming_damage():
            for batch in self.dataset(
                min(4096, self.n_cells),
                genes=np.zeros(0, np.int64),
                modalities=[RNA],
                labels=list(self.labels),
                cells=True,
                pad_last=False,
            ):
                for name, found in parts.items():
                    found.append(batch[name].numpy())
        whole = {name: np.concatenate(found) for name, found in parts.items()}
        order = np.argsort(whole[ROW])
        whole = {name: values[order] for name, values in whole.items()}
        whole[CELL] = np.array([name.decode() for name in whole[CELL]], object)
        return whole

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
                self._vocabulary_content(name)
            except InputError as error:
                problems.append(error.message)
        done = 0
        for shard in self.manifest.shards:
            problem = self._problem(shard) or self._count_problem(shard)
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
        import tensorflow as tf

        try:
            yield
        except (
            tf.errors.DataLossError,
            tf.errors.NotFoundError,
            tf.errors.OutOfRangeError,
            tf.errors.InvalidArgumentError,
            tf.errors.FailedPreconditionError,
        ) as error:
            # Other causes raise these too; only what is wrong with the files is ours to explain.
            problems = self.verify()
            if not problems:
                raise
            raise InputError(
                f"{self.path}: {problems[0]}; convert again or restore the file"
            ) from error

    def _genes_of(self, modality: str) -> _Genes:
        """What the file of a vocabulary says, read and checked when it is first needed."""
        if modality not in self._genes:
            table = read_table(*self._vocabulary_content(modality))
            n_genes = self.manifest.modalities[modality].n_genes
            self._genes[modality] = _Genes(
                vocabulary=Vocabulary.from_table(table, self.path),
                stats=GeneStats(
                    n_cells=np.array(table["n_cells"], np.int64),
                    mean=np.array(table["mean"], np.float64),
                    variance=np.array(table["variance"], np.float64),
                ),
                # All cells, where a vocabulary says nothing of it.
                measured=np.array(table.get("measured", [self.n_cells] * n_genes), np.int64),
            )
        return self._genes[modality]

    def _vocabulary_content(self, modality: str) -> tuple[Path, bytes]:
        """The path and the bytes of a vocabulary that is as conversion left it."""
        if modality not in self.manifest.modalities:
            known = ", ".join(self.manifest.modalities)
            raise InputError(
                f"{self.path}: has no modality {modality!r} (there are: {known}); convert again "
                "with its place",
                Argument("modalities", {modality: f"obsm:{modality}"}, of="convert"),
            )
        info = self.manifest.modalities[modality]
        path = self.path / info.vocabulary
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); convert again or restore the file"
            ) from error
        if hashlib.sha256(content).hexdigest() != info.sha256:
            raise InputError(f"{path}: is damaged or was changed; convert again or restore it")
        if content.count(b"\n") != info.n_genes + 1:  # one line above
            raise InputError(f"{path}: does not hold {info.n_genes} genes; convert again")
        return path, content

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

    def _count_problem(self, shard: ShardInfo) -> str | None:
        """What the cells of a shard that is whole say."""
        from concerto_tf.records.pipeline import count_sources

        counts = count_sources(self.path, self.manifest, shard)
        if counts != list(shard.cells_per_source):
            return (
                f"{shard.file} has {counts} cells per source instead of "
                f"{list(shard.cells_per_source)}"
            )
        return None

    def _check_dataset(
        self, batch_size: int, labels: Sequence[str], shard_of: tuple[int, int], drop: bool
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size}; it must be at least 1")
        for name in labels:
            if name not in self.manifest.labels:
                known = ", ".join(self.manifest.labels) or "none"
                raise InputError(
                    f"{self.path}: has no label {name!r} (there are: {known}); convert with it",
                    Argument("label_keys", [name], of="convert"),
                )
        index, count = shard_of
        if not 0 <= index < count:
            raise InputError(f"share {index} of {count} is none; count from 0")
        if drop and batch_size > self.n_cells_of(index, count):
            raise InputError(
                f"{self.path}: {self.n_cells} cells for {count} workers do not fill a batch of "
                f"{batch_size}; make the batch smaller"
            )
