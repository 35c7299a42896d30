"""contrastive-sc's simulations: more clusters, more dropout, balanced and not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from concerto_tf.errors import InputError
from concerto_tf.simulate import SplatParams, simulate_cells
from protocols.charts import curves
from protocols.data_sets import of_clusters, prepare
from protocols.embeddings import COMPARED, check_numbers, checked_variants
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

DESIGNS = ("balanced", "unbalanced")
#: Cells that the smallest cluster must have on the mean.
FEWEST_CELLS = 5
SHOWN = {"ari_kmeans": "K-means, ARI", "ari_leiden": "Leiden, ARI"}


def simulations(
    out: str | Path,
    *,
    clusters: Sequence[int] = (4, 8, 16),
    dropout_mids: Sequence[float] = (-1.0, 0.0, 1.0, 1.5),
    designs: Sequence[str] = DESIGNS,
    n_genes: int = 2500,
    cells_per_cluster: int = 250,
    unbalanced_cells: int = 3000,
    de_scale: float = 0.2,
    methods: Sequence[str] = COMPARED,
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Scores methods on simulated cells of 4, 8 and 16 clusters, balanced and not.

    Balanced cells are 250 in each cluster on the mean; unbalanced ones 3,000 in all, in clusters
    whose sizes fall geometrically, the largest 60 times the smallest (0.6 to 0.01). Each seed
    draws cells of its own, so that the spread is that of the experiment; the paper clusters one
    draw three times.

    Args:
        out: Folder for ``table.tsv``, ``result.json`` and ``figure.png``. Called again, finished
            scores are kept; simulated cells and their models are not.
        clusters: Numbers of clusters.
        dropout_mids: Log expressions at which half of the counts are lost; 1.5 is most dropout.
        designs: Some of ``balanced`` and ``unbalanced``.
        n_genes: Number of genes.
        cells_per_cluster: Mean size of a cluster in the balanced design.
        unbalanced_cells: Number of all cells in the unbalanced design.
        de_scale: Log-standard deviation of the factors of differential expression.
        methods: Some of those of `train`, and ``pca``.
        presets: Presets to run beside the defaults, such as ``paper``.
        seeds: Of the simulation and of the methods.
        **training: Further arguments of `train`, for every method.

    Returns:
        What ``result.json`` holds: by design, number of clusters, dropout and method the mean and
        the standard deviation over the seeds of each score of `clustering`; in ``mean`` by design
        and method that over all; and in ``zeros`` the share of entries that are zero by dropout.

    Raises:
        InputError: An argument is unsuitable.

    Reference:
        contrastive-sc, "Analysis of simulated data", figures 3 to 5 (shape -1, scale 0.2).
    """
    chosen = checked_variants(training, seeds, methods, presets)
    strange = [design for design in designs if design not in DESIGNS]
    if strange or not designs:
        what = f"there is no design {strange[0]!r}" if strange else "no design is given"
        raise InputError(f"{what}; choose some of {', '.join(DESIGNS)}")
    if not clusters or not dropout_mids:
        raise InputError("name numbers of clusters, and dropout mids, at least one of each")
    check_numbers(clusters=clusters, cells_per_cluster=cells_per_cluster, whole=True, least=2)
    check_numbers(n_genes=n_genes, unbalanced_cells=unbalanced_cells, whole=True, least=2)
    check_numbers(dropout_mids=dropout_mids)
    check_numbers(de_scale=de_scale, least=0)
    cases = [
        (design, k, mid, seed)
        for design in designs
        for k in clusters
        for mid in dropout_mids
        for seed in seeds
    ]
    drawn = {
        case: splat(
            case,
            n_genes=n_genes,
            cells_per_cluster=cells_per_cluster,
            unbalanced_cells=unbalanced_cells,
            de_scale=de_scale,
        )
        for case in cases
    }  # an unsuitable argument is said before any work
    out = check_folder(out)
    scores = Scores(out, "simulations")
    zeros: dict[str, list[float]] = {}
    for case, params in drawn.items():
        design, k, mid, seed = case
        cells = simulate_cells(params)
        zeros.setdefault(f"{mid:g}", []).append(1 - cells.X.nnz / np.prod(cells.shape))
        with TemporaryDirectory(prefix="concerto-") as folder:
            records = prepare(cells, Path(folder), label_key="group", drop_empty=True)
            scores.add(
                chosen,
                records,
                seed,
                of_clusters(records, "group", seed),
                training=training,
                keep_models=False,
                design=design,
                clusters=k,
                dropout_mid=mid,
            )
    table = scores.table()
    result = {
        "seeds": list(seeds),
        "zeros": {mid: np.mean(shares) for mid, shares in zeros.items()},
        "designs": summary(table, ["design", "clusters", "dropout_mid", "method"]),
        "mean": summary(table, ["design", "method"], over=["seed", "clusters", "dropout_mid"]),
    }
    panels = table.assign(
        panel=table["design"] + ", mid " + table["dropout_mid"].map("{:g}".format)
    )
    return leave(
        out, table, result, curves(panels, "clusters", SHOWN, panel="panel", label="clusters")
    )


def splat(
    case: tuple[str, int, float, int],
    *,
    n_genes: int,
    cells_per_cluster: int,
    unbalanced_cells: int,
    de_scale: float,
) -> SplatParams:
    """The experiment of one case: design, number of clusters, dropout and seed."""
    design, k, mid, seed = case
    balanced = design == "balanced"
    sizes = np.ones(k) if balanced else np.geomspace(0.6, 0.01, k)
    n_cells = k * cells_per_cluster if balanced else unbalanced_cells
    least = int(np.ceil(FEWEST_CELLS * sizes.sum() / sizes.min()))
    if n_cells < least:
        raise InputError(
            f"{n_cells} cells leave less than {FEWEST_CELLS} for the smallest of {k} {design} "
            f"clusters; ask for {least} cells or more"
        )
    return SplatParams(
        n_cells=n_cells,
        n_genes=n_genes,
        seed=seed,
        group_sizes=tuple(sizes),
        de_scale=de_scale,
        dropout_mid=mid,
        dropout_shape=-1.0,
    )
