"""Makes one data set of several inputs: vocabulary, sources, labels, units, cell names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records.batch import RNA, SOURCE, label_key
from concerto_tf.records.conversion.writer import Chunk, Target
from concerto_tf.records.genes.orthologs import Orthologs
from concerto_tf.records.genes.overlap import FEWEST_SHARED, Match, check_overlap, match, union
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.input import Input
from concerto_tf.records.units import COUNTS, LINEAR, LOGNORM, check_totals, units_of

_BARCODE_CELLS = 65_536


@dataclass(frozen=True)
class Joined:
    """Inputs that were made to fit together.

    Attributes:
        inputs: The open inputs, in order.
        vocabularies: Modality to its genes.
        units: Modality to its units.
        sources: Name of each source code.
        labels: Label key to the name of each code.
        targets: Per input, modality to its place in the records.
        integers: Per input, "source" and "label/<key>" to int32 codes, one per cell.
        suffixes: Per input, what its barcodes get to be unique.
        report: What there is to say about it.
    """

    inputs: Sequence[Input]
    vocabularies: dict[str, Vocabulary]
    units: dict[str, str]
    sources: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    targets: list[dict[str, Target]]
    integers: list[dict[str, np.ndarray]]
    suffixes: list[str]
    report: dict = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Cells over all inputs."""
        return sum(cells.n_cells for cells in self.inputs)

    def chunk(self, number: int, start: int, stop: int) -> Chunk:
        """Reads the cells `start` to `stop` of the input `number`."""
        cells = self.inputs[number]
        first = sum(other.n_cells for other in self.inputs[:number])
        suffix = self.suffixes[number]
        matrices = cells.chunk(start, stop)
        for name, target in self.targets[number].items():
            if name not in matrices:  # these cells lack the modality
                matrices[name] = sp.csr_matrix((stop - start, len(target.match.query)), dtype="u1")
        return Chunk(
            matrices=matrices,
            rows=np.arange(first + start, first + stop),
            integers={key: codes[start:stop] for key, codes in self.integers[number].items()},
            barcodes=[barcode + suffix for barcode in cells.barcodes(start, stop)],
        )


def join(
    inputs: Sequence[Input],
    *,
    source_key: str | None,
    source_name: str | None = None,
    label_keys: Sequence[str],
    like: Mapping[str, Vocabulary],
    orthologs: Orthologs | None,
) -> Joined:
    """Decides what the records of these inputs have in common.

    Args:
        inputs: Open inputs, at least one.
        source_key: Column of obs with the source; None: each input is one.
        source_name: What to call the source of a single input without such a column.
        label_keys: Columns of obs to keep as labels.
        like: Modality to a given vocabulary; the union of the inputs' genes for the others.
        orthologs: Table for inputs of another species.

    Returns:
        The joined inputs.

    Raises:
        InputError: Keys, units or genes do not fit, or barcodes are not unique.
    """
    report: dict = {"lines": [note for cells in inputs for note in cells.notes]}
    vocabularies, places = _genes(inputs, like, orthologs, report)
    units, own_units = _units(inputs, list(vocabularies))
    alone = source_name or ("all" if not like else None)
    sources, codes = _sources(inputs, source_key, alone)
    integers: list[dict[str, np.ndarray]] = [{SOURCE: part} for part in codes]
    labels = {}
    for key in label_keys:
        labels[key], codes = _merge([cells.column(key) for cells in inputs])
        missing = sum(int((part < 0).sum()) for part in codes)
        if missing:
            report["lines"].append(f"label {key!r}: {missing} cells without a value")
        for columns, part in zip(integers, codes, strict=True):
            columns[label_key(key)] = part
    for modality, unit in units.items():
        if unit == COUNTS:
            continue
        line = (
            f"{modality}: expected counts or TPM; scaled per cell and log-normalized as counts are"
            if unit == LINEAR
            else f"{modality}: taken as log-normalized ({unit}); used unchanged"
        )
        others = list(dict.fromkeys(name for cells in inputs for name in cells.layers))
        if modality == RNA and others:
            line += f"; if the counts are in one of {', '.join(others)}, name that layer"
        report["lines"].append(line)
    return Joined(
        inputs=inputs,
        vocabularies=vocabularies,
        units=units,
        sources=sources,
        labels=labels,
        targets=[
            {
                modality: Target(found, own.get(modality, units[modality]))
                for modality, found in place.items()
            }
            for place, own in zip(places, own_units, strict=True)
        ],
        integers=integers,
        suffixes=_suffixes(inputs, report),
        report=report,
    )


def _genes(
    inputs: Sequence[Input],
    like: Mapping[str, Vocabulary],
    orthologs: Orthologs | None,
    report: dict,
) -> tuple[dict[str, Vocabulary], list[dict[str, Match]]]:
    """The vocabulary of each modality, and where each input's genes are in it."""
    vocabularies: dict[str, Vocabulary] = {}
    places: list[dict[str, Match]] = [{} for _ in inputs]
    report["overlap"] = []
    names = [cells.name for cells in inputs]
    for modality in dict.fromkeys(name for cells in inputs for name in cells.modalities):
        having = [modality in cells.modalities for cells in inputs]
        own = [cells.modalities[modality] for cells in inputs if modality in cells.modalities]
        # Orthologs are of genes; what else is measured goes by its name.
        table = orthologs if modality == RNA else None
        who = [name for name, has in zip(names, having, strict=True) if has]
        if modality in like:
            vocabularies[modality] = like[modality]
            matches = [match(genes, like[modality], table) for genes in own]
            for name, found in zip(who, matches, strict=True):
                check_overlap(found, name if modality == RNA else f"{name}: {modality}")
        else:
            vocabularies[modality], matches = union(own, who, table)
        none = np.zeros(0, np.int64)
        nothing = Match(Vocabulary(()), vocabularies[modality], none, none, "nothing")
        found_of = iter(matches)
        for place, has in zip(places, having, strict=True):
            place[modality] = next(found_of) if has else nothing
        for name, has in zip(names, having, strict=True):
            if not has:
                report["lines"].append(f"{name}: has no {modality}; its cells lack it")
        if modality not in like and len(inputs) == 1:
            continue
        held = [set(found.reference_index.tolist()) for found in matches]
        some, every = set.union(*held), set.intersection(*held)
        if some != every:
            what = "the others read as zero where they are missing"
            if modality in like:
                what += "; convert such inputs apart to have them told from zero"
            elif modality == RNA and len(every) >= FEWEST_SHARED:
                what = "a new model looks at these unless its genes are named"
            report["lines"].append(
                f"{modality}: {len(every):,} of {len(some):,} genes are in all inputs; {what}"
            )
        for name, found in zip(who, matches, strict=True):
            report["lines"].append(f"{name}: {modality}: {found.report()}")
            report["overlap"].append(
                {
                    "input": name,
                    "modality": modality,
                    "how": found.how,
                    "shared": found.shared,
                    "missing": found.missing,
                    "extra": found.extra,
                }
            )
    return vocabularies, places


def _units(
    inputs: Sequence[Input], modalities: Sequence[str]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The units of each modality in all, and in each of the inputs that have it."""
    own_units = [units_of(cells, modalities) for cells in inputs]
    units = {}
    for name in modalities:
        found = [
            (cells.name, own[name])
            for cells, own in zip(inputs, own_units, strict=True)
            if name in own
        ]
        different = {unit for _, unit in found}
        units[name] = LINEAR if LINEAR in different else found[0][1]
        if len(different) > 1 and different != {COUNTS, LINEAR}:
            each = ", ".join(f"{cells} {unit}" for cells, unit in found)
            raise InputError(
                f"the inputs hold {name} values in different units ({each}); "
                "convert them apart, or name the layer with the counts"
            )
        if units[name] == LOGNORM and len(found) > 1:
            check_totals([cells for cells in inputs if name in cells.modalities], name)
    return units, own_units


def _sources(
    inputs: Sequence[Input], key: str | None, alone: str | None
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the sources and codes per input; `alone` names the source of a single input.

    With given genes a single input goes by its own name: the model they come from may know it.
    """
    if key is None:
        names = tuple(cells.stem for cells in inputs)
        if len(inputs) == 1 and alone is not None:
            names = (alone,)
        if len(set(names)) < len(names):
            names = tuple(f"{name}-{number}" for number, name in enumerate(names, 1))
        return names, [np.full(cells.n_cells, code, np.int32) for code, cells in enumerate(inputs)]
    names, codes = _merge([cells.column(key) for cells in inputs])
    for cells, part in zip(inputs, codes, strict=True):
        missing = int((part < 0).sum())
        if missing:
            raise InputError(
                f"{cells.name}: the source {key!r} is missing for {missing} of {cells.n_cells} "
                "cells; fill it in or leave these cells out"
            )
    return names, codes


def _merge(
    columns: Sequence[tuple[np.ndarray, list[str]]],
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Codes of several inputs over their common categories, in order of first appearance."""
    names = tuple(dict.fromkeys(name for _, categories in columns for name in categories))
    place = {name: code for code, name in enumerate(names)}
    merged = []
    for codes, categories in columns:
        # The last entry is the one that the code -1 (missing) takes.
        places = np.array([*(place[name] for name in categories), -1], np.int32)
        merged.append(places[codes])
    return names, merged


def _suffixes(inputs: Sequence[Input], report: dict) -> list[str]:
    """What to add to the barcodes of each input: its number, if inputs share any barcode."""
    hashes = []
    for cells in inputs:
        cells.check_barcodes()
        if len(inputs) > 1:
            for start in range(0, cells.n_cells, _BARCODE_CELLS):
                names = cells.barcodes(start, min(start + _BARCODE_CELLS, cells.n_cells))
                hashes.append(np.fromiter(map(hash, names), np.int64, len(names)))
    if not hashes or len(np.unique(np.concatenate(hashes))) == sum(map(len, hashes)):
        return [""] * len(inputs)
    report["lines"].append("the inputs share barcodes: -1, -2, ... by input was added to each")
    return [f"-{number}" for number in range(1, len(inputs) + 1)]
