"""Presets hold what `docs/presets.md` says is printed, value by value."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from concerto_tf.cli.parsing import option
from concerto_tf.models.asked import model_of_two_genes
from concerto_tf.models.methods import METHODS
from concerto_tf.models.presets import DEFAULT, Training

PAGE = Path(__file__).parents[2] / "docs" / "presets.md"
PRESETS = [(m, p) for m, cls in METHODS.items() for p in cls.presets if p != DEFAULT]
#: Fields of `Training` that say how a default is found, and nothing that is printed.
UNPRINTED = {"most_epochs", "settling_steps"}


def tables() -> dict[tuple[str, str], dict[str, Any]]:
    """Name and value of each row of the page, by method and preset."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.M)[1:]:
        head, _, text = part.partition("\n")
        method, colon, preset = head.partition(": ")
        if not colon:
            continue
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", text, flags=re.M)
        assert all(source.strip() for _, _, source in rows), head
        own = dict(option(f"{name}={value.strip()}") for name, value, _ in rows)
        assert len(own) == len(rows), f"{head} says something twice"
        of = found[method, "paper"] if "As `paper`, but" in text else {}
        found[method, preset] = {**of, **own}
    return found


def held(method: str, preset: str) -> dict[str, Any]:
    """What a preset sets that the plain settings do not, and all its options."""
    of = METHODS[method].presets[preset]
    plain = asdict(Training())
    training = {k: v for k, v in asdict(of.training).items() if k not in UNPRINTED}
    return {k: v for k, v in training.items() if v != plain[k]} | dict(of.options)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_a_preset_holds_what_is_printed(method: str, preset: str) -> None:
    printed, of = tables()[method, preset], METHODS[method].presets[preset]
    training = asdict(of.training)
    for name, value in printed.items():
        own = training[name] if name in training else of.options[name]
        assert plain(own) == value, name
    missing = set(held(method, preset)) - set(printed)
    assert not missing, f"no row says where {missing} come from"


def test_every_table_is_of_a_preset() -> None:
    assert set(tables()) == set(PRESETS)


@pytest.mark.parametrize("method", METHODS)
def test_no_preset_doubles_another(method: str) -> None:
    presets = [(of.training, dict(of.options)) for of in METHODS[method].presets.values()]
    assert all(a != b for i, a in enumerate(presets) for b in presets[:i])


def test_what_is_asked_of_two_presets_by_name() -> None:
    """Figures that the papers print, once more by hand: the page could be wrong with the preset."""
    concerto = METHODS["concerto"].presets["paper"].training
    assert (concerto.learning_rate, concerto.batch_size, concerto.epochs) == (1e-4, 32, 3)
    clear = METHODS["clear"].presets["paper"].training
    assert (clear.learning_rate, clear.epochs, clear.cosine) == (1.0, 200, True)
    assert {*METHODS["clear"].presets} >= {"paper", "authors"}
    assert "paper-lr1" not in METHODS["clear"].presets
    simulation = METHODS["contrastive-sc"].presets["simulation"].training
    assert (simulation.genes, simulation.epochs) == ("hvg:500", 500)
    cicl = METHODS["cicl"].presets["paper"]
    assert (cicl.training.learning_rate, cicl.training.batch_size) == (1e-5, 6000)
    assert cicl.options["target_sum"] == "median" and "clusters" not in cicl.options


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_a_model_is_made_with_each(method: str, preset: str) -> None:
    config = model_of_two_genes(method, preset).get_config()
    options = METHODS[method].presets[preset].options
    for name in set(options) - {"target_sum"}:
        assert plain(config[name]) == plain(options[name]), name
