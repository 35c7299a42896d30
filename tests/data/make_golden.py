"""Makes `golden/VERSION`: what this version writes, for later ones to read.

Records of two modalities, a model trained on them with its reference, cells to ask about, and what
this version says of them. Run it once for a release, from the root of the project, and keep the
folder under version control. A folder of a released version is never made anew: later versions have
to read what it holds.

    python tests/data/make_golden.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from anndata import AnnData

GOLDEN = Path(__file__).parent / "golden"
# As small as a model can be that still tells the cells apart.
OPTIONS = {"units": 16, "attention_units": 8, "hidden_units": 16, "head_units": 16, "components": 8}


def cells() -> AnnData:
    """Cells of three groups in two batches, with a few proteins of their own."""
    from concerto_tf.simulate import SplatParams, simulate_cells

    made = simulate_cells(
        SplatParams.droplet(
            n_cells=180,
            n_genes=150,
            group_sizes=(3, 2, 1),
            batch_sizes=(1, 1),
            de_scale=0.8,
            seed=7,
        )
    )
    rng = np.random.default_rng(7)
    codes = made.obs["group"].astype("category").cat.codes.to_numpy()
    made.obsm["protein"] = rng.poisson(10 + 20 * np.eye(3)[codes]).astype(np.float32)
    return made[np.asarray(made.X.sum(1)).ravel() > 0].copy()


def main() -> None:
    import concerto_tf

    folder = GOLDEN / concerto_tf.__version__
    if folder.exists():
        sys.exit(f"{folder}: is there already; what a release has left is not made anew")
    made = cells()
    known, query = made[:140].copy(), made[140:].copy()
    folder.mkdir(parents=True)
    query.write_h5ad(folder / "query.h5ad", compression="gzip")
    records = concerto_tf.convert(
        known,
        folder / "records",
        source_key="batch",
        label_keys=["group"],
        modalities={"protein": "obsm:protein"},
        compression="gzip",
        shards=2,
    )
    model = folder / "model"
    concerto_tf.train(records, model, genes="all", epochs=2, batch_size=35, options=OPTIONS)
    table = concerto_tf.map(
        model, folder / "query.h5ad", reference=records, label_key="group", source_key="batch"
    )
    table.to_csv(folder / "labels.tsv", sep="\t")
    embedding = concerto_tf.embed(model, folder / "query.h5ad", source_key="batch")
    np.save(folder / "embedding.npy", embedding)
    for log in (model / "tensorboard", model / "checkpoint"):  # of no use to a later version
        shutil.rmtree(log, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e3:,.0f} kB, labels {table['label'].value_counts().to_dict()}")


if __name__ == "__main__":
    main()
