"""Clusters that stay apart by source in a run: warned of, or drawn together."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.metrics import cilisi
from concerto_tf.tasks.run import run

WARNED = "clusters that stay apart by source, though each pair may be one cell type"


def make_cells(response: bool) -> AnnData:
    """Three types in two conditions, of which the third answers by a third of its genes."""
    rng = np.random.default_rng(0)
    kind, treated = rng.integers(0, 3, 450), rng.integers(0, 2, 450)
    profiles = np.random.default_rng(1).gamma(0.6, 4.0, (3, 90))
    rate = profiles[kind]
    if response:
        rate[(kind == 2) & (treated == 1), 60:] = np.random.default_rng(2).gamma(0.6, 4.0, 30)
    obs = pd.DataFrame(
        {"type": np.array(["B", "T", "M"])[kind], "dose": np.array(["no", "yes"])[treated]},
        [f"cell{i}" for i in range(450)],
    )
    return AnnData(rng.poisson(rate + 0.2).astype("f4"), obs)


def mixing(out: Path) -> float:
    cells = anndata.read_h5ad(out / "result.h5ad")
    answers = (cells.obs["type"] == "M").to_numpy()
    return cilisi(
        cells.obsm["X_concerto"][answers], cells.obs["dose"][answers], ["M"] * sum(answers)
    )


@pytest.mark.slow
def test_a_strong_response_is_warned_of_and_drawn_together_where_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"source_key": "dose", "genes": "all"}
    run(make_cells(response=True), tmp_path / "apart", **options)
    assert WARNED in caplog.text and "merge=1" in caplog.text
    caplog.clear()
    run(make_cells(response=True), tmp_path / "together", merge=1, **options)
    assert WARNED not in caplog.text
    assert mixing(tmp_path / "apart") < 0.1 and mixing(tmp_path / "together") > 0.5
    cells = anndata.read_h5ad(tmp_path / "together" / "result.h5ad")
    assert (
        pd.crosstab(cells.obs["concerto_cluster"], cells.obs["type"]).astype(bool).sum().eq(1).all()
    )
    assert "(no, " in cells.uns["concerto"]["merged"]["before"]
    with pytest.raises(InputError, match="holds"):  # another merge is another job
        run(make_cells(response=True), tmp_path / "together", **options)


def test_without_a_response_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_cells(response=False), tmp_path / "run", source_key="dose", genes="all", merge=1.0)
    assert WARNED not in caplog.text and "nothing is merged" in caplog.text
    with pytest.raises(InputError, match="merge is 2; it must lie within 0 and 1"):
        run(make_cells(response=False), tmp_path / "other", source_key="dose", merge=2)
