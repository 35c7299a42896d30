"""How well sources are mixed and cell types kept, beside Harmony and plain PCA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concerto_tf.errors import InputError
from concerto_tf.metrics import embedding_scores
from concerto_tf.records import convert
from protocols.charts import dots
from protocols.data_sets import labels_of
from protocols.embeddings import checked_variants, embed_by
from protocols.report import check_folder, leave

METHODS = ("concerto", "harmony", "pca")
#: Metrics of kept cell types and of mixed sources, in the order they are drawn in.
OF_LABELS = ("ari_kmeans", "ari_leiden", "nmi_leiden", "asw_label", "knn_macro_f1")
OF_SOURCES = ("asw_source", "kbet", "ilisi", "graph_connectivity")


def integration(
    cells: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    source_key: str | None,
    label_key: str | None = None,
    layer: str | None = None,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Scores embeddings of cells from several sources, Concerto's beside Harmony's and PCA's.

    Models are trained source-aware on all cells; labels are only scored with. Harmony and PCA
    look at 2,000 highly variable genes in 50 components.

    Args:
        cells: One or several of what `convert` takes.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models are not trained again.
        source_key: Column of obs with the sources; ``None`` makes each input one.
        label_key: Column of obs with cell types.
        layer: Layer that holds the counts.
        methods: Some of those of `train`, ``harmony`` (needs harmonypy), ``scvi`` (needs
            scvi-tools) and ``pca``.
        seeds: Each method is run with each.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: the number of cells by source, and by method the mean and the
        standard deviation over the seeds of each metric of `embedding_scores`.

    Raises:
        InputError: There is one source only, or an argument is unsuitable.

    Reference:
        Concerto, Results, "Concerto enables de novo data integration".
    """
    import pandas as pd

    chosen = checked_variants(training, seeds, methods)
    out = check_folder(out)
    records = convert(
        cells,
        out / "records",
        source_key=source_key,
        layer=layer,
        label_keys=[label_key] if label_key else [],
        overwrite=True,
    )
    sizes = dict(zip(records.sources, records.manifest.cells_per_source, strict=True))
    if len(sizes) < 2:
        raise InputError(
            f"{cells}: all cells are of one source, so there is nothing to integrate; name the "
            "column that tells sources apart"
        )
    known = records.obs()
    labels = labels_of(records, label_key) if label_key else None
    rows = []
    for seed in seeds:
        for variant in chosen:
            model = out / "models" / f"{variant.name}-seed{seed}"
            z = embed_by(variant, records, seed, model, training)
            scores = embedding_scores(z, labels, known["source"], seed=seed)
            rows.append({"method": variant.name, "seed": seed, **scores})
    table = pd.DataFrame(rows)
    of_method = table.drop(columns="seed").groupby("method", sort=False)
    result = {
        "sources": sizes,
        "seeds": list(seeds),
        "mean": of_method.mean().T.to_dict(),
        "standard_deviation": of_method.std(ddof=0).T.to_dict(),
    }
    panels = {"cell types kept": OF_LABELS, "sources mixed": OF_SOURCES}
    return leave(out, table, result, dots(table, "method", panels))
