"""Scores of methods on cells, kept as they come, and their means."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concerto_tf import _files
from concerto_tf._identity import identity_of_records, json_checksum
from concerto_tf._version import __version__
from concerto_tf.records import Records
from protocols.data_sets import Score
from protocols.embeddings import Variant, embed_by
from protocols.lines import Lines
from protocols.report import plain

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger("concerto_tf")


class Scores:
    """Scores of methods, each written down as it comes, so that a stop loses none.

    Args:
        out: Folder of the protocol; ``scores.jsonl`` in it holds one JSON object a line.
        protocol: Its name.
        **about: Whatever else changes what a score means.
    """

    def __init__(self, out: Path, protocol: str, **about: Any) -> None:
        self._kept = Lines(out / "scores.jsonl", lambda row: json_checksum(row["asked"]))
        self._models = out / "models"
        self._about = {"protocol": protocol, "version": __version__, **about}
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        chosen: Iterable[Variant],
        records: Records,
        seed: int,
        score: Score,
        *,
        training: Mapping[str, Any] | None = None,
        keep_models: bool = True,
        **columns: Any,
    ) -> None:
        """Embeds cells by each method and scores it, or takes the score that is kept.

        Args:
            chosen: The methods.
            records: The cells.
            seed: Seed of the methods.
            score: Of an embedding; a function of what `columns` say, the records and the seed.
            training: Arguments of `train` for all methods.
            keep_models: Whether a model stays once its scores are written.
            **columns: What the rows are named by, ahead of ``method`` and ``seed``.
        """
        for variant in chosen:
            asked = plain(
                {
                    **self._about,
                    **columns,
                    "method": variant.method,
                    "seed": seed,
                    "training": variant.asked(training or {}),
                    "records": identity_of_records(records),
                    "configuration": variant.configuration(),
                }
            )
            if json_checksum(asked) not in self._kept:
                parts = (*columns.values(), variant.name, f"seed{seed}")
                model = self._models / "-".join(re.sub(r"[^\w.]+", "_", str(p)) for p in parts)
                began = time.perf_counter()
                z = embed_by(variant, records, seed, model, training)
                seconds = round(time.perf_counter() - began, 2)
                scores = plain({**score(z), "seconds": seconds})
                self._kept.add({"asked": asked, "scores": scores})
                if not keep_models:
                    _files.remove(model)
            scores = self._kept[json_checksum(asked)]["scores"]
            self.rows.append({**columns, "method": variant.name, "seed": seed, **scores})
            _log.info("%s", ", ".join(f"{k} {v}" for k, v in self.rows[-1].items()))

    def table(self) -> pd.DataFrame:
        """One row per embedding, in the order they were asked for."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def summary(table: pd.DataFrame, by: Sequence[str], over: Sequence[str] = ("seed",)) -> dict:
    """Mean and standard deviation of each score, nested by columns.

    Args:
        table: One row per measurement.
        by: The columns to nest by, outermost first.
        over: The columns that only count the measurements.

    Returns:
        ``{value of the first column: {...: {score: {"mean": ..., "standard_deviation": ...}}}}``.

    Example:

    >>> import pandas as pd
    >>> table = pd.DataFrame({"method": ["pca", "pca"], "seed": [0, 1], "ari": [0.4, 0.6]})
    >>> summary(table, ["method"])["pca"]["ari"]["mean"]
    0.5
    """
    scores = table.drop(columns=[*by, *over]).select_dtypes("number").columns
    nested: dict[Any, Any] = {}
    for keys, own in table.groupby(list(by), sort=False):
        at = nested
        for key in keys[:-1]:
            at = at.setdefault(str(key), {})
        at[str(keys[-1])] = {
            name: {"mean": own[name].mean(), "standard_deviation": own[name].std(ddof=0)}
            for name in scores
            if own[name].notna().any()
        }
    return plain(nested)
