"""The data sets that defaults are chosen on: labelled files, and simulated cells beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from concerto_tf.errors import InputError
from concerto_tf.records import open_input
from concerto_tf.simulate import SplatParams, simulate_cells

if TYPE_CHECKING:
    from anndata import AnnData

SIMULATED_PREFIX = "sim:"
LABEL, SOURCE = "label", "source"


def _simulation(seed: int, n_cells: int = 3000, **options: Any) -> SplatParams:
    options = {"de_scale": 0.5, **options}
    return SplatParams.droplet(n_cells=n_cells, n_genes=8000, seed=seed, **options)


_BATCHES = _simulation(
    3,
    group_sizes=(4, 3, 2, 2, 1, 1),
    de_prob=0.14,
    batch_sizes=(2, 1, 1),
    batch_loc=0.1,
    batch_scale=0.15,
)
#: The simulated sets, as `SplatParams` that are drawn once. `rare` is drawn with more cells than it
#: keeps, see `RARE_CELLS`. Of `lacking` each batch is without two of the groups. Of `crossed` each
#: group differs between batches in genes of its own, see `CROSSED`.
SIMULATED: Mapping[str, SplatParams] = MappingProxyType(
    {
        "unbalanced": _simulation(1, group_sizes=(30, 20, 15, 12, 10, 6, 4, 2, 1), de_prob=0.13),
        "dropout": _simulation(2, 2000, group_sizes=(1,) * 6, de_prob=0.17, dropout_mid=0.0),
        "batches": _BATCHES,
        "lacking": replace(_BATCHES, seed=7),
        "rare": _simulation(
            4,
            3600,
            group_sizes=(1000, 800, 600, 400, 180, 60),
            de_prob=(0.17, 0.17, 0.17, 0.17, 0.17, 0.3),
            de_scale=(0.5, 0.5, 0.5, 0.5, 0.5, 0.8),
        ),
        "trajectory": _simulation(
            5, 2500, group_sizes=(1,) * 5, de_prob=0.25, paths=True, path_from=(0, 1, 1, 2, 2)
        ),
        "easy": _simulation(6, 1000, group_sizes=(1,) * 8, de_prob=0.25),
        "crossed": _simulation(
            8,
            2400,
            group_sizes=(30, 25, 20, 15, 8, 2),
            de_prob=0.17,
            batch_sizes=(1,) * 4,
            batch_loc=0.1,
            batch_scale=0.1,
        ),
    }
)
#: Of `rare`: cells of the last group, and of all groups.
RARE_CELLS = (20, 3000)
#: Of `crossed`: share of genes that a group loses counts of in a batch, and how widely the
#: logarithm of what is left varies. No shift that all groups share takes that off.
CROSSED = (0.2, 1.0)


@dataclass(frozen=True)
class DataSet:
    """A labelled data set.

    Args:
        name: What it is called in tables.
        settings: What the scores depend on besides the name: columns, or parameters.
        path: Its file; ``None`` if it is simulated.
        has_sources: Whether cells are of several sources.
        rare: Label whose recovery is counted. The cells are drawn anew for every seed then.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    has_sources: bool = False
    rare: str | None = None

    def cells(self, seed: int = 0) -> AnnData:
        """The cells that have a label, with the columns ``label`` and, of several, ``source``.

        Args:
            seed: Which draw, where cells are drawn anew for every seed.
        """
        if self.path is None:
            return _draw(self.name.removeprefix(SIMULATED_PREFIX), seed)
        import anndata

        cells = anndata.read_h5ad(self.path)
        named = {LABEL: "label_key", SOURCE: "source_key"}
        columns = {to: self.settings[key] for to, key in named.items() if self.settings[key]}
        cells.obs = cells.obs[list(columns.values())].set_axis(list(columns), axis=1)
        cells = cells[cells.obs[LABEL].notna().to_numpy()].copy()
        cells.obs[LABEL] = cells.obs[LABEL].astype(str)
        return cells


def labelled_sets(
    names: Sequence[str | Path], label_key: str = "cell_type", source_key: str = "batch"
) -> list[DataSet]:
    """Data sets by path or by name, all of them looked at before any work.

    Args:
        names: Paths of ``.h5ad``, or ``sim:`` and one of `SIMULATED`.
        label_key: Column of obs in the files with at least two types.
        source_key: Column of obs with the sources, used in the files that have several.

    Raises:
        InputError: One is not there, has no such labels, or is named twice.

    Example:

    >>> labelled_sets(["sim:rare"])[0].rare
    'Group6'
    """
    found: list[DataSet] = []
    for name in map(str, names):
        made = _simulated(name) if name.startswith(SIMULATED_PREFIX) else None
        found.append(made or _in_file(Path(name), label_key, source_key))
        if found[-1].name in [other.name for other in found[:-1]]:
            raise InputError(f"{name}: another data set has this name too; name each once")
    if not found:
        raise InputError("no data set is given; name .h5ad files, or simulated sets")
    return found


def _simulated(name: str) -> DataSet:
    kind = name.removeprefix(SIMULATED_PREFIX)
    if kind not in SIMULATED:
        known = ", ".join(SIMULATED_PREFIX + known for known in SIMULATED)
        raise InputError(f"{name}: there is no such simulated set; choose some of {known}")
    params, rare = SIMULATED[kind], kind in ("rare", "crossed")
    return DataSet(
        name,
        {
            "simulated": repr(params),
            "cells": RARE_CELLS if kind == "rare" else None,
            **({"lacking": 2} if kind == "lacking" else {}),
            **({"crossed": CROSSED} if kind == "crossed" else {}),
        },
        has_sources=params.n_batches > 1,
        rare=f"Group{params.n_groups}" if rare else None,
    )


def _in_file(path: Path, label_key: str, source_key: str) -> DataSet:
    import anndata

    if path.suffix != ".h5ad":
        raise InputError(f"{path}: is no .h5ad, which alone is taken here; name another file")
    with open_input(path):  # says what is wrong with the file
        pass
    backed = anndata.read_h5ad(path, backed="r")
    obs = backed.obs
    backed.file.close()
    if label_key not in obs:
        raise InputError(
            f"{path}: has no column {label_key!r} in obs; name one with --label-key (there are: "
            f"{', '.join(map(str, obs.columns)) or 'none'})"
        )
    known = obs[obs[label_key].notna()]
    if known[label_key].nunique() < 2:
        raise InputError(
            f"{path}: {label_key!r} tells no two types apart; name another column with --label-key"
        )
    several = source_key in obs and known[source_key].nunique() > 1
    settings = {"label_key": label_key, "source_key": source_key if several else None}
    return DataSet(path.stem, settings, path, several)


def _draw(kind: str, seed: int) -> AnnData:
    params = SIMULATED[kind]
    if kind in ("rare", "crossed"):
        params = replace(params, seed=params.seed + 1000 * seed)
    cells = simulate_cells(params)
    cells.obs[LABEL] = cells.obs["path" if params.paths else "group"].astype(str)
    columns = [LABEL]
    if params.n_batches > 1:
        cells.obs[SOURCE] = cells.obs["batch"]
        columns.append(SOURCE)
    cells.obs = cells.obs[columns]
    if kind == "crossed":
        cells.X = _crossed(cells, params.seed)
    keep = np.asarray(cells.X.sum(1)).ravel() > 0
    if kind == "lacking":
        # Batch 1 has no cell of groups 1 and 2, batch 2 none of 2 and 3, and so on.
        group, batch = (
            cells.obs[column].astype(str).str.extract(r"(\d+)$")[0].astype(int).to_numpy()
            for column in (LABEL, SOURCE)
        )
        keep &= ~np.isin(group - batch, (0, 1))
    if kind == "rare":
        own = (cells.obs[LABEL] == f"Group{params.n_groups}").to_numpy()
        few, all_cells = RARE_CELLS
        keep &= np.where(own, own.cumsum() <= few, (~own).cumsum() <= all_cells - few)
    return cells[keep].copy()


def _crossed(cells: AnnData, seed: int) -> sp.csr_matrix:
    """Counts [n, G] of which each group loses a part in each batch, in genes of its own."""
    rng, (share, spread) = np.random.default_rng(seed), CROSSED
    pairs = cells.obs[LABEL].astype(str) + " " + cells.obs[SOURCE].astype(str)
    names, pair = np.unique(pairs, return_inverse=True)
    left = np.exp(-spread * np.abs(rng.normal(size=(len(names), cells.n_vars))))
    left[rng.random(left.shape) >= share] = 1.0
    counts = sp.csr_matrix(cells.X)
    kept = left[np.repeat(pair, np.diff(counts.indptr)), counts.indices]
    counts.data = rng.binomial(counts.data.astype(np.int64), kept).astype(np.float32)
    counts.eliminate_zeros()
    return counts
