"""Defaults against each other and against peers: data sets by configurations by seeds.

What is scored here; `quality_cells` has the data sets, `quality_report` what is made of the scores.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from concerto_tf._identity import json_checksum
from concerto_tf.errors import InputError
from concerto_tf.metrics import embedding_scores
from concerto_tf.models import METHODS
from concerto_tf.models.asked import check_options
from concerto_tf.records import convert
from protocols.baselines import check_installed
from protocols.clustering_scores import leiden_f1
from protocols.embeddings import BASELINES, Variant, check_training, embed_by
from protocols.lines import Lines
from protocols.quality_cells import LABEL, SOURCE, DataSet
from protocols.report import plain

_log = logging.getLogger("concerto_tf")
#: What a configuration may set of `train`; all else is an option of the model.
TRAINING = ("genes", "ensemble", "epochs", "batch_size", "learning_rate", "optimizer")
#: Set by the protocol itself.
_OWN = ("seed", "method", "preset", "options", "modalities", "start", "strategy")
#: What tells rows of the results file apart.
_KEY = ("data", "configuration", "hash", "seed")
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Trial:
    """One score that is asked for: a configuration on a data set with a seed."""

    data: DataSet
    variant: Variant
    seed: int

    def key(self) -> Key:
        """What tells its row in the results file; changed defaults make another."""
        asked = [self.variant.configuration(), dict(self.data.settings)]
        return self.data.name, self.variant.name, json_checksum(asked)[:8], self.seed

    def command(self) -> str:
        """The call of tools/quality that computes this alone."""
        data, keys = self.data, self.data.settings
        parts = ["tools/quality", data.path.name if data.path else data.name]
        parts += ["--configurations", self.variant.name, "--seed", str(self.seed)]
        for option, default in (("label_key", "cell_type"), ("source_key", "batch")):
            if keys.get(option) not in (None, default):
                parts += [f"--{option.replace('_', '-')}", str(keys[option])]
        return shlex.join(parts)


def configured(text: str) -> Variant:
    """A configuration as it is written: ``METHOD[:PRESET][,option=value ...]``.

    Args:
        text: ``pca``, ``harmony``, ``scvi`` or a method of `train`. Options of `TRAINING` go to
            `train`, all others to the model; values are read as JSON where they are. Peers take
            ``genes`` alone.

    Returns:
        The configuration. Its name has the options in the order of the alphabet, so that one
        configuration has one name.

    Raises:
        InputError: There is no such method, preset or option, or a value does not suit it.

    Example:

    >>> made = configured("concerto:paper,epochs=2,dropout=0.3")
    >>> made.name, made.method
    ('concerto:paper,dropout=0.3,epochs=2', 'concerto')
    >>> made.training
    {'preset': 'paper', 'epochs': 2, 'options': {'dropout': 0.3}}
    """
    head, *parts = re.split(r",(?=[A-Za-z_]\w*=)", text)
    method, colon, preset = head.partition(":")
    if method not in METHODS and method not in BASELINES:
        raise InputError(
            f"configuration {text!r}: there is no method {method!r}; choose one of "
            f"{', '.join((*METHODS, *BASELINES))}, with options behind it as in concerto,epochs=2"
        )
    given: dict[str, Any] = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name in given or name in _OWN:
            why = "is given twice" if name in given else "is not set in this way"
            raise InputError(f"configuration {text!r}: {name} {why}; leave it out")
        given[name] = _read(value)
    own = {name: given[name] for name in TRAINING if name in given}
    options = {name: value for name, value in given.items() if name not in TRAINING}
    training = {**({"preset": preset} if colon else {}), **own}
    made = Variant(
        ",".join([head, *(f"{name}={_write(given[name])}" for name in sorted(given))]),
        method,
        training | ({"options": options} if options else {}),
    )
    try:
        _check(made, options)
    except (TypeError, ValueError) as error:  # Keras says so of an option that is not there
        raise InputError(f"configuration {text!r}: {error}") from error
    return made


def _read(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check(made: Variant, options: dict[str, Any]) -> None:
    if made.method in BASELINES:
        strange = [name for name in made.training if name != "genes"]
        if strange:
            raise InputError(f"{made.method} takes no {', '.join(strange)}; leave it out")
        if not re.fullmatch(r"all|hvg:\d+", str(made.training.get("genes", "all"))):
            raise InputError("genes is neither all nor hvg:N")
        check_installed([made.method])
        return
    check_training({}, chosen=[made])
    check_options(made.method, made.training.get("preset"), options)


def planned(
    sets: Iterable[DataSet], configurations: Iterable[Variant], seeds: Sequence[int]
) -> Iterator[Trial]:
    """The trials of a call.

    Harmony is run where there are sources. PCA is the same with every seed, and run with seed
    0 alone, unless the cells are drawn anew.
    """
    configurations = list(configurations)
    for data in sets:
        for seed in seeds:
            for variant in configurations:
                once = variant.method == "pca" and data.rare is None
                without = variant.method == "harmony" and not data.has_sources
                if not without and (seed == seeds[0] or not once):
                    yield Trial(data, variant, 0 if once else seed)


def kept(results: Path) -> Lines:
    """Rows of a results file by the key of their trial; those of other formats are passed over.

    Args:
        results: JSON lines; nothing is kept where there is no file.
    """
    return Lines(results, lambda row: tuple(row[name] for name in _KEY))


def run(trials: Iterable[Trial], results: Path) -> dict[Key, dict[str, Any]]:
    """Computes the trials that a results file lacks, and adds each to it as it comes.

    Args:
        trials: What is asked for.
        results: JSON lines; made where there is none. The same call after a stop goes on.

    Returns:
        All rows of the file by the key of their trial.

    Raises:
        InputError: Cells are unsuitable; what was computed before stays.
    """
    done = kept(results)
    missing = [trial for trial in trials if trial.key() not in done]
    number = 0
    # One conversion serves all that look at the same cells.
    for (data, draw), of_cells in groupby(missing, key=_drawn):
        cells = data.cells(draw)
        with tempfile.TemporaryDirectory(prefix="concerto-") as name:
            folder = Path(name)
            source_key = SOURCE if data.has_sources else None
            records = convert(cells, folder / "records", source_key=source_key)
            for trial in of_cells:
                number += 1
                began = time.perf_counter()
                z = embed_by(trial.variant, records, trial.seed, folder / f"model{number}")
                seconds = time.perf_counter() - began
                row = plain(
                    {
                        **dict(zip(_KEY, trial.key(), strict=True)),
                        "cells": len(z),
                        "seconds": round(seconds, 1),
                        **{
                            key: round(float(v), 4) for key, v in scores(z, data, cells.obs).items()
                        },
                        "command": trial.command(),
                    }
                )
                done.add(row)
                _log.info("%d of %d: %s", number, len(missing), json.dumps(row))
    return done


def _drawn(trial: Trial) -> tuple[DataSet, int]:
    return trial.data, trial.seed if trial.data.rare else 0


def scores(z: np.ndarray, data: DataSet, obs: Any) -> dict[str, float]:
    """All scores of an embedding, always with seed 0, as a measure that all share.

    Args:
        z: Embedding [n, d].
        data: What it is of.
        obs: Table [n] with the columns of `DataSet.cells`.
    """
    labels = obs[LABEL].to_numpy()
    sources = obs[SOURCE].to_numpy() if data.has_sources else None
    found = embedding_scores(z, labels, sources)
    if sources is not None:
        found |= scib(z, labels, sources)
    if data.rare:
        found["rare_f1"] = leiden_f1(z, labels, data.rare)
    return found


def scib(z: np.ndarray, labels: np.ndarray, sources: np.ndarray) -> dict[str, float]:
    """A part of scIB's total by scib-metrics: without isolated labels and PCR.

    Bio-conservation and batch correction without these, and 0.6 and 0.4 of them together.

    Args:
        z: Embedding [n, d].
        labels: Names [n].
        sources: Names [n].

    Returns:
        ``scib_bio``, ``scib_batch`` and ``scib_total``; nothing, said in the log, where
        scib-metrics is not installed or fails.

    Reference:
        Luecken et al., Nature Methods 19:41 (2022).
    """
    import warnings

    import pandas as pd
    from anndata import AnnData

    names = {"bio": "Bio conservation", "batch": "Batch correction", "total": "Total"}
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        try:
            from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation
        except ImportError:
            _log.warning("scib-metrics is not installed: no scIB scores; pip install scib-metrics")
            return {}
        obs = pd.DataFrame({"label": labels.astype(str), "batch": sources.astype(str)})
        cells = AnnData(np.zeros((len(z), 50), np.float32), obs.astype("category"))
        cells.obsm["Z"], cells.obsm["X_pre"] = z, z[:, :50]
        try:
            benchmark = Benchmarker(
                cells,
                "batch",
                "label",
                ["Z"],
                n_jobs=2,
                pre_integrated_embedding_obsm_key="X_pre",
                bio_conservation_metrics=BioConservation(isolated_labels=False),
                batch_correction_metrics=BatchCorrection(pcr_comparison=False),
                progress_bar=False,
            )
            benchmark.benchmark()
            found = benchmark.get_results(min_max_scale=False).loc["Z"]
        except Exception as error:  # a package of others must not lose the rest
            _log.warning("scib-metrics failed: no scIB scores (%r)", error)
            return {}
    return {f"scib_{to}": float(found[name]) for to, name in names.items()}
