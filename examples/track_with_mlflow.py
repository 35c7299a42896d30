"""A training followed by MLflow, in a folder on this machine: pip install mlflow

    python examples/track_with_mlflow.py FOLDER

`mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows it. Any Keras callback works the
same way.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import mlflow
from mlflow.keras import MlflowCallback

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells


def main(folder: Path) -> None:
    cells = simulate_cells(SplatParams.droplet(n_cells=300, n_genes=200, group_sizes=(2, 1)))
    records = concerto_tf.convert(cells, folder / "records", drop_empty=True)
    options = {"hidden_units": 32, "temperature": 0.3}

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("concerto", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("concerto")
    with mlflow.start_run() as run:
        mlflow.log_params(options)
        concerto_tf.train(
            records, folder / "model", epochs=5, options=options, callbacks=[MlflowCallback()]
        )
        mlflow.log_artifact(str(folder / "model" / "MODEL_CARD.md"))

    client = mlflow.MlflowClient()
    rounds = client.get_metric_history(run.info.run_id, "loss")
    print("rounds:", len(rounds))
    print("loss falls:", rounds[-1].value < rounds[0].value)
    print("artifacts:", [item.path for item in client.list_artifacts(run.info.run_id)])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).absolute())
