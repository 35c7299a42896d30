"""Options that several commands share, as arguments of the Python calls."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from concerto_tf._paths import as_path
from concerto_tf.errors import InputError


def imports(options: argparse.Namespace) -> None:
    """Imports the modules that a command is told to, which register methods and layers of others.

    One in the present folder is found, as Python itself would, after those that are installed.
    """
    import sys
    from importlib import import_module

    names = getattr(options, "import", None) or ()
    if names and "" not in sys.path:
        sys.path.append("")
    for name in names:
        try:
            import_module(name)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"module {name} cannot be imported ({type(error).__name__}: {str(error)[:200]}); "
                "install what it needs, or run where it lies",
                "import",
            ) from error


def expected(options: argparse.Namespace) -> None:
    """Reads the model of a command, where one is expected, before anything is done with it."""
    if getattr(options, "expect", None) is None:
        return
    names = ("model", "start", "like", "path")
    given = next((path for name in names if (path := getattr(options, name, None))), None)
    if given is None or (as_path(given) / "manifest.json").exists():
        raise InputError("a fingerprint is expected, but no model is named; name one", "expect")
    from concerto_tf.models.fingerprint import load_expected
    from concerto_tf.models.saving import of_run

    # What serves takes the folder of a run, too.
    load_expected(of_run(given) if options.command == "serve" else given, options.expect)


def same(options: argparse.Namespace, names: str) -> dict[str, Any]:
    """Arguments that a Python call has under the names of the options."""
    return {name: getattr(options, name) for name in names.split()}


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `train` that were given."""
    names = "method preset ensemble epochs batch_size learning_rate optimizer strategy"
    names += " validation_share patience"
    given = {name: getattr(options, name, None) for name in names.split()}
    own = getattr(options, "options", None)
    if own:
        twice = [name for name, count in Counter(name for name, _ in own).items() if count > 1]
        if twice:
            raise InputError(f"option {twice[0]} is given twice; give it once", "options")
        given["options"] = dict(own)
    return {name: value for name, value in given.items() if value is not None}


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the tasks that read cells with the genes of a model."""
    same_names = same(options, "source_key layer drop_empty orthologs")
    return {**same_names, "modalities": places(options) or None}


def skip_damaged(options: argparse.Namespace, *names: str) -> dict[str, int]:
    """Opens the records among some arguments without their damaged cells, where that is asked for.

    Returns:
        How many cells are lost by it, to be told.
    """
    if not options.skip_damaged:
        return {}
    from concerto_tf.records import Records
    from concerto_tf.records.cell_set import is_records

    lost = 0
    for name in names:
        given = getattr(options, name)
        if is_records(given):
            records = Records(given, skip_damaged=True)
            setattr(options, name, records)
            lost += sum(records.lost.values())
    return {"cells_lost": lost}


def places(options: argparse.Namespace) -> dict[str, str]:
    """Further modalities and where they lie."""
    return dict(options.modality or [])


def names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def labelled(labels: Any, output: str) -> dict[str, Any]:
    """How many cells have which label."""
    found: dict[str, Any] = {"cells": len(labels)}
    if "label" in labels:
        counts = labels["label"].value_counts()
        found["labels"] = {str(name): int(n) for name, n in counts.items()}
        found["unknown"] = int(counts.get("unknown", 0))
        found["sets"] = labels.attrs["sets"]
        if "expected" in labels.attrs:
            found["expected"] = labels.attrs["expected"]
    if "label_coarse" in labels:
        counts = labels["label_coarse"].value_counts()
        found["labels_coarse"] = {str(name): int(n) for name, n in counts.items()}
    if "vote" in labels:
        found["votes"] = {str(name): int(n) for name, n in labels["vote"].value_counts().items()}
    found["output"] = str(output)
    return found | ({"report": labels.attrs["page"]} if "page" in labels.attrs else {})


def rows(labels: Any) -> dict[str, Any]:
    """Tables about groups of cells, which are too long to be printed."""
    return {"vote": labels.attrs["vote"]} if "vote" in labels.attrs else {}


def like(path: str | None) -> Any:
    """Vocabulary of records or of a model."""
    if path is None or (as_path(path) / "manifest.json").exists():
        return path
    if as_path(path).suffix == ".keras" or (as_path(path) / "model.keras").exists():
        from concerto_tf.tasks.embed import encoder_of
        from concerto_tf.tasks.io.agreement import vocabularies_of

        return vocabularies_of(encoder_of(path))
    return path
