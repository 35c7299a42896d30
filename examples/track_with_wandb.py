"""A training followed by Weights & Biases, without an account or a network: pip install wandb

    python examples/track_with_wandb.py FOLDER

`wandb sync FOLDER/wandb/offline-run-*` sends it on, where there is an account.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import wandb
from wandb.integration.keras import WandbMetricsLogger

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells


def main(folder: Path) -> None:
    cells = simulate_cells(SplatParams.droplet(n_cells=300, n_genes=200, group_sizes=(2, 1)))
    records = concerto_tf.convert(cells, folder / "records", drop_empty=True)
    options = {"hidden_units": 32, "temperature": 0.3}

    with wandb.init(project="concerto", dir=folder, mode="offline", config=options) as run:
        concerto_tf.train(
            records, folder / "model", epochs=5, options=options, callbacks=[WandbMetricsLogger()]
        )
        print("rounds:", int(run.summary["epoch/epoch"]) + 1)
        print("loss:", round(run.summary["epoch/loss"], 3))
    print("kept:", len(list(folder.glob("wandb/offline-run-*/*.wandb"))))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).absolute())
