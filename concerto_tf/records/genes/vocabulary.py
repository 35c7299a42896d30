"""The ordered genes of one modality: what gene index 17 means."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.records.genes.identifiers import identifier_kind, species_of


@dataclass(frozen=True)
class Vocabulary:
    """The ordered genes (or proteins, ...) of one modality; position is the gene index.

    Args:
        ids: the unique name of each gene, as the input has it (var_names; 10x: Ensembl id).
        symbols: gene symbols where `ids` are something else; "" where unknown; may repeat.
        ensembl: Ensembl ids where `ids` are symbols; "" where unknown; may repeat.

    Raises:
        InputError: an id appears twice, a name holds a tab or line break, lengths differ.

    Example:
        >>> vocabulary = Vocabulary(("ENSG00000198851", "ENSG00000156738"), ("CD3E", "MS4A1"))
        >>> len(vocabulary), vocabulary.kind, vocabulary.species
        (2, 'ensembl', 'human')
        >>> vocabulary.index(["ENSG00000156738", "CD19"])
        array([ 1, -1])
        >>> vocabulary.names
        ('CD3E', 'MS4A1')
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...] | None = None
    ensembl: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, field in self.fields.items():
            # Lists and arrays are accepted, tuples of str are kept.
            field = tuple(map(str, field))
            object.__setattr__(self, name, field)
            if len(field) != len(self.ids):
                raise InputError(
                    f"{len(self.ids)} gene ids but {len(field)} {name}: one is needed for each gene"
                )
            bad = next(
                (text for text in field if "\t" in text or "\n" in text or "\r" in text), None
            )
            if bad is not None:
                raise InputError(f"gene name {bad!r} holds a tab or a line break: rename it")
            try:
                "".join(field).encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"a gene name holds half of a character ({error.reason}); rename it"
                ) from None
        if len(set(self.ids)) != len(self.ids):
            raise InputError(_duplicates_message(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The names that are there: "ids" and, where known, "symbols" and "ensembl"."""
        fields = {"ids": self.ids, "symbols": self.symbols, "ensembl": self.ensembl}
        return {name: field for name, field in fields.items() if field is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """A name to show for each gene: its symbol where known, else its id."""
        if self.symbols is None:
            return self.ids
        return tuple(symbol or id for symbol, id in zip(self.symbols, self.ids, strict=True))

    @cached_property
    def kind(self) -> str:
        """The kind of the ids: a key of `identifiers.KINDS`."""
        return identifier_kind(self.ids)

    @cached_property
    def species(self) -> str | None:
        """The species the ids look like, or None."""
        return species_of(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the ids in their order: equal digests mean equal gene indices."""
        return hashlib.sha256("\n".join(self.ids).encode()).hexdigest()

    @cached_property
    def positions(self) -> dict[str, int]:
        """Gene index of each id."""
        return {id: position for position, id in enumerate(self.ids)}

    def index(self, names: Iterable[str]) -> np.ndarray:
        """Gene index of each name among the ids.

        Args:
            names: ids to look up.

        Returns:
            int64, one per name, -1 for a name that is not there.
        """
        found = [self.positions.get(name, -1) for name in names]
        return np.array(found, dtype=np.int64)

    def take(self, indices: Sequence[int] | np.ndarray) -> Vocabulary:
        """The vocabulary of some of the genes, in the given order."""
        kept = {name: tuple(field[i] for i in indices) for name, field in self.fields.items()}
        return Vocabulary(**kept)

    def to_tsv(self, path: str | Path, columns: Mapping[str, Sequence[Any]] | None = None) -> None:
        """Writes one line per gene, in order, under a header.

        Args:
            path: file to write; use a temporary sibling and rename it when it is complete.
            columns: further columns by name, one value per gene; written with `str` (NumPy floats
                so that they read back exactly).
        """
        table: dict[str, Sequence[Any]] = {"id": self.ids}
        if self.symbols is not None:
            table["symbol"] = self.symbols
        if self.ensembl is not None:
            table["ensembl"] = self.ensembl
        for name, values in (columns or {}).items():
            table[name] = values.tolist() if isinstance(values, np.ndarray) else values
        with as_path(path).open("w", encoding="utf-8", newline="") as file:
            file.write("\t".join(table) + "\n")
            for line in zip(*table.values(), strict=True):
                file.write("\t".join(map(str, line)) + "\n")

    @staticmethod
    def from_tsv(path: str | Path) -> Vocabulary:
        """Reads what `to_tsv` wrote; further columns are left (see `read_table`)."""
        return Vocabulary.from_table(read_table(path), path)

    @staticmethod
    def from_table(table: Mapping[str, Sequence[str]], path: str | Path) -> Vocabulary:
        """The vocabulary in the columns of a table that was read from a path."""
        if "id" not in table:
            raise InputError(f"{path}: no column 'id'; there are {', '.join(table)}")
        parts = {name: table.get(column) for name, column in _COLUMNS.items()}
        return Vocabulary(**{k: tuple(v) for k, v in parts.items() if v is not None})


_COLUMNS = {"ids": "id", "symbols": "symbol", "ensembl": "ensembl"}


def read_table(path: str | Path, content: bytes | None = None) -> dict[str, list[str]]:
    """All columns of a tab-separated file with a header, as text.

    Args:
        path: file to read.
        content: its bytes, where they were read already.

    Returns:
        Column name to its values.

    Raises:
        InputError: the file is missing, not text, or a line has too few or too many columns.
    """
    try:
        text = (as_path(path).read_bytes() if content is None else content).decode()
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        lines = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error
    if not lines:
        raise InputError(f"{path}: the table is empty")
    header, *body = lines
    for number, line in enumerate(body, start=2):
        if len(line) != len(header):
            raise InputError(
                f"{path}: line {number} has {len(line)} columns where the header has {len(header)}"
            )
    return {name: [line[i] for line in body] for i, name in enumerate(header)}


def _duplicates_message(names: Iterable[str]) -> str:
    """Says which gene names appear more than once and what to do about it."""
    repeated = [(name, n) for name, n in Counter(names).most_common() if n > 1]
    listed = ", ".join(f"{name!r} ({n}x)" for name, n in repeated[:3])
    more = f" and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    return f"duplicate gene names: {listed}{more}; run adata.var_names_make_unique() and save again"
