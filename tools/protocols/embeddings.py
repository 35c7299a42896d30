"""Methods as protocols run them, and the embeddings that they make."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.models import METHODS
from concerto_tf.models.asked import model_of_two_genes
from concerto_tf.models.presets import DEFAULT
from concerto_tf.records import Records
from concerto_tf.tasks.embed import embed_records
from concerto_tf.tasks.train import train
from concerto_tf.tasks.training.arguments import check_arguments
from protocols.baselines import (
    cells_of,
    check_installed,
    expressed,
    harmony,
    log_normalized,
    pca,
    scvi,
)

#: What protocols hold against each other by default.
COMPARED = ("concerto", "clear", "contrastive-sc", "cicl", "pca")
#: Methods of others, that take none of the arguments of `train` but ``genes``.
BASELINES = ("harmony", "pca", "scvi")

#: Raised when the same arguments make something else: other initial weights, another training.
_DEFAULTS = 8


@cache
def configuration(method: str, preset: str | None = None) -> str:
    """What tells the defaults (or a preset) of a method apart from those of other versions.

    Args:
        method: One of those of `train`; of others there is nothing to tell.
        preset: One of its presets.

    Returns:
        Eight hexadecimal digits, or nothing.

    Example:

    >>> configuration("clear") == configuration("clear", "paper")
    False
    """
    if method not in METHODS:
        return ""
    chosen = METHODS[method].presets[preset or DEFAULT]
    config = model_of_two_genes(method, preset).get_config()
    whole = [__version__, config, dict(chosen.options), asdict(chosen.training), _DEFAULTS]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Variant:
    """A method as it is to be run.

    Args:
        name: What it is called in tables.
        method: One of those of `train`, or of `BASELINES`.
        training: Arguments of `train` that are its own; of the baselines only ``genes`` counts.
    """

    name: str
    method: str
    training: Mapping[str, Any] = field(default_factory=dict)

    def configuration(self) -> str:
        """What tells its defaults apart from those of other versions; empty for baselines."""
        return configuration(self.method, self.training.get("preset"))

    def asked(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of its training, given those that it shares with others."""
        own = {**training, **self.training} if self.method in METHODS else dict(self.training)
        both = {**(training.get("options") or {}), **(self.training.get("options") or {})}
        return {**own, "options": both} if both and self.method in METHODS else own


def variants(methods: Sequence[str], presets: Sequence[str] = ()) -> list[Variant]:
    """Each method by default, and with each preset that it has.

    Args:
        methods: Names of methods.
        presets: Names of presets, to be run beside the defaults.

    Raises:
        InputError: No method is given, there is none of that name, or none has such a preset.
    """
    known = (*METHODS, *BASELINES)
    methods = list(dict.fromkeys(methods))
    unknown = [method for method in methods if method not in known]
    if unknown or not methods:
        what = f"there is no method {unknown[0]!r}" if unknown else "no method is given"
        raise InputError(f"{what}; choose some of {', '.join(known)}")
    having = {m: {*METHODS[m].presets} - {DEFAULT} if m in METHODS else set() for m in methods}
    for preset in presets:
        if not any(preset in of for of in having.values()):
            there = sorted({name for of in having.values() for name in of}) or ["none"]
            raise InputError(
                f"no method of {', '.join(methods)} has a preset {preset!r} (there are: "
                f"{', '.join(there)}); name one of these, or leave presets out"
            )
    check_installed(methods)  # before there is any work to lose
    return [
        Variant(*made)
        for method in methods
        for made in (
            (method, method),
            *((f"{method} ({p})", method, {"preset": p}) for p in presets if p in having[method]),
        )
    ]


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises InputError unless there are seeds, each a whole number from 0 on, given once."""
    if not seeds:
        raise InputError("no seed is given; name at least one")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise InputError(f"seed {seed!r} is not a whole number from 0 on; name another")
    if len(set(seeds)) < len(seeds):
        raise InputError("a seed is given twice, which would feign a spread; name each once")


def check_numbers(least: float = -math.inf, whole: bool = False, **given: Any) -> None:
    """Raises InputError unless all values are numbers.

    Args:
        least: What each must be at least.
        whole: Whether they must be whole.
        **given: A number or several, by the name of the argument.
    """
    for name, values in given.items():
        for value in values if isinstance(values, Sequence | set) else [values]:
            good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if isinstance(values, str) or not good or not least <= value < math.inf:
                kind = "a whole number" if whole else "a number"
                at_least = f" from {least:g} on" if least > -math.inf else ""
                raise InputError(f"{name.replace('_', ' ')}: {value!r} is not {kind}{at_least}")


def check_training(
    given: Mapping[str, Any] | None,
    *own: str,
    chosen: Sequence[Variant] = (),
    of: Callable[..., Any] = train,
) -> None:
    """Raises InputError unless a protocol can pass further arguments on to training.

    Args:
        given: The further arguments.
        *own: Arguments that the protocol sets itself.
        chosen: The methods that the arguments are for, whose names and seeds the protocol sets.
        of: `train` or `finetune`.
    """
    given = given or {}
    own = (*own, "seed", *(("method",) if chosen else ()))
    known = [
        name
        for name, argument in inspect.signature(of).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY and name not in own
    ]
    strange = [name for name in given if name not in known]
    if strange:
        why = "is set by the protocol itself" if strange[0] in own else "is no argument of training"
        raise InputError(f"{strange[0]} {why}; choose among {', '.join(known)}")
    if not isinstance(given.get("options") or {}, Mapping):
        what = given["options"]
        raise InputError(f"options is {what!r}; give values by name, as {{'units': 64}}")
    trained = [variant for variant in chosen if variant.method in METHODS]
    for asked in [{"method": v.method, **v.asked(given)} for v in trained] or [given]:
        check_arguments(**asked)


def checked_variants(
    training: Mapping[str, Any],
    seeds: Sequence[int],
    methods: Sequence[str],
    presets: Sequence[str] = (),
) -> list[Variant]:
    """The methods of a protocol, once its seeds and the arguments of `train` are found suitable."""
    chosen = variants(methods, presets)
    check_seeds(seeds)
    check_training(training, chosen=chosen)
    return chosen


def embed_by(
    variant: Variant,
    records: Records,
    seed: int,
    model: Path,
    training: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The embedding of all cells of records by a method.

    Args:
        variant: The method. Those of others look at 2,000 highly variable genes unless its own
            arguments say otherwise, of the genes that three cells show.
        records: Finished records.
        seed: Seed of the method.
        model: Folder of the model; a finished one is not trained again.
        training: Arguments of `train` for all methods.

    Returns:
        The embedding [n, d], float32, in the order of the input.
    """
    asked = variant.asked(training or {})
    if variant.method in METHODS:
        made = train(records, model, method=variant.method, seed=seed, **asked)
        return embed_records(made, records)
    cells = expressed(cells_of(records))
    kind, _, number = str(asked.get("genes", "hvg:2000")).partition(":")
    n_genes = int(number) if kind == "hvg" else cells.n_vars
    if variant.method == "scvi":
        if records.units != "counts":
            raise InputError(f"{records.path}: scVI needs counts; leave scvi out of the methods")
        source_key = "source" if len(records.sources) > 1 else None
        return scvi(cells, source_key, seed, n_genes=n_genes)
    z = pca(log_normalized(cells, records.scales_with_depth), seed, n_genes=n_genes)
    return harmony(z, cells.obs["source"], seed) if variant.method == "harmony" else z
