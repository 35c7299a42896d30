"""Public labelled cells of human blood: read from the files that hold them, under common names.

The files are named in `blood-files.tsv` by repository, commit, path and checksum.
`blood-labels.tsv` says which cell types a label of theirs may mean (several where it does not tell
them apart), and `blood-types.tsv` which group a cell type belongs to, with identifiers of the Cell
Ontology.
"""

from __future__ import annotations

import hashlib
import re
import urllib.request
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from concerto_tf._files import atomic
from concerto_tf.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_HERE = Path(__file__).resolve().parent
FILES = pd.read_csv(_HERE / "blood-files.tsv", sep="\t", index_col="file")
TYPES = pd.read_csv(_HERE / "blood-types.tsv", sep="\t", index_col="type")
LABELS = pd.read_csv(_HERE / "blood-labels.tsv", sep="\t")
#: Between the types that one label may mean.
OR = "|"

#: Samples of the atlas whose labels are not used: what is called pDC there are monocytes.
_LEFT_OUT = {"SCP591"}
#: Study of each sample of the atlas.
_STUDIES = {
    "10x_6K": "10x 6k",
    "10x_8K": "10x 8k",
    "GSE115189": "Freytag",
    "SCP345_580": "ICA",
    "SCP345_860": "ICA",
    "SCP424_pbmc1": "Ding",
    "SCP424_pbmc2": "Ding",
    "SRR11038995": "SRR11038995",
    "SRR7244582": "SRR7244582",
}
#: What all studies tell apart.
_LINEAGES = {
    **dict.fromkeys(("CD4 naive T", "CD4 memory T", "regulatory T"), "CD4 T"),
    **dict.fromkeys(("CD8 naive T", "CD8 memory T"), "CD8 T"),
    **dict.fromkeys(("naive B", "memory B"), "B"),
    **dict.fromkeys(("cDC", "pDC"), "DC"),
    **{name: name for name in ("NK", "CD14 monocyte", "CD16 monocyte")},
}
#: Genes of progenitors; a CD34+ sorted cell without any of them is an impurity of the sort.
_OF_PROGENITORS = ("CD34", "SPINK2", "PRSS57", "SOX4", "STMN1", "EGFL7", "MPO", "GATA2")


def bring(folder: Path, given: Path | None = None) -> None:
    """Has all files in a folder, each with the right checksum.

    Args:
        folder: Where they are kept.
        given: A folder that holds them under the same names, where there is no network.

    Raises:
        InputError: A file is not there, or is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, of in FILES.iterrows():
        kept = folder / str(name)
        if kept.exists() and _checksum(kept) == of["sha256"]:
            continue
        source = f"https://raw.githubusercontent.com/{of['repository']}/{of['commit']}/{of['path']}"
        if given is not None:
            source = str(given / str(name))
        try:
            content = (
                Path(source).read_bytes()
                if given is not None
                else urllib.request.urlopen(source, timeout=60).read()
            )
        except OSError as error:
            raise InputError(f"{source}: {error}; name a folder that has it with --from") from error
        if hashlib.sha256(content).hexdigest() != of["sha256"]:
            raise InputError(f"{source}: has not the checksum that blood-files.tsv says")
        with atomic(kept) as temporary:
            Path(temporary).write_bytes(content)


def read(folder: Path) -> dict[str, AnnData]:
    """Cells by study, counts in X, Ensembl identifiers in ``var["gene_ids"]`` where known.

    ``obs`` has ``study``, ``source`` (a library of a study), ``collection``, ``label`` as
    published, and ``types``, the cell types that it may mean. Cells with other labels are left out.

    Args:
        folder: Where `bring` left the files.
    """
    found: dict[str, AnnData] = {}
    for collection in (_zheng, _pbmc3k, _bremsc, _atlas, _chemistries, _droplets):
        cells = collection(folder).copy()
        name = collection.__name__[1:]
        known = LABELS[LABELS["collection"] == name].set_index("label")["types"]
        cells.obs["collection"] = name
        cells.obs["types"] = cells.obs["label"].map(known)
        cells = cells[cells.obs["types"].notna().to_numpy()]
        for study in dict.fromkeys(cells.obs["study"]):
            found[study] = cells[(cells.obs["study"] == study).to_numpy()].copy()
    return found


def joined(studies: list[AnnData]) -> AnnData:
    """Cells of several studies with the genes that all of them have.

    Where one of them knows Ensembl identifiers, genes go by these, with symbols beside them, so
    that a model knows both.
    """
    import anndata

    shared = set.intersection(*(set(cells.var_names) for cells in studies))
    genes = [name for name in studies[0].var_names if name in shared]
    parts = {str(i): cells[:, genes] for i, cells in enumerate(studies)}
    cells = anndata.concat(parts, index_unique="-")
    known = [of.var["gene_ids"] for of in studies if "gene_ids" in of.var]
    if known:
        cells.var["gene_symbols"] = genes
        cells.var_names = known[0].loc[genes].to_numpy()
    return cells


def group_of(types: pd.Series) -> pd.Series:
    """The group that all types of a label belong to."""
    return types.str.split(OR).str[0].map(TYPES["group"])


def sources(studies: dict[str, AnnData], seed: int = 0) -> dict[str, AnnData]:
    """Sets of which a source can be left out: five studies, and three chemistries of 10x.

    ``obs`` has ``cell_type`` and ``batch``. Types are lineages, which all of them tell apart; cells
    whose label leaves several open, or is of another, are left out. So are all but 500 of a study.

    Args:
        studies: From `read`.
        seed: Of the cells that are drawn.
    """
    parts = {
        "blood_studies": [studies[name] for name in ("Zheng", "10x 3k", "BREM-SC", "ICA", "Ding")],
        "blood_chemistries": [studies["10x chemistries"]],
    }
    made = {}
    for name, of in parts.items():
        cells, key = joined(of), "study" if len(of) > 1 else "source"
        obs = {"cell_type": cells.obs["types"].map(_lineage), "batch": cells.obs[key].astype(str)}
        cells.obs = pd.DataFrame(obs)
        known = cells.obs[cells.obs["cell_type"].notna()]
        chosen = known.sample(frac=1.0, random_state=seed).groupby("batch").head(500).index
        made[name] = cells[cells.obs_names.isin(chosen)].copy()
    return made


def _lineage(types: str) -> str | None:
    """The lineage of all types of a label that have one; none where there are several."""
    found = {_LINEAGES[one] for one in types.split(OR) if one in _LINEAGES}
    return found.pop() if len(found) == 1 else None


# --- files ------------------------------------------------------------------------------------


def _zheng(folder: Path) -> AnnData:
    """Bead-sorted and FACS-sorted cells (Zheng et al. 2017; 10x v1)."""
    held = _r_object(folder / "zheng.RData")
    parts = [(held["counts"], held["samples"]), (held["counts_test"], held["samples_test"])]
    counts = sp.vstack([_sparse(matrix) for matrix, _ in parts]).tocsr()
    obs = pd.concat([samples for _, samples in parts])
    obs = pd.DataFrame({"label": obs["celltype"].astype(str), "study": "Zheng", "source": "Zheng"})
    genes = held["genes"]
    cells = _cells(counts, obs, genes["symbol"], genes["ensembl"])
    progenitor = cells[:, cells.var_names.isin(_OF_PROGENITORS)].X.sum(axis=1).A1 > 0
    return cells[progenitor | (cells.obs["label"] != "CD34+").to_numpy()]


def _pbmc3k(folder: Path) -> AnnData:
    """10x PBMC 3k with the labels of Seurat's tutorial (10x v1)."""
    matrix = _r_object(folder / "pbmc3k-counts.rda")
    labels = _r_object(folder / "pbmc3k-labels.rda")["classified"].astype(str)
    obs = pd.DataFrame({"label": labels, "study": "10x 3k", "source": "10x 3k"})
    return _cells(_whole(_sparse(matrix).T.tocsr()), obs, matrix.Dimnames[0])


def _bremsc(folder: Path) -> AnnData:
    """CITE-seq of one donor, labelled by its surface proteins (Wang et al. 2020; 10x v2)."""
    matrix = _r_object(folder / "bremsc-counts.rds")
    told = pd.read_csv(folder / "bremsc-labels.csv").set_index("Barcode")["trueType"]
    names = [str(name) for name in matrix.Dimnames[1]]
    obs = pd.DataFrame(
        {"label": told.reindex(names), "study": "BREM-SC", "source": "BREM-SC"}, index=names
    )
    return _cells(_sparse(matrix).T.tocsr(), obs, matrix.Dimnames[0])


def _atlas(folder: Path) -> AnnData:
    """Cells of several studies that one group labelled together (Mangiola et al. 2023)."""
    known = _r_object(folder / "atlas-labels.rda").colData
    sample, group = (known.listData[key] for key in ("sample", "cell_group"))
    told: dict[tuple[str, str], set[str]] = {}
    for one, name, label in zip(sample, known.rownames, group, strict=True):
        told.setdefault((str(one), _barcode(str(name))), set()).add(str(label))
    held = _r_object(folder / "atlas-counts.rda")
    matrix = held.assays.data.listData["counts"]
    names = [str(name) for name in held.colData.rownames]
    # ../data/SCP345_580_1/outs/... is the first lane of sample SCP345_580
    samples = [
        re.sub(r"_[12]$", "", str(file).split("/")[2]) for file in held.colData.listData["file"]
    ]
    labels = [
        told.get((one, _barcode(name)), set()) for one, name in zip(samples, names, strict=True)
    ]
    obs = pd.DataFrame(
        {
            "label": [next(iter(label)) if len(label) == 1 else None for label in labels],
            "study": [_STUDIES.get(one) for one in samples],
            "source": samples,
        },
        index=names,
    )
    used = ~obs["source"].isin(_LEFT_OUT).to_numpy()
    counts = _whole(_sparse(matrix).T.tocsr()[used])
    return _cells(counts, obs[used], matrix.Dimnames[0])


def _chemistries(folder: Path) -> AnnData:
    """Three chemistries of 10x, 1,767 genes (Korsunsky et al. 2019, Kang et al. 2021)."""
    matrix = _r_object(folder / "chemistries-counts.rda")
    told = _r_object(folder / "chemistries-labels.rda").set_index("cell_id")
    names = [str(name) for name in matrix.Dimnames[1]]
    told = told.reindex(names)
    obs = pd.DataFrame(
        {
            "label": told["cell_type"].astype(str),
            "study": "10x chemistries",
            "source": told["donor"].astype(str),
        },
        index=names,
    )
    return _cells(_whole(_sparse(matrix).T.tocsr()), obs, matrix.Dimnames[0])


def _droplets(folder: Path) -> AnnData:
    """Three types of cells by Drop-seq and inDrops, 2,000 genes each (Ding et al. 2020)."""
    import anndata

    parts = []
    for file, study in (("dropseq", "Ding Drop-seq"), ("indrops", "Ding inDrops")):
        table = _r_object(folder / f"{file}.rda")
        obs = pd.DataFrame({"label": table["yy"].astype(str), "study": study, "source": study})
        values = sp.csr_matrix(table.drop(columns="yy").to_numpy(np.float64))
        parts.append(_cells(_whole(values), obs, [str(name) for name in table.columns[1:]]))
    return anndata.concat(parts)


# --- parts ------------------------------------------------------------------------------------


def _r_object(path: Path) -> Any:
    """The one object in a file of R."""
    try:
        import rdata
    except ImportError as error:
        raise InputError("reading files of R takes the package rdata: pip install rdata") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".rds":
            return rdata.read_rds(path)
        (held,) = rdata.read_rda(path).values()
    return held


def _sparse(matrix: Any) -> sp.csr_matrix:
    """A sparse matrix of R's package Matrix."""
    shape = tuple(int(n) for n in matrix.Dim)
    if hasattr(matrix, "p"):
        return sp.csc_matrix((matrix.x, matrix.i, matrix.p), shape=shape).tocsr()
    return sp.coo_matrix((matrix.x, (matrix.i, matrix.j)), shape=shape).tocsr()


def _whole(values: sp.csr_matrix) -> sp.csr_matrix:
    """Counts again of cells that are log-normalized: the smallest value of a cell is one count."""
    values = values.astype(np.float64)
    for first, last in zip(values.indptr[:-1], values.indptr[1:], strict=True):
        of_cell = values.data[first:last]
        if len(of_cell) and not np.array_equal(of_cell, np.rint(of_cell)):
            scaled = np.expm1(of_cell)
            values.data[first:last] = np.rint(scaled / scaled.min())
    return values


def _cells(
    counts: sp.csr_matrix, obs: pd.DataFrame, symbols: Any, identifiers: Any = None
) -> AnnData:
    """An AnnData of counts whose genes each have a name of their own; the first of twins stays."""
    import anndata

    obs = obs.set_axis([f"{study} {i}" for i, study in enumerate(obs["study"])])
    names = pd.Index([str(name) for name in symbols])
    first = ~names.duplicated()
    var = pd.DataFrame(index=names[first])
    if identifiers is not None:
        var["gene_ids"] = np.array([str(name) for name in identifiers])[first]
    return anndata.AnnData(counts[:, first].astype(np.float32).tocsr(), obs=obs, var=var)


def _barcode(name: str) -> str:
    """The sequence in a cell's name."""
    found = re.findall(r"[ACGT]{12,}", name)
    return found[-1] if found else name


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
