"""Makes `models/vN`: a small trained model, some cells, and what it says of them.

Run it once for a version of the saved format, from the root of the project, and keep the result
under version control. Never make a folder anew that a released version has made: later versions
have to load what it holds.

    python tests/data/make_model_fixture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def cells(n: int = 48, n_genes: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Padded counts of cells of three kinds and two sources."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.5, 2.0, (3, n_genes))
    source = rng.integers(0, 2, n).astype(np.int32)
    counts = rng.poisson(profiles[rng.integers(0, 3, n)] * (1 + source[:, None]))
    counts[:, 0] += 1
    order = np.argsort(counts == 0, axis=1, kind="stable").astype(np.int32)
    values = np.take_along_axis(counts, order, 1)
    genes = np.where(values > 0, order, 0).astype(np.int32)
    return {"genes": genes, "values": values.astype(np.float32), "source": source}


def main() -> None:
    import tensorflow as tf

    from concerto_tf.models import Concerto, save_model
    from concerto_tf.models.base import SAVED_FORMAT

    folder = Path(__file__).parent / "models" / f"v{SAVED_FORMAT}"
    folder.mkdir(parents=True, exist_ok=True)
    model = Concerto(
        [f"ENSG{i:011d}" for i in range(40)],
        symbols=[f"GENE{i}" for i in range(40)],
        genes=range(2, 40),
        sources=("first", "second"),
        units=8,
        attention_units=4,
        hidden_units=8,
        head_units=8,
        components=3,
        readout="both",
    )
    data = tf.data.Dataset.from_tensor_slices(cells()).batch(24)
    model.compile("adam", 0.01)
    model.fit(data, epochs=5, verbose=0)
    save_model(model, folder / "model.keras")
    query = cells(12, seed=1)
    np.savez_compressed(folder / "cells.npz", **query)
    np.save(folder / "embedding.npy", model.embed([query]))
    print(f"{folder}: {sorted(file.name for file in folder.iterdir())}")


if __name__ == "__main__":
    main()
