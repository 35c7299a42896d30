"""Commands with a model that comes with the package, by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import pandas as pd
import scipy.sparse as sp

from concerto_tf.models import load_model


def _write_counts(path: Path) -> None:
    """100 cells with all genes: mixtures that the model keeps."""
    model = load_model("human-blood")
    counts, genes = model.exemplars.counts["rna"], model.encoder.modality_inputs[0]
    shape = model.exemplars.n_cells, len(genes.vocabulary)
    matrix = sp.csr_matrix((counts.values.astype("f4"), counts.genes, counts.start), shape=shape)
    cells = anndata.AnnData(matrix[:100], var=pd.DataFrame(index=list(genes.symbols)))
    cells.write_h5ad(path)


def test_cells_are_labelled_without_a_reference(concerto: Callable, tmp_path: Path) -> None:
    path, out = tmp_path / "cells.h5ad", tmp_path / "out.h5ad"
    _write_counts(path)
    answer = concerto("annotate", "human-blood", path, "-o", out, "--json", "--quiet")
    assert answer.code == 0, answer
    labelled = anndata.read_h5ad(out)
    assert sum(answer.last["labels"].values()) == labelled.n_obs == 100
    assert {
        "concerto_label",
        "concerto_label_coarse",
        "concerto_confidence",
        "concerto_novelty",
    } <= set(labelled.obs)


def test_it_can_be_looked_at(concerto: Callable) -> None:
    answer = concerto("inspect", "human-blood", "--json", "--quiet")
    assert answer.code == 0 and "NK" in answer.last["labels"], answer


def test_another_name_is_none_of_them(concerto: Callable, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    _write_counts(path)
    answer = concerto("annotate", "mouse-blood", path, "-o", tmp_path / "out.h5ad", "--quiet")
    answer.mendable("mouse-blood", "human-blood")
