"""scVI in a process of its own: PyTorch and TensorFlow do not get on in one.

    python scvi_alone.py CELLS.h5ad OUT.npy SOURCE_KEY SEED [LABEL_KEY]

Leaves the embedding, or with a column of labels what scANVI makes of those that are missing.
Imports nothing of this package, and with it no TensorFlow.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings


def main(cells_path: str, out: str, source_key: str, seed: str, label_key: str = "") -> None:
    """Embeds or labels counts, of the genes that matter, and prints the seconds of training."""
    warnings.simplefilter("ignore")
    import anndata
    import numpy as np
    import scvi

    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = int(seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cells = anndata.read_h5ad(cells_path)
    began = time.perf_counter()
    scvi.model.SCVI.setup_anndata(cells, batch_key=source_key or None)
    model = scvi.model.SCVI(cells, n_layers=2, n_latent=30, gene_likelihood="nb")
    model.train(enable_progress_bar=False, accelerator="cpu")
    if label_key:
        cells.obs[label_key] = cells.obs[label_key].astype(object).fillna("unlabelled")
        taught = scvi.model.SCANVI.from_scvi_model(
            model, labels_key=label_key, unlabeled_category="unlabelled"
        )
        taught.train(max_epochs=20, enable_progress_bar=False, accelerator="cpu")
        np.save(out, np.asarray(taught.predict(), str))
    else:
        np.save(out, np.asarray(model.get_latent_representation(), np.float32))
    print(round(time.perf_counter() - began, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
