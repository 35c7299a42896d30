"""The model of human blood that comes with the package, built from labelled studies."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from concerto_tf.models import load_model
from concerto_tf.models.classifier import Classifier, Exemplars
from concerto_tf.records import Records, convert
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.labels import hold_out, known_labels
from protocols.blood_cells import OR, TYPES

if TYPE_CHECKING:
    from anndata import AnnData

LABEL, GROUP = "cell_type", "group"
#: Share held out; cells in a mixture; mixtures of cells of one type, study and use.
_CALIBRATION, _MIXED, _PER_PART = 0.2, 3, 40
#: What `train` and `finetune` are told; not tuned.
RECIPE: dict[str, Any] = {"genes": "hvg:2000", "finetuning_epochs": 10}


def build(cells: AnnData, work: Path, *, seed: int = 0, **changes: Any) -> Classifier:
    """A model that tells the cell types of cells, by the package's own parts.

    The studies are the sources of the training. Where a label leaves several types open, a cell
    takes the likeliest of these, by the cells whose label tells one.

    Args:
        cells: From `joined`.
        work: Folder for records and models.
        seed: Seed of everything.
        **changes: To `RECIPE`.
    """
    recipe = RECIPE | changes
    records = _records(cells, work / "records")
    encoder = train(records, work / "encoder", genes=recipe["genes"], seed=seed)
    cells.obs[LABEL] = resolved(
        embed(encoder, records), cells.obs["types"].astype(str).to_numpy(), seed
    )
    cells.obs[GROUP] = TYPES["group"].reindex(cells.obs[LABEL]).to_numpy()
    labelled = _records(cells, work / "labelled")
    finetune(
        work / "encoder",
        labelled,
        work / "model",
        levels=[GROUP, LABEL],
        calibration=_CALIBRATION,
        keep_cells=False,
        epochs=recipe["finetuning_epochs"],
        seed=seed,
    )
    model = load_model(work / "model")
    assert isinstance(model, Classifier)
    _keep_mixtures(model, cells, labelled, embed(encoder, labelled), work, seed)
    return model


def mixtures(
    counts: sp.csr_matrix, place: np.ndarray, part: np.ndarray, per_part: int, seed: int = 0
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Cells that show how cells of a part vary, without being any of them.

    Each is the sum of a cell and its two nearest neighbours within the part, of which as many
    molecules are drawn as the cell has. So what is kept in a model is no cell of a study.

    Args:
        counts: Counts [n, G].
        place: Where the cells lie [n, d].
        part: Part of each cell [n]: cells of one type, study and use.
        per_part: Mixtures of each part, at most.
        seed: Seed of all draws.

    Returns:
        Counts of the mixtures, and the cell that each begins with. Parts of less than three cells
        have none.

    Example:

    >>> import numpy as np, scipy.sparse as sp
    >>> counts = sp.csr_matrix(np.eye(4)[[0, 0, 1, 3]] * 10)
    >>> mixed, first = mixtures(counts, np.zeros((4, 1)), np.array([0, 0, 0, 1]), 5)
    >>> mixed.shape, float(mixed[:, 3].sum()), sorted(first.tolist())
    ((3, 4), 0.0, [0, 1, 2])
    """
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    rows, first = [], []
    for one in np.unique(part):
        own = np.flatnonzero(part == one)
        if len(own) < _MIXED:
            continue
        chosen = rng.permutation(len(own))[:per_part]
        near = NearestNeighbors(n_neighbors=_MIXED).fit(place[own]).kneighbors(place[own[chosen]])
        for i, neighbours in zip(chosen, near[1], strict=True):
            pooled = counts[own[neighbours]].sum(axis=0).A1
            share = counts[own[i]].sum() / pooled.sum()
            rows.append(sp.csr_matrix(rng.binomial(pooled.astype(np.int64), min(share, 1.0))))
            first.append(own[i])
    return sp.vstack(rows).tocsr().astype(np.float32), np.array(first)


def _keep_mixtures(
    model: Classifier,
    cells: AnnData,
    records: Records,
    embedding: np.ndarray,
    work: Path,
    seed: int,
) -> None:
    """Has the model keep mixtures in place of cells, to learn types from as a query shows them."""
    import anndata

    _, codes = known_labels(records, LABEL)
    held_out = hold_out(codes, _CALIBRATION, seed)
    use = cells.obs["study"].astype(str) + " " + codes.astype(str) + held_out.astype(str)
    counts, first = mixtures(cells.X, embedding, use.to_numpy(), _PER_PART, seed)
    obs = cells.obs[["study"]].iloc[first].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    mixed = anndata.AnnData(counts, obs=obs, var=cells.var)
    kept = convert(mixed, work / "mixtures", source_key="study", like=records, overwrite=True)
    data = kept.dataset(256, sources=model.encoder.sources)
    rows = np.arange(len(first))
    model.exemplars = Exemplars.of(data, rows, codes[first], held_out[first])


def resolved(embedding: np.ndarray, types: np.ndarray, seed: int = 0) -> np.ndarray:
    """One type for each cell: the likeliest of those that its label leaves open.

    Args:
        embedding: Of the cells [n, d].
        types: What each label may mean, joined by "|".
        seed: Of the logistic regression.

    Example:

    >>> import numpy as np
    >>> place = np.array([[0.0], [1.0], [9.0], [10.0], [0.2]])
    >>> resolved(place, np.array(["T", "T", "B", "B", "B|T"])).tolist()
    ['T', 'T', 'B', 'B', 'T']
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    open_ = np.char.find(types.astype(str), OR) >= 0
    found = types.astype(object)
    if not open_.any():
        return found
    scaled = StandardScaler().fit_transform(embedding)
    told = LogisticRegression(max_iter=100, class_weight="balanced", random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # near enough, after that many steps
        told.fit(scaled[~open_], types[~open_].astype(str))
    p = pd.DataFrame(told.predict_proba(scaled[open_]), columns=told.classes_)
    for i, row in zip(np.flatnonzero(open_), p.to_numpy(), strict=True):
        among = [name for name in types[i].split(OR) if name in p.columns]
        found[i] = max(among, key=lambda name: row[p.columns.get_loc(name)])
    return found


def _records(cells: AnnData, out: Path) -> Records:
    labels = [key for key in (GROUP, LABEL) if key in cells.obs]
    return convert(cells, out, source_key="study", label_keys=labels, workers=1, overwrite=True)
