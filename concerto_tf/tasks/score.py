"""Gene-set signature scores of cells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from concerto_tf._calls import checked
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError, choices
from concerto_tf.records import Vocabulary, open_input
from concerto_tf.records.batch import RNA
from concerto_tf.records.inputs.input import Input
from concerto_tf.records.units import TARGET_SUM, scales_with_depth, units_of
from concerto_tf.tasks.io.provenance import reads_matrix, recorded
from concerto_tf.tasks.io.result import check_target, write_result

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
#: Gene sets that go by name. Exhaustion of T cells is the Concerto paper's.
GENE_SETS: dict[str, tuple[str, ...]] = {
    "exhaustion": ("PDCD1", "TIGIT", "LAG3", "HAVCR2", "CTLA4"),
}
_PREFIX = "concerto_score_"
_CHUNK_CELLS = 8_192


@recorded("score")
@checked
def score(
    cells: str | Path | AnnData,
    genes: str | Path | Sequence[str] | Mapping[str, Sequence[str]],
    out: str | Path | None = None,
    *,
    name: str | None = None,
    layer: str | None = None,
) -> pd.DataFrame:
    """Scores cells by gene sets: each gene's values scaled to 0..1 over the cells, then summed.

    Counts are log-normalized to 10,000 per cell first; log-normalized input is used unchanged. A
    gene that has the same value in all cells adds nothing. A score lies between 0 and the number
    of the set's genes that were found. It is relative to the cells given: scores of two files do
    not compare.

    Args:
        cells: Anything that `convert` takes.
        genes: Name of a set (``exhaustion``), a file with one gene per line or in GMT format (one
            set per line: name, description, genes), a list of genes, or sets by name.
        out: The `.h5ad` to write, with ``obs["concerto_score_<name>"]``; ``None`` writes nothing.
        name: What to call the set of a list or of a file with one gene per line; by default
            ``set``, or the file's name. Of several sets: the one to score.
        layer: Layer that holds the counts; by default as in `convert`.

    Returns:
        Scores [cells, sets], float64, indexed by cell. ``attrs["missing"]`` holds by set the genes
        that the cells do not have; they are named in the log, too.

    Raises:
        InputError: There is no such set, it is empty, or no gene of it is among the cells'.

    Example:

    >>> import numpy as np
    >>> from anndata import AnnData
    >>> cells = AnnData(np.array([[9, 1, 0], [9, 0, 1], [10, 0, 0]], "float32"))
    >>> cells.var_names = ["ACTB", "PDCD1", "TIGIT"]
    >>> score(cells, "exhaustion")["exhaustion"].tolist()
    [1.0, 1.0, 0.0]

    Reference:
        Concerto, Methods, "Exhausted T Annotation in COVID-19 analysis".
    """
    import pandas as pd

    if out is not None:
        check_target(out)
    sets = gene_sets(genes, name)
    with open_input(cells, layer=layer) as opened:
        reads_matrix(opened, say=True)
        found, missing = _match(opened, sets)
        union = sorted({index for indices in found.values() for index in indices})
        values = values_of(opened, np.array(union))
        scaled = scaled_by_gene(values)
        place = {index: i for i, index in enumerate(union)}
        table = pd.DataFrame(
            {
                key: np.asarray(scaled[:, [place[index] for index in indices]].sum(1)).ravel()
                for key, indices in found.items()
            },
            index=opened.barcodes(0, opened.n_cells),
        )
    table.attrs["missing"] = missing
    if out is not None:
        write_result(
            [cells],
            out,
            obsm={},
            names=list(table.index),
            rows=np.arange(len(table)),
            layer=layer,
            obs={f"{_PREFIX}{key}": table[key].to_numpy() for key in table},
        )
    return table


def gene_sets(
    genes: str | Path | Sequence[str] | Mapping[str, Sequence[str]], name: str | None = None
) -> dict[str, list[str]]:
    """Reads gene sets from whatever `score` takes.

    Args:
        genes: As for `score`.
        name: As for `score`.

    Returns:
        Genes by name of the set, each once, in their order.

    Raises:
        InputError: There is no such set or file, or it is empty.

    Example:

    >>> gene_sets("exhaustion")["exhaustion"][:2]
    ['PDCD1', 'TIGIT']
    """
    if isinstance(genes, Mapping):
        sets = {str(key): list(values) for key, values in genes.items()}
    elif isinstance(genes, str | Path):
        sets = _named(genes, name)
    else:
        sets = {name or "set": list(genes)}
    if name is not None and name not in sets:
        raise InputError(f"there is no gene set {name!r}; {choices(name, sets)}")
    if name is not None:
        sets = {name: sets[name]}
    sets = {
        # A slash would be a folder inside the .h5ad.
        key.replace("/", "_"): list(dict.fromkeys(g for g in map(str, values) if g.strip()))
        for key, values in sets.items()
    }
    empty = [key for key, values in sets.items() if not values]
    if empty or not sets:
        of = f"set {empty[0]!r}" if empty else "file"
        raise InputError(f"the gene {of} is empty; name at least one gene")
    return sets


def _named(genes: str | Path, name: str | None) -> dict[str, list[str]]:
    """A set that goes by name, or those of a file."""
    path = as_path(genes)
    if str(genes) in GENE_SETS and not path.exists():
        return {str(genes): list(GENE_SETS[str(genes)])}
    try:
        lines = [line.rstrip("\r\n") for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(GENE_SETS)
        raise InputError(
            f"{genes}: neither a gene set that goes by name ({known}) nor a file that can be read "
            f"({getattr(error, 'strerror', None) or 'no text'})"
        ) from error
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not any("\t" in line for line in lines):
        return {name or path.stem: [line.strip() for line in lines]}
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        key, *rest = line.split("\t")
        if len(rest) < 2 or not key.strip() or key in sets:
            raise InputError(
                f"{path}: line {number} is no gene set in GMT format (name, description and genes, "
                "between tabs; every name once)"
            )
        sets[key.strip()] = [gene.strip() for gene in rest[1:]]
    return sets


def _match(
    cells: Input, sets: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Places of the sets' genes among those of the cells, and the genes that are not there."""
    found, missing = find_genes(cells, sets)
    for key, genes in missing.items():
        if not found[key]:
            raise no_gene(cells, {key: genes})
        if genes:
            _log.warning(
                "%s: %d of the %d genes of %s are missing and left out: %s",
                cells.name,
                len(genes),
                len(sets[key]),
                key,
                ", ".join(genes),
            )
    return found, missing


def find_genes(
    cells: Input, sets: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Places of the sets' genes among those of the cells, and the genes that are missing."""
    place = _places(cells.genes)
    found = {
        key: list(dict.fromkeys(place[g] for g in genes if g in place))
        for key, genes in sets.items()
    }
    return found, {key: [g for g in genes if g not in place] for key, genes in sets.items()}


def no_gene(cells: Input, sets: Mapping[str, Sequence[str]]) -> InputError:
    """The error where no gene of the sets is among those of the cells."""
    key, genes = next(iter(sets.items()))
    of = f"the set {key!r}" if len(sets) == 1 else f"any of the {len(sets)} sets"
    return InputError(
        f"{cells.name}: has no gene of {of} ({', '.join(genes[:5])}, ...); its genes are called "
        f"{', '.join(cells.genes.names[:3])}, ...: name the genes of sets like that"
    )


def _places(genes: Vocabulary) -> dict[str, int]:
    """Index of each gene by id, and by symbol where only one has it."""
    place: dict[str, int] = {}
    for symbols in (genes.ensembl, genes.symbols):
        for i, symbol in enumerate(symbols or ()):
            if symbol:
                place.setdefault(symbol, i)
    return place | genes.positions


def values_of(cells: Input, genes: np.ndarray) -> sp.csc_matrix:
    """Normalized values [cells, genes], read in chunks."""
    counts = scales_with_depth(units_of(cells, [RNA])[RNA])
    if not counts:
        _log.info("%s: log-normalized; scored unchanged", cells.name)
    parts = []
    for start in range(0, cells.n_cells, _CHUNK_CELLS):
        chunk = cells.chunk(start, min(start + _CHUNK_CELLS, cells.n_cells))[RNA]
        part = chunk[:, genes].astype(np.float64)
        if counts:
            total = np.asarray(chunk.sum(axis=1, dtype=np.float64)).ravel()
            factor = np.divide(TARGET_SUM, total, out=np.zeros_like(total), where=total > 0)
            part = sp.diags(factor) @ part
            part.data = np.log1p(part.data)
        parts.append(sp.csr_matrix(part))
    return sp.vstack(parts).tocsc()


def scaled_by_gene(values: sp.csc_matrix) -> sp.csc_matrix:
    """Values with each gene's range over the cells mapped to 0..1; 0 for a constant gene."""
    low = values.min(axis=0).toarray().ravel()
    high = values.max(axis=0).toarray().ravel()
    span = np.where(high > low, high - low, np.inf)
    # A gene whose smallest value is not 0 has no zeros: all its values are stored.
    out = values.copy()
    gene = np.repeat(np.arange(values.shape[1]), np.diff(values.indptr))
    out.data = (out.data - low[gene]) / span[gene]
    return out
