"""Finds the genes of one vocabulary in another; too few shared genes are an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.genes.identifiers import (
    KINDS,
    identifier_kind,
    species_of,
    species_prefixes,
    strip_version,
)
from concerto_tf.records.genes.orthologs import Orthologs
from concerto_tf.records.genes.vocabulary import Vocabulary

# Fewer shared genes than this mean nothing, unless the vocabularies themselves are small.
FEWEST_SHARED = 50


@dataclass(frozen=True, eq=False)
class Match:
    """Which genes of a query are which genes of a reference.

    Args:
        query: genes to be placed.
        reference: genes that there is place for.
        query_index: int64 [n_pairs], ascending.
        reference_index: int64 [n_pairs]. A gene may be in several pairs: the values of query genes
            with the same reference gene are summed, and a query gene with several orthologs adds to
            each.
        how: the rule that matched them, in words.
        n_ambiguous: query genes whose name several reference genes bear; they go to the first.

    Example:
        >>> query = Vocabulary(("ENSG00000198851.10", "ENSG00000156738.19"))
        >>> reference = Vocabulary(("ENSG00000156738", "ENSG00000010610"))
        >>> found = match(query, reference)
        >>> found.index, found.shared, found.missing, found.extra
        (array([-1,  0]), 1, 1, 1)
        >>> print(found.how)
        Ensembl ids, without version
    """

    query: Vocabulary
    reference: Vocabulary
    query_index: np.ndarray
    reference_index: np.ndarray
    how: str
    n_ambiguous: int = 0

    @property
    def index(self) -> np.ndarray:
        """int64, one per query gene: its (first) reference gene, -1 for none."""
        index = np.full(len(self.query), -1, dtype=np.int64)
        index[self.query_index[::-1]] = self.reference_index[::-1]
        return index

    @property
    def shared(self) -> int:
        """Reference genes that the query has."""
        return len(np.unique(self.reference_index))

    @property
    def missing(self) -> int:
        """Reference genes that the query lacks; they were not measured."""
        return len(self.reference) - self.shared

    @property
    def extra(self) -> int:
        """Query genes that the reference lacks; they are left out."""
        return len(self.query) - len(np.unique(self.query_index))

    @property
    def n_summed(self) -> int:
        """Query genes that share their reference gene with another query gene."""
        n_onto = np.bincount(self.reference_index, minlength=len(self.reference))
        return len(np.unique(self.query_index[n_onto[self.reference_index] > 1]))

    @property
    def n_spread(self) -> int:
        """Query genes that add to several reference genes (orthologs)."""
        return int((np.bincount(self.query_index, minlength=len(self.query)) > 1).sum())

    @property
    def is_identity(self) -> bool:
        """Whether the two have the same genes in the same order."""
        every = np.arange(len(self.query))
        return (
            len(self.query) == len(self.reference)
            and np.array_equal(self.query_index, every)
            and np.array_equal(self.reference_index, every)
        )

    def matrix(self, dtype: np.dtype | type = np.float32) -> sp.csr_matrix:
        """Ones where query gene (row) and reference gene (column) are a pair."""
        ones = np.ones(len(self.query_index), dtype=dtype)
        shape = (len(self.query), len(self.reference))
        return sp.csr_matrix((ones, (self.query_index, self.reference_index)), shape=shape)

    def apply(self, values: sp.csr_matrix) -> sp.csr_matrix:
        """Carries cells over to the reference's genes.

        Args:
            values: cells x query genes.

        Returns:
            cells x reference genes, indices ascending, dtype as given (no sum is cut: integers of
            less than 32 bits become int32 where genes are summed).
        """
        if self.is_identity:
            return values
        shape = (values.shape[0], len(self.reference))
        if self.n_summed or self.n_spread:
            narrow = values.dtype.kind in "iu" and values.dtype.itemsize < 4
            values = values.astype(np.int32) if narrow else values
            carried = (values @ self.matrix(values.dtype)).tocsr()
            carried.sort_indices()
            return carried
        index = self.index.astype(np.int32)
        indices = index[values.indices]
        kept = indices >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        carried = sp.csr_matrix(
            (values.data[kept], indices[kept], before[values.indptr].astype(np.int32)), shape=shape
        )
        if np.any(np.diff(index[index >= 0]) < 0):
            carried.sort_indices()
        return carried

    def report(self) -> str:
        """The numbers in one or two sentences."""
        text = (
            f"{self.shared:,} of {len(self.reference):,} genes found by {self.how}; "
            f"{self.missing:,} missing (not measured), {self.extra:,} of the input's "
            f"{len(self.query):,} left out"
        )
        if self.n_summed:
            text += f"; {self.n_summed:,} genes summed with another of the same name or ortholog"
        if self.n_spread:
            text += f"; {self.n_spread:,} genes added to several orthologs each"
        if self.n_ambiguous:
            text += (
                f"; {self.n_ambiguous:,} with a name that several genes bear, given to the first"
            )
        return text


def match(query: Vocabulary, reference: Vocabulary, orthologs: Orthologs | None = None) -> Match:
    """Finds the query's genes in the reference by whichever names share the most genes.

    Tried are all pairs of ids, symbols and Ensembl ids, as they are, without the version of Ensembl
    ids, and without a species prefix (`GRCh38_`, `mm10___`; where a list has several, each in turn,
    and the genes of the other species are left out), and through the orthologs in both directions.
    Upper and lower case are never mixed: `Actb` is not `ACTB`. Lists that number their genes
    (`gene_0`, ...) match only if they hold the same names.

    Args:
        query: genes to be placed.
        reference: genes that there is place for.
        orthologs: table of another species' genes.

    Returns:
        The match; it may be empty (see `check_overlap`).
    """
    if query.ids == reference.ids:
        every = np.arange(len(query), dtype=np.int64)
        return Match(query, reference, every, every, f"the same {KINDS[query.kind]}")
    empty = np.empty(0, dtype=np.int64)
    best = Match(query, reference, empty, empty, "any name")
    if "unnamed" in (query.kind, reference.kind) and set(query.ids) != set(reference.ids):
        return best
    forms_of_reference = [(*form, _positions(form[0])) for form in _forms(reference, "reference")]
    routes: list[tuple[str, Callable[[str], Sequence[str]]]] = [("", lambda name: (name,))]
    if orthologs is not None:
        for backwards in (False, True):
            one, other = orthologs.species[::-1] if backwards else orthologs.species
            partners = orthologs.partners(backwards)
            routes.append((f", orthologs {one} -> {other}", _look_up(partners)))
    for names, query_words in _forms(query, "query"):
        for other_names, reference_words, positions in forms_of_reference:
            for route_words, route in routes:
                found = _pair(names, positions, route)
                n_shared = len(np.unique(found[1]))
                if n_shared > best.shared:
                    words = ", ".join(dict.fromkeys([*query_words, *reference_words]))
                    how = KINDS[identifier_kind([n for n in other_names if n])]
                    how = how.replace(" with version", "") + (f", {words}" if words else "")
                    best = Match(query, reference, *found[:2], how + route_words, found[2])
    return best


def _look_up(partners: dict[str, list[str]]) -> Callable[[str], Sequence[str]]:
    return lambda name: partners.get(name, ())


def union(
    vocabularies: Sequence[Vocabulary],
    names: Sequence[str] | None = None,
    orthologs: Orthologs | None = None,
    minimum: float = 0.1,
) -> tuple[Vocabulary, list[Match]]:
    """Joins vocabularies: the genes of the first, then those that each further one adds.

    Args:
        vocabularies: one per input.
        names: of the inputs, for messages.
        orthologs: table for inputs of another species.
        minimum: see `check_overlap`, which each is put through against those before it.

    Returns:
        The joint vocabulary, and for each input its match with it (without extra genes).

    Raises:
        InputError: an input shares too few genes with those before it.

    Example:
        >>> joint, matches = union([Vocabulary(("CD3E", "CD4")), Vocabulary(("CD4", "CD8A"))])
        >>> joint.ids, matches[1].index
        (('CD3E', 'CD4', 'CD8A'), array([1, 2]))
    """
    names = names or [f"input {i}" for i in range(1, len(vocabularies) + 1)]
    joint = vocabularies[0]
    matches = [match(joint, joint)]
    for name, vocabulary in zip(names[1:], vocabularies[1:], strict=True):
        found = match(vocabulary, joint, orthologs)
        check_overlap(found, name, minimum)
        joint, found = _join(joint, vocabulary, found)
        matches.append(found)
    return joint, [replace(found, reference=joint) for found in matches]


def check_overlap(match: Match, what: str, minimum: float = 0.1) -> None:
    """Raises InputError if two lists share too few genes to mean anything.

    Too few are less than `minimum` of the shorter list, less than half of it where it is short, and
    less than 50 genes where the reference has 200 or more: nine shared genes give confident
    nonsense.

    Args:
        match: what was found.
        what: the query, for the message.
        minimum: smallest share of the shorter list.

    Raises:
        InputError: with the numbers, and the likely cause.
    """
    smaller = min(len(match.query), len(match.reference))
    fewest = max(
        minimum * smaller,
        min(FEWEST_SHARED, smaller / 2),
        min(FEWEST_SHARED, len(match.reference) / 4),
    )
    if match.shared >= fewest:
        return
    raise InputError(
        f"{what}: only {match.shared:,} of its {len(match.query):,} genes are among the "
        f"{len(match.reference):,} they are to be matched to; {_cause(match)}",
        "orthologs" if _of_two_species(match) else None,
    )


def _of_two_species(match: Match) -> bool:
    species = {match.query.species, match.reference.species}
    return None not in species and len(species) == 2


def _cause(match: Match) -> str:
    query, reference = match.query, match.reference
    if "unnamed" in (query.kind, reference.kind):
        number = query if query.kind == "unnamed" else reference
        return (
            f"one side numbers its genes ({number.ids[0]}, ...), and numbers of different files "
            "cannot be matched; give the genes their names"
        )
    kinds = [KINDS[side.kind] for side in (query, reference)]
    species = [side.species for side in (query, reference)]
    if _of_two_species(match):
        return (
            f"they look like {species[0]} ({kinds[0]}: {_typical(query)}), the others like "
            f"{species[1]} ({kinds[1]}: {_typical(reference)}); give an ortholog table that has "
            "these names"
        )
    if query.kind != reference.kind:
        return (
            f"they are {kinds[0]} ({query.ids[0]}), the others {kinds[1]} ({reference.ids[0]}); "
            "add the other names to var as 'gene_ids' or 'gene_symbols'"
        )
    return f"for example {query.ids[0]!r} and {reference.ids[0]!r}; is it the right file?"


def _typical(vocabulary: Vocabulary) -> str:
    """The first gene that looks like the species."""
    return next(name for name in vocabulary.ids if species_of([name]) == vocabulary.species)


def _forms(vocabulary: Vocabulary, side: str) -> Iterator[tuple[list[str], list[str]]]:
    """The vocabulary's names in every form to be tried, with what was done to them in words."""
    for field in vocabulary.fields.values():
        prefixes = species_prefixes(field)
        for prefix in [None, *prefixes]:
            names = list(field)
            words = []
            if prefix is not None:
                names = [
                    name.removeprefix(prefix) if name.startswith(prefix) else "" for name in names
                ]
                words = [f"prefix {prefix!r} of the {side} removed"]
            yield names, words
            unversioned = [strip_version(name) for name in names]
            if unversioned != names:
                yield unversioned, [*words, "without version"]


def _positions(names: Sequence[str]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        if name:
            positions.setdefault(name, []).append(position)
    return positions


def _pair(
    names: Sequence[str], positions: dict[str, list[int]], route: Callable[[str], Sequence[str]]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Query and reference indices of the pairs, and how many query genes were ambiguous."""
    query_index, reference_index = [], []
    n_ambiguous = 0
    for i, name in enumerate(names):
        found = [positions[other] for other in route(name) if other in positions] if name else []
        query_index += [i] * len(found)
        reference_index += [places[0] for places in found]
        n_ambiguous += any(len(places) > 1 for places in found)
    return (
        np.array(query_index, dtype=np.int64),
        np.array(reference_index, dtype=np.int64),
        n_ambiguous,
    )


def _join(joint: Vocabulary, vocabulary: Vocabulary, found: Match) -> tuple[Vocabulary, Match]:
    """Appends the genes that were not found."""
    ids = list(joint.ids)
    symbols = list(joint.symbols or [""] * len(ids))
    ensembl = list(joint.ensembl or [""] * len(ids))
    places = dict(joint.positions)
    pairs = list(zip(found.query_index.tolist(), found.reference_index.tolist(), strict=True))
    n_new = 0
    for i in np.flatnonzero(found.index < 0).tolist():
        id, symbol, accession = _named_like(joint, vocabulary, i)
        if id not in places:
            places[id] = len(ids)
            ids.append(id)
            symbols.append(symbol)
            ensembl.append(accession)
            n_new += 1
        pairs.append((i, places[id]))
    pairs.sort()
    grown = Vocabulary(
        tuple(ids),
        tuple(symbols) if any(symbols) else None,
        tuple(ensembl) if any(ensembl) else None,
    )
    query_index, reference_index = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    how = f"{found.how} ({found.shared:,} shared with the inputs before, {n_new:,} new)"
    return grown, Match(vocabulary, grown, query_index, reference_index, how, found.n_ambiguous)


def _named_like(joint: Vocabulary, vocabulary: Vocabulary, i: int) -> tuple[str, str, str]:
    """Id, symbol and Ensembl id of a gene, the id of the kind that the joint ids are."""
    id = vocabulary.ids[i]
    symbol = vocabulary.symbols[i] if vocabulary.symbols else ""
    accession = vocabulary.ensembl[i] if vocabulary.ensembl else ""
    if joint.kind == "symbol" and symbol and vocabulary.kind != "symbol":
        return symbol, "", id
    if joint.kind == "ensembl" and accession and vocabulary.kind == "symbol":
        return accession, id, ""
    return id, symbol, accession
