"""Embedding of cells by a trained model."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, save_model
from concerto_tf.records import convert
from concerto_tf.tasks.embed import embed

N_GENES = 60


def make_cells(n: int = 50, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, N_GENES), (n, N_GENES))
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {"donor": rng.choice(["a", "b"], n), "type": rng.choice(["B", "T"], n)},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"AB{i}C" for i in range(N_GENES)])
    return AnnData(counts.astype("float32"), obs=obs, var=var)


def as_batch(cells: AnnData, model: Concerto) -> dict[str, np.ndarray]:
    """All genes of the cells as one batch, in the model's order of genes."""
    known = [name for name in model.vocabulary if name in cells.var_names]
    place = np.array([model.vocabulary.index(name) for name in known], np.int32)
    source = [model.sources.index(s) if s in model.sources else -1 for s in cells.obs["donor"]]
    return {
        "genes": np.tile(place, (cells.n_obs, 1)),
        "values": np.asarray(cells[:, known].X),
        "source": np.array(source, np.int32),
    }


@pytest.fixture(scope="module")
def model() -> Concerto:
    made = Concerto(
        list(make_cells().var_names),
        genes=range(5, N_GENES),
        sources=("a", "b"),
        units=8,
        hidden_units=8,
        attention_units=4,
        head_units=None,
        readout="both",
    )
    made.calibrate([as_batch(make_cells(200, seed=1), made)])
    return made


def test_every_way_in_gives_the_same_embedding_in_input_order(
    model: Concerto, tmp_path: Path
) -> None:
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    save_model(model, tmp_path / "model.keras")
    records = convert(cells, tmp_path / "records", source_key="donor", label_keys=["type"])
    want = model(as_batch(cells, model)).numpy()
    seen = []
    ways = [
        (model, cells, "donor"),
        (tmp_path / "model.keras", tmp_path / "cells.h5ad", "donor"),
        (model, records, None),
        (model, str(records.path), None),
    ]
    for i, (of, given, source_key) in enumerate(ways):
        out = tmp_path / f"{i}.h5ad"
        z = embed(of, given, out, source_key=source_key, progress=lambda *p: seen.append(p))
        np.testing.assert_allclose(z, want, atol=2e-5)
        written = anndata.io.read_h5ad(out)
        np.testing.assert_array_equal(written.obsm["X_concerto"], z)
        assert list(written.obs_names) == list(cells.obs_names)
        assert list(written.obs["type"]) == list(cells.obs["type"])
    assert seen == [(50, 50)] * 4
    assert embed(model, records).tobytes() == embed(model, records).tobytes()


def test_input_stays_as_it_was_beside_the_embedding(model: Concerto, tmp_path: Path) -> None:
    cells = make_cells()
    cells.layers["other"] = cells.X * 2
    cells.obsm["X_pca"] = np.ones((50, 2))
    cells.uns["note"] = "mine"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    before = (tmp_path / "cells.h5ad").read_bytes()
    embed(model, tmp_path / "cells.h5ad", tmp_path / "out.h5ad")
    assert (tmp_path / "cells.h5ad").read_bytes() == before
    written = anndata.io.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.X, cells.X)
    np.testing.assert_array_equal(written.layers["other"], cells.layers["other"])
    assert set(written.obsm) == {"X_pca", "X_concerto"} and written.uns["note"] == "mine"


def test_genes_are_matched_by_name(model: Concerto, tmp_path: Path) -> None:
    cells = make_cells()
    want = embed(model, cells, source_key="donor")
    order = np.random.default_rng(0).permutation(N_GENES)
    np.testing.assert_allclose(
        embed(model, cells[:, order].copy(), source_key="donor"), want, atol=2e-5
    )
    more = anndata.concat(
        [cells, AnnData(np.ones((50, 3), "f4"), cells.obs, pd.DataFrame(index=["X1", "X2", "X3"]))],
        axis=1,
        merge="same",
    )
    np.testing.assert_allclose(embed(model, more, source_key="donor"), want, atol=2e-5)


def test_cells_of_an_unknown_source_take_the_pooled_statistics(model: Concerto) -> None:
    cells = make_cells()
    cells.obs["donor"] = "somebody"
    want = model(as_batch(cells, model)).numpy()
    np.testing.assert_allclose(embed(model, cells, source_key="donor"), want, atol=2e-5)
    assert np.abs(want - embed(model, make_cells(), source_key="donor")).max() > 0.01


def test_what_does_not_fit_is_refused_and_nothing_written(model: Concerto, tmp_path: Path) -> None:
    cells, out = make_cells(), tmp_path / "out.h5ad"
    other = convert(cells[:, :30].copy(), tmp_path / "records")
    with pytest.raises(InputError, match=r"are not the 60 of the model; convert.*like=\.\.\."):
        embed(model, other, out)
    strange = cells.copy()
    strange.var_names = [f"ZZ{i}Y" for i in range(N_GENES)]
    with pytest.raises(InputError, match="only 0 of its 60 genes"):
        embed(model, strange, out)
    cells.X = np.log1p(1e4 * cells.X / cells.X.sum(1, keepdims=True))
    with pytest.raises(InputError, match="log-normalized values, but the model was trained on raw"):
        embed(model, cells, out)
    with pytest.raises(InputError, match="donors"):
        embed(model, make_cells(), out, source_key="donors")
    with pytest.raises(InputError, match="no such folder"):
        embed(model, make_cells(), tmp_path / "none" / "out.h5ad")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["records"]


def test_cells_are_not_taken_out_of_the_file_that_is_read(model: Concerto, tmp_path: Path) -> None:
    path, cells = tmp_path / "cells.h5ad", make_cells()
    cells.X[3] = 0
    cells.write_h5ad(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is read by this very call and would be lost"):
        embed(model, path, path, drop_empty=True)
    assert path.read_bytes() == before
    embed(model, path, tmp_path / "out.h5ad", drop_empty=True)
    assert anndata.read_h5ad(tmp_path / "out.h5ad").n_obs == 49


def test_folder_of_a_run_says_where_its_model_is(model: Concerto, tmp_path: Path) -> None:
    (tmp_path / "result" / "model").mkdir(parents=True)
    save_model(model, tmp_path / "result" / "model" / "model.keras")
    with pytest.raises(InputError, match="result: holds no model.keras; its model is .*result/mod"):
        embed(tmp_path / "result", make_cells())
