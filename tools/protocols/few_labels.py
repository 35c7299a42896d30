"""Types from 1 to 100 labelled cells each: fine-tuned, a probe of the embedding, and peers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from concerto_tf.records import convert
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.relearn import tell
from protocols import delivered_peers as peers
from protocols.quality_cells import LABEL
from protocols.regime_cells import Place, components, rna, told

if TYPE_CHECKING:
    from anndata import AnnData

#: Labelled cells of a type.
PER_TYPE = (1, 3, 10, 30, 100)
#: `finetune` of the default model by its arguments: as it is, as in the paper, and with every label
#: to learn from.
FINETUNED: dict[str, dict[str, Any]] = {
    "fine-tuned": {},
    "networks only": {"networks_only": True},
    "networks only, none held out": {"networks_only": True, "calibration": 0.0},
}
KNN = "kNN on PCA"
#: Neighbours that vote, at most.
_NEIGHBOURS = 5


def tasks(place: Place) -> list[str]:
    """One task for each number of labels."""
    return [f"{n} a type" for n in PER_TYPE]


def answer(place: Place, task: str, method: str) -> dict[str, float]:
    """Scores of a query whose types are told from few labels of the reference.

    All cells of the reference train the model, or make components, without labels.

    Args:
        place: The cells.
        task: Of `tasks`.
        method: Of `FINETUNED`; ``logistic regression`` on genes; `KNN`; or what embeds cells, and
            logistic regression learns from the embedding.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    most, labels = int(task.split()[0]), place.reference.obs[LABEL].to_numpy(str)
    order = np.random.default_rng(place.bench.seed).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == name][:most] for name in np.unique(labels)])
    if method in FINETUNED:
        return told(place.query, _finetuned(place, chosen, method))
    if method == "logistic regression":
        known = place.reference[chosen].copy()
        return told(place.query, peers.labels_by("logistic", known, place.query, place.bench.seed))
    if method in ("PCA", KNN):
        z, other = components(place.reference, place.query, place.bench.seed)
    else:
        z, other = place.embedded(method), embed(place.model(method), rna(place.query))
    if method == KNN:
        nearest = KNeighborsClassifier(min(_NEIGHBOURS, most)).fit(z[chosen], labels[chosen])
        return told(place.query, nearest.predict(other))
    middle, scale = z.mean(0), max(float(z.std()), 1e-12)  # one scale, so that noise stays small
    probe = LogisticRegression(max_iter=2000).fit((z[chosen] - middle) / scale, labels[chosen])
    return told(place.query, probe.predict((other - middle) / scale))


def _finetuned(place: Place, chosen: np.ndarray, method: str) -> np.ndarray:
    """Labels [n] of the query by the default model, fine-tuned to the chosen cells."""
    known: AnnData = rna(place.reference)
    known.obs[LABEL] = None
    known.obs.iloc[chosen, 0] = place.reference.obs[LABEL].to_numpy(str)[chosen]
    with tempfile.TemporaryDirectory(prefix="concerto-") as folder:
        records = convert(known, Path(folder) / "known", label_keys=[LABEL], like=place.records())
        fine = finetune(
            place.model("concerto"),
            records,
            Path(folder) / "model",
            label_key=LABEL,
            seed=place.bench.seed,
            **FINETUNED[method],
        )
        query = convert(rna(place.query), Path(folder) / "query", like=place.records())
        return np.array(fine.classes)[tell(fine, query, "none").found["code"]]
