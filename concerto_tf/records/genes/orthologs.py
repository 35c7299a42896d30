"""Tables of orthologs, to carry the genes of one species over to another."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from concerto_tf._paths import as_path
from concerto_tf.errors import InputError


@dataclass(frozen=True)
class Orthologs:
    """Pairs of genes of two species; a gene may be in several pairs.

    Args:
        species: names of the two columns.
        pairs: (gene of the first species, gene of the second).

    Example:
        >>> table = Orthologs(("human", "mouse"), (("CD3E", "Cd3e"), ("SAA1", "Saa1")))
        >>> table.partners(backwards=True)["Cd3e"]
        ['CD3E']
    """

    species: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]

    def partners(self, backwards: bool = False) -> dict[str, list[str]]:
        """Gene of one species -> its orthologs in the other, each once, in the table's order.

        Args:
            backwards: from the second species to the first.
        """
        found: dict[str, dict[str, None]] = {}
        for one, other in self.pairs:
            one, other = (other, one) if backwards else (one, other)
            found.setdefault(one, {})[other] = None
        return {gene: list(partners) for gene, partners in found.items()}


def read_orthologs(path: str | Path) -> Orthologs:
    """Reads a table of orthologs.

    Args:
        path: a CSV or TSV whose header names two species; pairs with an empty field are left out.

    Returns:
        The table.

    Raises:
        InputError: the file is missing, has not two columns, or holds no pair.
    """
    path = as_path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the ortholog table cannot be read ({error})") from error
    header = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else ","
    lines = [
        [field.strip() for field in line]
        for line in csv.reader(text.splitlines(), delimiter=delimiter)
        if line
    ]
    wrong = next((i for i, line in enumerate(lines, start=1) if len(line) != 2), None)
    if not lines or wrong is not None:
        where = f"line {wrong} has {len(lines[wrong - 1])}" if wrong else "it is empty"
        raise InputError(
            f"{path}: two columns are needed, named by species, such as human,mouse; {where}"
        )
    pairs = tuple((one, other) for one, other in lines[1:] if one and other)
    if not pairs:
        raise InputError(f"{path}: no pair of genes below the header {','.join(lines[0])}")
    return Orthologs((lines[0][0], lines[0][1]), pairs)
