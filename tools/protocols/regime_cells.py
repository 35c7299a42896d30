"""The cells of a regime: reference and query, models of the reference, and scores of labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from concerto_tf.records import Records, convert
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.train import train
from protocols import delivered_peers as peers
from protocols.annotation import scores
from protocols.baselines import log_normalized
from protocols.delivered_parts import PROTEIN, Bench
from protocols.quality import configured
from protocols.quality_cells import LABEL, SOURCE

if TYPE_CHECKING:
    from anndata import AnnData

    from concerto_tf.models import ContrastiveModel

#: The PCA initialization, trained at no rate to speak of whatever the default is.
START = "start only"
#: Genes that components are made of.
_GENES = 2000


@dataclass
class Place:
    """A set with a seed, parted into reference and query, and the models of the reference.

    Args:
        bench: The cells.
        folder: For records and models.
        without: Source that is the query, all others being the reference; halves if none is named.
    """

    bench: Bench
    folder: Path
    without: str | None = None
    _records: dict[bool, Records] = field(default_factory=dict)
    _models: dict[tuple[str, bool], ContrastiveModel] = field(default_factory=dict)
    _embedded: dict[tuple[str, bool], np.ndarray] = field(default_factory=dict)
    _others: dict[str, Place] = field(default_factory=dict)

    @cached_property
    def reference(self) -> AnnData:
        """Half of the cells, or all sources but one, with labels."""
        columns = (LABEL,) if self.without is None else (LABEL, SOURCE)
        return self.bench.part(~self._aside, *columns, modality=self.has_protein)

    @cached_property
    def query(self) -> AnnData:
        """The other cells, with labels."""
        return self.bench.part(self._aside, LABEL, modality=self.has_protein)

    @cached_property
    def _aside(self) -> np.ndarray:
        if self.without is None:
            return self.bench.aside
        return self.bench.cells.obs[SOURCE].to_numpy(str) == self.without

    def leaving_out(self, source: str) -> Place:
        """The same cells with a source as the query."""
        if source not in self._others:
            folder = self.folder / f"without{len(self._others)}"
            folder.mkdir()
            self._others[source] = Place(self.bench, folder, source)
        return self._others[source]

    @property
    def has_protein(self) -> bool:
        """Whether the cells have proteins."""
        return PROTEIN in self.bench.cells.obsm

    def records(self, both: bool = False) -> Records:
        """Records of the reference, with both modalities or with RNA alone."""
        if both not in self._records:
            modalities = {PROTEIN: f"obsm:{PROTEIN}"} if both else None
            out = self.folder / f"records{both:d}"
            sources = self.reference.obs[SOURCE] if SOURCE in self.reference.obs else []
            self._records[both] = convert(
                self.reference,
                out,
                source_key=SOURCE if len(set(sources)) > 1 else None,
                label_keys=[LABEL],
                modalities=modalities,
            )
        return self._records[both]

    def model(self, method: str, both: bool = False) -> ContrastiveModel:
        """The model of the reference that a configuration makes; labels are not looked at."""
        if (method, both) not in self._models:
            self._models[method, both] = self._made(method, both)
        return self._models[method, both]

    def _made(self, method: str, both: bool) -> ContrastiveModel:
        if method == START:
            default = self.model("concerto", both)
            if not default.needs_training:
                return default
        chosen = configured("concerto,learning_rate=1e-12,epochs=1" if method == START else method)
        out = self.folder / f"model{len(self._models)}"
        how = {"method": chosen.method, "seed": self.bench.seed, **chosen.training}
        return train(self.records(both), out, **how)

    def embedded(self, method: str, both: bool = False) -> np.ndarray:
        """Embeddings of the reference [n, d]."""
        if (method, both) not in self._embedded:
            self._embedded[method, both] = embed_records(
                self.model(method, both), self.records(both)
            )
        return self._embedded[method, both]


def told(query: AnnData, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 of the labels [n] that a method gives a query."""
    names, codes = np.unique(
        np.concatenate([query.obs[LABEL].to_numpy(str), labels]), return_inverse=True
    )
    found = scores(*np.split(codes, 2))
    return {"accuracy": found["accuracy"], "f1": found["macro_f1"]}


def components(reference: AnnData, query: AnnData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Components of the variable genes of a reference that a query has too, of both."""
    import scanpy as sc
    from sklearn.decomposition import PCA

    shared = reference.var_names.intersection(query.var_names)
    both = [
        log_normalized(cells, peers.scales(cells))[:, shared].copy() for cells in (reference, query)
    ]
    shown = np.asarray(both[0].X.sum(0)).ravel() > 0
    both = [cells[:, shown].copy() for cells in both]
    if both[0].n_vars > _GENES:
        sc.pp.highly_variable_genes(both[0], n_top_genes=_GENES)
        variable = both[0].var["highly_variable"].to_numpy()
        both = [cells[:, variable].copy() for cells in both]
    x, y = (cells.X.toarray() if hasattr(cells.X, "toarray") else cells.X for cells in both)
    scale = np.maximum(x.std(0), 1e-6)
    x, y = (np.clip((of - x.mean(0)) / scale, -10, 10) for of in (x, y))
    made = PCA(min(50, *x.shape), random_state=seed).fit(x)
    return made.transform(x), made.transform(y)


def rna(cells: AnnData) -> AnnData:
    """Cells with nothing but their counts."""
    from anndata import AnnData

    return AnnData(cells.X.copy(), cells.obs[[]].copy(), cells.var.copy())
