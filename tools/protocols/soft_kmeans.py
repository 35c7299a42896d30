"""contrastive-sc's clustering network: on the embedding as it is, and trained with its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from anndata import AnnData

from concerto_tf.metrics import agreement
from concerto_tf.models.contrastive_sc.soft_kmeans import SoftKMeans
from concerto_tf.tasks.cluster import CLUSTER, SOFT_CELLS, SOFT_STEPS, cluster
from concerto_tf.tasks.embed import KEY, embed_records
from concerto_tf.tasks.train import train
from protocols.charts import strips
from protocols.data_sets import labels_of, prepare_all
from protocols.embeddings import Variant, check_numbers, check_seeds, check_training
from protocols.report import check_folder, leave
from protocols.scores import summary

if TYPE_CHECKING:
    from concerto_tf.models import DenseModel
    from concerto_tf.records import Records

SHOWN = {"ari": "ARI", "nmi": "NMI"}


def soft_kmeans(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    label_key: str,
    source_key: str | None = None,
    layer: str | None = None,
    method: str = "contrastive-sc",
    steps: int = SOFT_STEPS,
    seeds: Sequence[int] = (0,),
    **training: Any,
) -> dict[str, Any]:
    """Scores K-means, the soft-K-means network on its embedding, and this trained with the encoder.

    All have as many clusters as there are types, and the networks begin from those of K-means. On
    the embedding the network is that of `concerto cluster --algorithm soft-kmeans`; with the
    encoder, gradients of the same losses go on into its weights, for as many steps.

    Args:
        inputs: Files that `convert` takes, each a data set of its own.
        out: Folder for ``table.tsv``, ``result.json``, ``figure.png``, ``records`` and ``models``.
            Called again, finished models are kept.
        label_key: Column of obs with cell types; cells without one are clustered and not scored.
        source_key: Column of obs with the sources, used in the data sets that have it.
        layer: Layer that holds the counts.
        method: ``contrastive-sc``, ``clear`` or ``cicl``.
        steps: Minibatches of 256 cells that the network and its encoder are trained on.
        seeds: Of all.
        **training: Further arguments of `train`.

    Returns:
        What ``result.json`` holds: by data set and way the mean and the standard deviation over
        the seeds of ARI and NMI, and in ``mean`` these over the data sets.

    Raises:
        InputError: A data set or an argument is unsuitable.

    Reference:
        contrastive-sc, "Clustering network" (b), and supplement, figure S2.
    """
    import pandas as pd

    check_seeds(seeds)
    check_numbers(steps=steps, whole=True, least=1)
    check_training(training, "ensemble", chosen=[Variant(method, method)])
    out = check_folder(out)
    records = prepare_all(
        inputs, out / "records", label_key=label_key, source_key=source_key, layer=layer
    )
    rows = []
    for name, cells in records.items():
        labels = labels_of(cells, label_key)
        known = np.array([label is not None for label in labels])
        k = len(set(labels[known]))
        for seed in seeds:
            place = out / "models" / f"{name}-{seed}"
            how = {"ensemble": 1, **training, "method": method, "seed": seed}
            model = train(cells, place, **how)
            z = embed_records(model, cells)
            start = _clusters(z, "kmeans", k, seed)
            for way, found in {
                "K-means": start,
                "network on the embedding": _clusters(z, "soft-kmeans", k, seed),
                "network with the encoder": together(model, cells, z, start, steps, seed),
            }.items():
                of = agreement(labels[known], found[known])
                row = {"data": name, "method": way, "seed": seed}
                rows.append({**row, "ari": of["ari"], "nmi": of["nmi"]})
    table = pd.DataFrame(rows)
    result = {
        "seeds": list(seeds),
        "data": summary(table, ["data", "method"]),
        "mean": summary(table, ["method"], over=["seed", "data"]),
    }
    return leave(out, table, result, strips(table, "data", SHOWN))


def _clusters(z: np.ndarray, algorithm: str, k: int, seed: int) -> np.ndarray:
    made = cluster(AnnData(obsm={KEY: z}), algorithm=algorithm, n_clusters=k, seed=seed)
    return made.obs[CLUSTER].astype(int).to_numpy()


class WithEncoder(SoftKMeans):
    """The network on what an encoder makes of cells; both are trained.

    Args:
        encoder: The model, whose weights change.
        middle: Taken off its embeddings [d].
        **kwargs: Of `SoftKMeans`.
    """

    def __init__(self, encoder: DenseModel, middle: np.ndarray, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._embed = lambda batch: encoder(batch) - tf.constant(middle, tf.float32)
        self._of_encoder = lambda: encoder.backbone.trainable_variables

    @property
    def trainable_variables(self) -> list[Any]:
        return [*super().trainable_variables, *self._of_encoder()]

    def refine(self, batch: Any, training: bool = False) -> tf.Tensor:
        return super().refine(self._embed(batch), training)


def together(
    model: DenseModel, records: Records, z: np.ndarray, start: np.ndarray, steps: int, seed: int
) -> np.ndarray:
    """Clusters [n] of a network that is trained with its encoder.

    Args:
        model: A trained model, which is changed.
        records: The cells.
        z: Their embeddings [n, d].
        start: Clusters to begin from [n], codes.
        steps: Minibatches.
        seed: Of the order of cells.
    """
    middle = z.mean(axis=0)
    network = WithEncoder(model, middle, k=int(start.max()) + 1, dim=z.shape[1], seed=seed)
    network.start(z - middle, start)
    network.compile("adam")
    cells = min(SOFT_CELLS, records.n_cells)
    data = records.dataset(cells, shuffle=True, repeat=True, seed=seed, sources=model.sources)
    network.fit(data, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    found = np.full(records.n_cells, -1)
    for batch in records.dataset(cells, sources=model.sources):
        rows = batch["row"].numpy()
        codes = network(batch).numpy().argmax(axis=1)
        found[rows[rows >= 0]] = codes[rows >= 0]
    return found
