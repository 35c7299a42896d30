"""Order of cells along a trajectory: PAGA of groups and diffusion pseudotime on an embedding."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf._calls import checked
from concerto_tf.errors import InputError, choices
from concerto_tf.pl.figures import check_figure
from concerto_tf.pl.trajectory import trajectory_figure
from concerto_tf.tasks.cluster import CLUSTER, cluster
from concerto_tf.tasks.io.embedded import embedding_of, open_embedded
from concerto_tf.tasks.io.provenance import recorded, taken, write_h5ad
from concerto_tf.tasks.io.result import check_target
from concerto_tf.tasks.neighbours import neighbour_graph, umap

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_log = logging.getLogger("concerto_tf")
PSEUDOTIME = "concerto_pseudotime"
# Diffusion components, and how many of them distances are measured in: scanpy's own.
_COMPONENTS, _MEASURED = 15, 10
# Cells connected to the root below which there is no diffusion to speak of.
_FEWEST_CELLS = 5


@recorded("pseudotime")
@checked
def pseudotime(
    cells: str | Path | AnnData,
    root: str,
    out: str | Path | None = None,
    *,
    groupby: str | None = None,
    rep: str = "X_concerto",
    figure: str | Path | None = None,
    seed: int = 0,
) -> AnnData:
    """Orders cells from a root, into ``obs["concerto_pseudotime"]``, with PAGA of their groups.

    Diffusion pseudotime on the graph of 15 nearest neighbours of the embedding, scaled to 0 at the
    root and 1 at the cell farthest from it. Cells that the graph does not connect to the root have
    no pseudotime: NaN, and their number is logged. PAGA of the groups goes to ``uns["paga"]``, in
    scanpy's own layout, so that ``sc.pl.paga`` draws it.

    Args:
        cells: An `.h5ad` with an embedding in obsm, or an AnnData, which is changed in place.
        root: Where it begins: the name of a cell, or of a group, of which it is the cell nearest to
            the median. A name that is both is the group's if ``groupby`` is given, else the cell's.
        out: The `.h5ad` to write; ``None`` writes nothing.
        groupby: Column of obs with the groups. By default ``concerto_cluster``, which is made (by
            Leiden) where it is not there.
        rep: Key of the embedding in obsm.
        figure: File of a figure of both, on the UMAP that the cells have or on a new one; its
            ending says the format.
        seed: Seed of the clusters, and of the start of the eigenvectors.

    Returns:
        The AnnData; ``uns["iroot"]`` is the position of the root.

    Raises:
        InputError: The file is unsuitable, there is no such embedding, column or root, or too few
            cells are connected to the root.

    Example:
        >>> from anndata import AnnData
        >>> line = AnnData(np.zeros((60, 1), "float32"))
        >>> line.obsm["X_concerto"] = np.stack([np.arange(60.0), np.zeros(60)], 1)
        >>> found = pseudotime(line, "0").obs["concerto_pseudotime"]
        >>> float(found.iloc[0]), bool(found.iloc[10] < found.iloc[30] < found.iloc[50])
        (0.0, True)

    Reference:
        Haghverdi et al., "Diffusion pseudotime robustly reconstructs lineage branching", Nature
        Methods 13:845 (2016); Wolf et al., "PAGA", Genome Biology 20:59 (2019).
    """
    import scanpy as sc
    from scipy.sparse.csgraph import connected_components

    for path in (out, figure):
        if path is not None:
            check_target(path)
    if figure is not None:
        check_figure(figure)
    adata = open_embedded(cells, backed=False)
    name = cells if isinstance(cells, str | Path) else "AnnData"
    z = embedding_of(name, adata, rep)
    if len(z) < _FEWEST_CELLS:
        raise InputError(f"{name}: {len(z)} cells are too few to be ordered; give more")
    key = _groups(name, adata, rep, groupby, seed)
    groups = adata.obs[key].astype("category").cat.remove_unused_categories()
    position = _root(name, adata, z, groups, str(root), key, named=groupby is not None)
    graph = neighbour_graph(adata, rep, z, seed)

    _, component = connected_components(graph.obsp["connectivities"], directed=False)
    connected = component == component[position]
    n, missing = int(connected.sum()), int((~connected).sum())
    if n < _FEWEST_CELLS:
        raise InputError(
            f"{name}: only {n} cells are connected to the root {adata.obs_names[position]!r}; "
            "name another root"
        )
    if missing:
        _log.warning(
            "%s: %d of %d cells are not connected to the root; their pseudotime is NaN",
            name,
            missing,
            len(z),
        )
    near = graph[connected].copy()
    near.uns["iroot"] = int(connected[:position].sum())
    sc.tl.diffmap(near, n_comps=min(_COMPONENTS, n - 2), random_state=seed)
    sc.tl.dpt(near, n_dcs=min(_MEASURED, n - 2))
    found = np.full(len(z), np.nan)
    found[connected] = near.obs["dpt_pseudotime"]
    adata.obs[PSEUDOTIME] = found
    adata.obs[key] = groups  # as PAGA numbers them
    adata.uns["iroot"] = position
    adata.uns["paga"] = _paga(graph, groups, key)
    adata.uns[f"{key}_sizes"] = groups.value_counts(sort=False).to_numpy()
    if figure is not None:
        _draw(adata, z, figure, seed)
    if out is not None:
        taken(groupby=key, root=str(adata.obs_names[position]))
        write_h5ad(adata, out)
    return adata


def _draw(adata: AnnData, z: np.ndarray, figure: str | Path, seed: int) -> None:
    """Draws pseudotime and PAGA on the map that the cells have, or on a new one."""
    from anndata import AnnData

    shown = AnnData(obs=adata.obs, uns={key: adata.uns[key] for key in ("iroot", "paga")})
    if "X_umap" in adata.obsm:
        shown.obsm["X_umap"] = np.asarray(adata.obsm["X_umap"])
    else:
        shown.obsm["X_concerto"] = z
        umap(shown, seed)
    trajectory_figure(shown, figure, PSEUDOTIME)


def _groups(name: str | Path, adata: AnnData, rep: str, groupby: str | None, seed: int) -> str:
    """The column with the groups; clusters are made where none is named or there."""
    if groupby is None:
        if CLUSTER not in adata.obs:
            cluster(adata, rep=rep, seed=seed)
        return CLUSTER
    if groupby not in adata.obs:
        raise InputError(f"{name}: no column {groupby!r} in obs; {choices(groupby, adata.obs)}")
    n_groups = adata.obs[groupby].nunique()
    if n_groups == 0 or n_groups > adata.n_obs / 2:
        raise InputError(
            f"{name}: column {groupby!r} has {n_groups} values for {adata.n_obs} cells; name a "
            "column of groups"
        )
    return groupby


def _root(
    name: str | Path,
    adata: AnnData,
    z: np.ndarray,
    groups: pd.Series,
    root: str,
    key: str,
    named: bool,
) -> int:
    """Position of the root cell."""
    names = np.asarray(adata.obs_names, str)
    own = (groups.astype(object).astype(str) == root).to_numpy() & groups.notna().to_numpy()
    is_cell = bool((names == root).any())
    if own.any() and (named or not is_cell):
        members = np.flatnonzero(own)
        away = np.linalg.norm(z[members] - np.median(z[members], axis=0), axis=1)
        position = int(members[away.argmin()])
        _log.info("root: cell %s, in the midst of %s %s", names[position], key, root)
        return position
    if is_cell:
        places = np.flatnonzero(names == root)
        if len(places) > 1:
            raise InputError(
                f"{name}: {len(places)} cells are called {root!r}; run "
                "adata.obs_names_make_unique() and save again"
            )
        return int(places[0])
    known = choices(root, groups.cat.categories)
    raise InputError(
        f"{name}: the root {root!r} is neither a cell nor a group of {key!r}; {known}"
        + ("" if named else "; or name another column of groups"),
        None if named else "groupby",
    )


def _paga(graph: AnnData, groups: pd.Series, key: str) -> dict:
    """Scanpy's PAGA of the cells that belong to a group."""
    import scanpy as sc
    from scipy.sparse import csr_matrix

    known = graph[groups.notna().to_numpy()].copy()
    known.obs[key] = groups.dropna().array
    n, code = len(groups.cat.categories), known.obs[key].cat.codes.to_numpy()
    one, other = known.obsp["connectivities"].nonzero()
    if not (code[one] != code[other]).any():  # nothing is connected, which scanpy cannot say
        empty = csr_matrix((n, n))
        return {"connectivities": empty, "connectivities_tree": empty.copy(), "groups": key}
    sc.tl.paga(known, groups=key)
    return dict(known.uns["paga"])
