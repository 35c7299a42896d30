"""What kind of gene identifiers a list holds, and of which species they look."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

KINDS = {
    "symbol": "gene symbols",
    "ensembl": "Ensembl ids",
    "ensembl_version": "Ensembl ids with version",
    "entrez": "numeric (Entrez) ids",
    "unnamed": "running numbers (no names)",
}

_SPECIES_OF_ENSEMBL = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSPTRG": "chimpanzee",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSGALG": "chicken",
    "ENSCAFG": "dog",
    "ENSXETG": "frog",
    "FBgn": "fly",
    "WBGene": "worm",
}

_ENSEMBL = re.compile(r"(?P<stem>ENS[A-Z]{0,5}G|FBgn|WBGene)\d{7,11}(?P<version>\.\d+)?(_PAR_Y)?")
_RUNNING = re.compile(r"(?:gene|feature|var|column|protein|peak)[ _.\-]?\d+", re.IGNORECASE)
_SPIKE_IN = re.compile(r"ERCC-\d+")
_VERSION = re.compile(r"((?:ENS[A-Z]{0,5}G|FBgn|WBGene)\d{7,11})\.\d+")
# As Cell Ranger and the makers of mixed-species references write them: "GRCh38_", "mm10___".
_PREFIX = re.compile(
    r"(?:GRC[a-z]\d+|GRCm\d+|hg\d+|mm\d+|rn\d+|danRer\d+|dm\d+|ce\d+|human|mouse|homo_sapiens|"
    r"mus_musculus)(?:_+|-)",
    re.IGNORECASE,
)


def identifier_kind(names: Sequence[str]) -> str:
    """The kind of identifier that most of the names are.

    A species prefix such as ``GRCh38_`` and ERCC spike-ins are looked past.

    Args:
        names: gene names in any order.

    Returns:
        One of the keys of `KINDS`.

    Example:
        >>> identifier_kind(["CD3E", "MS4A1", "ERCC-00002"])
        'symbol'
        >>> identifier_kind(["ENSG00000198851.10", "ENSG00000156738.19"])
        'ensembl_version'
        >>> identifier_kind(["gene_0", "gene_1"])
        'unnamed'
    """
    names = _biological(names)
    counts = Counter(map(_kind_of_one, names))
    if not counts:
        return "symbol"
    kind, n = counts.most_common(1)[0]
    if 2 * n <= len(names):
        return "symbol"
    if kind == "entrez" and _is_running(names):
        return "unnamed"
    return kind


def species_of(names: Sequence[str]) -> str | None:
    """The species the names look like, or None where they do not tell.

    Ensembl, FlyBase and WormBase ids tell it outright. Symbols tell it by their spelling: human
    symbols are in capitals, mouse and rat symbols have one capital, zebrafish symbols have none.

    Args:
        names: gene names in any order.

    Returns:
        A species in plain words, for messages; never used to match genes.

    Example:
        >>> species_of(["ENSMUSG00000000001"]), species_of(["ACTB", "CD3E"]), species_of(["Actb"])
        ('mouse', 'human', 'mouse')
        >>> species_of(["gene_0", "gene_1"]) is None
        True
    """
    names = _biological(names)
    kind = identifier_kind(names)
    if kind in ("ensembl", "ensembl_version"):
        votes = Counter(
            _SPECIES_OF_ENSEMBL.get(found["stem"])
            for found in map(_ENSEMBL.fullmatch, names)
            if found
        )
    elif kind == "symbol":
        votes = Counter(map(_spelling, names))
        # Too short or numeric to tell, in any species.
        votes.pop("", None)
    else:
        return None
    if not votes:
        return None
    species, n = votes.most_common(1)[0]
    return species if species and n >= 0.6 * votes.total() else None


def strip_version(name: str) -> str:
    """An Ensembl id without its version; any other name as it is.

    Example:
        >>> strip_version("ENSG00000198851.10"), strip_version("AL627309.1")
        ('ENSG00000198851', 'AL627309.1')
    """
    return _VERSION.sub(r"\1", name)


def species_prefixes(names: Iterable[str]) -> list[str]:
    """The species prefixes that at least 5% of the names begin with.

    Args:
        names: gene names.

    Returns:
        Prefixes as written, the most frequent first.

    Example:
        >>> species_prefixes(["GRCh38_CD3E", "GRCh38_MS4A1", "mm10___Cd3e"])
        ['GRCh38_', 'mm10___']
    """
    names = list(names)
    found = Counter(hit.group() for hit in map(_PREFIX.match, names) if hit)
    return [prefix for prefix, n in found.most_common() if n >= 0.05 * len(names)]


def _biological(names: Sequence[str]) -> list[str]:
    """The names without species prefixes, spike-ins and blanks."""
    return [_PREFIX.sub("", name, count=1) for name in names if name and not _SPIKE_IN.match(name)]


def _kind_of_one(name: str) -> str:
    found = _ENSEMBL.fullmatch(name)
    if found:
        return "ensembl_version" if found["version"] else "ensembl"
    if name.isdecimal():
        return "entrez"
    return "unnamed" if _RUNNING.fullmatch(name) else "symbol"


def _is_running(names: list[str]) -> bool:
    """Whether numeric names are only 0, 1, 2, ... or 1, 2, 3, ..."""
    numbers = [int(name) for name in names if name.isdecimal()]
    return (
        bool(numbers)
        and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        and (numbers[0] <= 1)
    )


def _spelling(name: str) -> str:
    letters = [letter for letter in name if letter.isalpha()]
    if len(letters) < 2:
        return ""
    if "".join(letters).isupper():
        return "human"
    if "".join(letters).islower():
        return "zebrafish"
    return "mouse" if name[0].isupper() and "".join(letters[1:]).islower() else ""
