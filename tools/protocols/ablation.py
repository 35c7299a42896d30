"""What each of CLEAR's augmentations adds: each left out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf.errors import InputError
from protocols.charts import strips
from protocols.data_sets import of_clusters, prepare_all
from protocols.embeddings import Variant, check_seeds, check_training, variants
from protocols.report import check_folder, leave
from protocols.scores import Scores, summary

if TYPE_CHECKING:
    from anndata import AnnData

#: CLEAR's augmentations, by the arguments of the model that turn them off at 0.
AUGMENTATIONS = ("mask", "noise", "swap", "crossover", "crossover_many")
SHOWN = {"ari_kmeans": "K-means, ARI", "nmi_kmeans": "K-means, NMI", "ari_leiden": "Leiden, ARI"}


def ablation(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    preset: str | None = None,
    leave_out: Sequence[str] = AUGMENTATIONS,
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> dict[str, Any]:
    """Trains CLEAR without each of its augmentations in turn, beside all of them and PCA.

    Args:
        inputs: Files that `convert` takes, each a data set of its own.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models and scores are kept.
        label_key: Column of obs with cell types, to score with.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.
        preset: Preset of all models; ``paper`` for the fractions that are printed, of which each
            is then left out. By default, one that the defaults do not use anyway is not a change.
        leave_out: Some of ``mask``, ``noise``, ``swap``, ``crossover`` and ``crossover_many``.
        seeds: Each model is trained with each.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: by data set and model the mean and the standard deviation over
        the seeds of each score of `clustering`, and in ``change`` by augmentation what K-means'
        and Leiden's ARI change, on the mean of data sets and seeds, when it is left out.

    Raises:
        InputError: A data set or an argument is unsuitable.

    Reference:
        CLEAR, ablation of the augmentations (supplement).
    """
    strange = [name for name in leave_out if name not in AUGMENTATIONS]
    if strange or not leave_out:
        what = f"there is no augmentation {strange[0]!r}" if strange else "nothing is left out"
        raise InputError(f"{what}; leave out some of {', '.join(AUGMENTATIONS)}")
    check_seeds(seeds)
    _, *with_preset = variants(["clear"], [preset] if preset else [])
    own = with_preset[0].training if with_preset else {}
    chosen = [Variant("all", "clear", own)]
    for name in dict.fromkeys(leave_out):
        chosen.append(Variant(f"without {name}", "clear", {**own, "options": {name: 0.0}}))
    chosen.append(Variant("pca", "pca"))
    check_training(training, "preset", chosen=chosen)
    out = check_folder(out)
    scores = Scores(out, "ablation")
    records = prepare_all(
        inputs, out / "records", label_key=label_key, source_key=source_key, layer=layer
    )
    for name, cells in records.items():
        for seed in seeds:
            score = of_clusters(cells, label_key, seed)
            scores.add(chosen, cells, seed, score, training=training, data=name)
    table = scores.table()
    means = table.groupby("method", sort=False)[["ari_kmeans", "ari_leiden"]].mean()
    result = {
        "seeds": list(seeds),
        "data": summary(table, ["data", "method"]),
        "change": {
            name: (means.loc[f"without {name}"] - means.loc["all"]).to_dict()
            for name in dict.fromkeys(leave_out)
        },
    }
    return leave(out, table, result, strips(table, "data", SHOWN))
