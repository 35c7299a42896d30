"""Settings of a training chosen by Optuna, without labels: pip install optuna

    python examples/tune_with_optuna.py FOLDER [TRIALS]

Called again it adds trials to those in FOLDER. What is maximized is the support of clusters: how
well each is told from the one nearest to it by genes that were held out (0.5 is chance), as `run`
writes it. It is larger where clusters are few, so their resolution stays as it is. It is no label:
compare what it chooses with the first trial, which has the default rate and temperature.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import optuna
from anndata import AnnData

import concerto_tf
from concerto_tf.simulate import SplatParams, simulate_cells
from concerto_tf.tasks.described import SUPPORT, describe
from concerto_tf.tasks.embed import embed_records


def main(folder: Path, trials: int) -> None:
    cells = simulate_cells(SplatParams.droplet(n_cells=600, n_genes=300, group_sizes=(3, 2, 1)))
    records = concerto_tf.convert(cells, folder / "records", drop_empty=True, overwrite=True)

    def support(trial: optuna.Trial) -> float:
        model = concerto_tf.train(
            records,
            folder / f"trial-{trial.number}",
            epochs=30,
            learning_rate=trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            options={"temperature": trial.suggest_float("temperature", 0.1, 1.0)},
            validation_share=0.1,
            patience=3,
        )
        found = AnnData(obsm={"X_concerto": embed_records(model, records)})
        concerto_tf.cluster(found)
        describe(found, "concerto_cluster", records)
        return float(found.obs[SUPPORT].mean())

    study = optuna.create_study(
        study_name="concerto",
        storage=f"sqlite:///{folder}/study.db",
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
    )
    if not study.trials:
        study.enqueue_trial({"learning_rate": 1e-4, "temperature": 0.5})
    study.optimize(support, n_trials=trials)
    print("trials:", len(study.trials))
    print(f"default: {study.trials[0].value:.3f}")
    print(f"best: {study.best_value:.3f}", study.best_params)


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    main(Path(folder).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 10)
