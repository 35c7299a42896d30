"""`manifest.json`: what a folder of records holds, written last, checked when it is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from concerto_tf._files import write_json
from concerto_tf._paths import as_path
from concerto_tf.errors import Argument, InputError, choices
from concerto_tf.jobs import Layout
from concerto_tf.records.batch import RNA
from concerto_tf.records.units import COUNTS, LINEAR, LOGNORM, VALUES, scales_with_depth

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
#: A folder of records as a conversion makes it.
LAYOUT = Layout(
    "records",
    begun="plan.json",
    finished=FILE_NAME,
    scratch=("spool",),
    products=("shard-*.tfrecord", "shard-*.tfrecord.gz", "vocabulary*.tsv"),
)
UNITS = (COUNTS, LINEAR, LOGNORM, VALUES)
_GENE_DTYPES = ("uint16", "uint32")
_VALUE_DTYPES = ("uint8", "uint16", "uint32", "float32")
_SIZES = ("n_genes", "max_nonzeros")
_COMPRESSIONS = ("none", "gzip")


def vocabulary_file(modality: str) -> str:
    """Name of the file that holds the vocabulary of a modality."""
    return "vocabulary.tsv" if modality == RNA else f"vocabulary-{modality}.tsv"


@dataclass(frozen=True)
class ModalityInfo:
    """How one modality is stored.

    Attributes:
        vocabulary: File with one gene per line, in the order of the gene indices.
        n_genes: Number of genes.
        gene_dtype: Little-endian dtype of the indices: uint16, or uint32 past 65,535 genes.
        value_dtype: Little-endian dtype of the values: uint8, uint16, uint32 or float32.
        max_nonzeros: Most nonzeros of any cell.
        units: "counts"; "linear" (expected counts, TPM); "lognorm" (log1p
            of values scaled to one sum per cell); "values" (others).
        sha256: Checksum of the vocabulary file in hexadecimal.
    """

    vocabulary: str
    n_genes: int
    gene_dtype: str
    value_dtype: str
    max_nonzeros: int
    units: str
    sha256: str

    @property
    def scales_with_depth(self) -> bool:
        """Whether cells are to be scaled to one total and log1p is to be taken."""
        return scales_with_depth(self.units)


@dataclass(frozen=True)
class ShardInfo:
    """One TFRecord file.

    Attributes:
        file: Name within the folder.
        n_cells: Number of records.
        bytes: Size.
        sha256: Checksum in hexadecimal.
        cells_per_source: Number of cells of each source, in the order of the sources.
    """

    file: str
    n_cells: int
    bytes: int
    sha256: str
    cells_per_source: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        package_version: Version of concerto_tf that wrote the records.
        n_cells: Number of cells over all shards.
        modalities: RNA and any further ones.
        normalisation: The scale of the gene statistics: {"target_sum": 10000, "log1p": true} for
            counts, empty for log-normalized values. A model has its own.
        sources: Name of each source code.
        labels: Label key to the name of each code.
        inputs: What was converted, in order: {"name", "n_cells"}.
        seed: Seed of the permutation.
        compression: "none" or "gzip", for every shard.
        shards: The files, in order.
        report: What conversion found worth saying: {"lines": [...], ...}.
        coverage: Expected share of a cell's RNA that the genes which its source was measured for
            hold, in the order of the sources; empty where all inputs have the same genes.
        asked: Inputs (by checksum) and options that they were made with; None if an input was in
            memory.
        schema_version: Version of this format.
    """

    package_version: str
    n_cells: int
    modalities: dict[str, ModalityInfo]
    normalisation: dict[str, Any]
    sources: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    inputs: tuple[dict[str, Any], ...]
    seed: int
    compression: str
    shards: tuple[ShardInfo, ...]
    report: dict[str, Any] = field(default_factory=dict)
    coverage: tuple[float, ...] = ()
    asked: dict[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def cells_per_source(self) -> list[int]:
        """Number of cells of each source."""
        counts = [shard.cells_per_source for shard in self.shards]
        return [sum(column) for column in zip(*counts, strict=True)]

    def save(self, folder: str | Path) -> None:
        """Writes `manifest.json` into `folder`, atomically."""
        content = asdict(self)
        write_json(as_path(folder) / FILE_NAME, {**content, "checksum": _checksum(content)})

    @staticmethod
    def load(folder: str | Path) -> Manifest:
        """Reads and checks `manifest.json`.

        Args:
            folder: Folder of finished records.

        Returns:
            The manifest.

        Raises:
            InputError: There is none, it is of a newer schema, was changed by hand, names files
                outside the folder, or its numbers do not add up.
        """
        path = as_path(folder) / FILE_NAME
        try:
            content = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(_missing(as_path(folder))) from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read ({error}); convert again") from error
        if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
            raise InputError(f"{path}: this is no manifest of concerto records")
        if content["schema_version"] > SCHEMA_VERSION:
            raise InputError(
                f"{path}: written in schema {content['schema_version']}, newer than schema "
                f"{SCHEMA_VERSION} of this version; update concerto_tf"
            )
        checksum = content.pop("checksum", None)
        if checksum != _checksum(content):
            raise InputError(f"{path}: was changed or damaged after it was written; convert again")
        try:
            manifest = _build(content)
            problem = _problem(manifest)
        except (TypeError, KeyError, AttributeError) as error:
            problem = f"does not have the expected content ({error})"
        if problem:
            raise InputError(f"{path}: {problem}; convert again")
        return manifest


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest as JSON with sorted keys and without spaces."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _missing(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder; check the path"
    if not folder.is_dir():
        return f"{folder}: is no folder of records; `convert` makes one from such a file"
    if (folder / LAYOUT.begun).exists():
        return f"{folder}: the conversion is unfinished; run the same convert again to finish it"
    return f"{folder}: has no {FILE_NAME}, so it holds no records"


def _build(content: dict[str, Any]) -> Manifest:
    known = {entry.name for entry in fields(Manifest)}
    values = {name: value for name, value in content.items() if name in known}
    values["modalities"] = {
        name: ModalityInfo(**info) for name, info in content["modalities"].items()
    }
    values["shards"] = tuple(
        ShardInfo(**{**info, "cells_per_source": tuple(info["cells_per_source"])})
        for info in content["shards"]
    )
    values["labels"] = {key: tuple(names) for key, names in content["labels"].items()}
    if isinstance(content["sources"], str):  # a sequence, too, of its letters
        raise TypeError("sources is no list")
    values["sources"] = tuple(content["sources"])
    values["inputs"] = tuple(content["inputs"])
    values["coverage"] = tuple(content.get("coverage", ()))
    return Manifest(**values)


def _problem(manifest: Manifest) -> str | None:
    """What is wrong with a manifest, or None."""
    infos, shards = manifest.modalities.values(), manifest.shards
    numbers = [manifest.n_cells, *(getattr(info, name) for info in infos for name in _SIZES)]
    for shard in shards:
        numbers += [shard.n_cells, shard.bytes, *shard.cells_per_source]
    if any(type(number) is not int or number < 0 for number in numbers):
        return "has something else where a number is due"
    if not all(isinstance(share, float) and 0 < share <= 1 for share in manifest.coverage):
        return "has something else where shares from 0 to 1 are due"
    if len(manifest.coverage) not in (0, len(manifest.sources)):
        return f"has the coverage of {len(manifest.coverage)} sources"
    texts = [manifest.compression, *manifest.sources, *(info.sha256 for info in infos)]
    texts += [name for names in manifest.labels.values() for name in names]
    texts += [text for shard in shards for text in (shard.file, shard.sha256)]
    texts += [item["name"] for item in manifest.inputs]
    if not all(isinstance(text, str) for text in texts):
        return "has something else where text is due"
    files = [shard.file for shard in manifest.shards]
    files += [info.vocabulary for info in manifest.modalities.values()]
    for name in files:
        if not name or Path(name).name != name or {*"\\\0"} & {*name} or name in (".", ".."):
            return f"names the file {name!r}, which is not within the folder"
    if len(set(files)) != len(files):
        return "names a file twice"
    if RNA not in manifest.modalities:
        return f"has no modality {RNA!r}"
    for name, info in manifest.modalities.items():
        if info.gene_dtype not in _GENE_DTYPES or info.value_dtype not in _VALUE_DTYPES:
            return f"modality {name!r} has unknown types {info.gene_dtype}, {info.value_dtype}"
        if info.units not in UNITS:
            return f"modality {name!r} has unknown units {info.units!r}"
        if not 0 <= info.max_nonzeros <= info.n_genes:
            return f"modality {name!r} says {info.max_nonzeros} nonzeros of {info.n_genes} genes"
    if manifest.compression not in _COMPRESSIONS:
        return f"has unknown compression {manifest.compression!r}"
    for shard in manifest.shards:
        if len(shard.cells_per_source) != len(manifest.sources):
            return f"{shard.file} has counts for {len(shard.cells_per_source)} sources"
        if sum(shard.cells_per_source) != shard.n_cells:
            return f"the sources of {shard.file} do not add up to its {shard.n_cells} cells"
    if sum(shard.n_cells for shard in manifest.shards) != manifest.n_cells:
        return f"the shards do not add up to {manifest.n_cells} cells"
    return None


def check_label(name: str | Path, labels: Iterable[str], key: str) -> None:
    """Raises InputError where cells called `name` were read without a label that is asked for."""
    if key not in labels:
        raise InputError(
            f"{name}: has no label {key!r}; {choices(key, labels)}; or convert again with it",
            Argument("label_keys", [key], of="convert"),
        )
