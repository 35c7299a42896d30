"""The model card, as the Hugging Face hub reads it: a metadata block, then what to know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from concerto_tf._version import __version__
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.encoder import Encoder, looks_at
from concerto_tf.models.fingerprint import fingerprint

FILE_NAME = "MODEL_CARD.md"
_SHOWN = 20


def model_card(
    model: Encoder | Classifier,
    training: Mapping[str, Any] | None = None,
    *,
    rows: Sequence[tuple[str, Any]] = (),
    usage: str | None = None,
) -> str:
    """The text of MODEL_CARD.md.

    Args:
        model: The model.
        training: What ``training.json`` beside it says; None where it is not known.
        rows: Further facts, name and value, for the first table.
        usage: How to use it, as Markdown; by default by this package.

    Example:

    >>> from concerto_tf.models import Concerto
    >>> from concerto_tf.models.card import model_card
    >>> model_card(Concerto(["CD3E", "MS4A1"])).splitlines()[:3]
    ['---', 'library_name: concerto_tf', 'license: unknown']
    """
    told = training or {}
    encoder = model.encoder if isinstance(model, Classifier) else model
    parts = [
        _metadata(model, told),
        "# A cell embedding model" + (" that tells cell types" if _classes(model) else ""),
        _table([*_facts(model, encoder), *rows]),
        "## Intended use\n\n" + _uses(model, encoder),
        "## Limits\n\n" + _LIMITS,
        "## Training data\n\n" + _data(told),
        "## Training\n\n" + _training(told),
        "## Metrics\n\n" + _metrics(told),
        "## How to use\n\n" + (usage or _USAGE),
        "## Licence\n\n" + _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


_LIMITS = """\
- Cells of a species, tissue or technology that the training data lacks may lie anywhere; compare
  with a reference before a conclusion rests on it.
- Genes are matched by name. `unknown_genes`, or the log of `embed`, says how many do not match.
- Distances are for comparing cells with cells; a number in an embedding means nothing by itself.
- For research. Not for diagnosis or treatment."""
_USAGE = """\
```python
import concerto_tf

concerto_tf.embed("FOLDER", "cells.h5ad", "embedded.h5ad")
```"""
_LICENCE = """\
The weights say nothing of their licence: that is for whoever trained them, and for the licences of
the training data. Set `license` above before you publish them. concerto_tf itself is Apache-2.0."""


def _metadata(model: Encoder | Classifier, told: Mapping[str, Any]) -> str:
    """The block of YAML that the hub reads."""
    tags = ["biology", "single-cell", "RNA-seq", "contrastive-learning", "tensorflow", "keras"]
    task = "feature-extraction" if not _classes(model) else "tabular-classification"
    lines = ["library_name: concerto_tf", "license: unknown", f"pipeline_tag: {task}", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    found = _scores(told)
    if found:
        data = ", ".join(item["name"] for item in told.get("data", {}).get("inputs", ()))
        lines += ["metrics:", *(f"- {name}" for name in found), "model-index:"]
        lines += ["- name: concerto", "  results:", "  - task:", f"      type: {task}"]
        lines += ["    dataset:", f"      name: {json.dumps(data or 'labelled cells')}"]
        lines += ["      type: held-out cells of the training data", "    metrics:"]
        for name, value in found.items():
            lines += [f"    - type: {name}", f"      value: {value}"]
    return "\n".join(["---", *lines, "---"])


def _facts(model: Encoder | Classifier, encoder: Encoder) -> list[tuple[str, Any]]:
    first = encoder.modality_inputs[0]
    if first.target_sum is None:
        units = "values normalized as those it was trained on"
    else:
        units = f"raw counts (scaled to {first.target_sum:g} per cell and log1p inside)"
    facts: list[tuple[str, Any]] = [
        ("method", type(encoder).__name__),
        ("fingerprint", fingerprint(model)),
        ("written by", f"concerto_tf {__version__}"),
        ("input", units),
        ("modalities", ", ".join(looks_at(encoder))),
        ("genes known", len(first.vocabulary)),
        ("genes used", first.n_inputs),
        ("sources", listed(encoder.sources)),
        ("embedding", f"{encoder.embedding_dim} dimensions, float32"),
    ]
    if isinstance(model, Classifier):
        facts += [
            ("labels", listed(model.classes)),
            ("held-out cells behind the confidence", len(model.calibration)),
        ]
    return facts


def _uses(model: Encoder | Classifier, encoder: Encoder) -> str:
    uses = "Embeddings of single cells: for clusters, maps and comparison with reference cells."
    if _classes(model):
        uses += f" Labels of cells ({listed(_classes(model))}), `unknown` where they are unlike."
    if len(looks_at(encoder)) > 1:
        uses += f" Cells are measured in {', '.join(looks_at(encoder))}; a modality may be missing."
    return uses


def _data(told: Mapping[str, Any]) -> str:
    data = told.get("data")
    if not data:
        return "Not noted with this model."
    rows: list[tuple[str, Any]] = [
        *((item["name"], f"{item['n_cells']} cells") for item in data["inputs"]),
        ("cells", data["cells"]),
        ("genes", data["genes"]),
        ("units", data["units"]),
        ("sources", listed([f"{name} ({n})" for name, n in data["sources"].items()])),
        ("sha256 of the records' checksums", f"`{data['sha256']}`"),
    ]
    return _table(rows)


def _training(told: Mapping[str, Any]) -> str:
    asked = {k: v for k, v in (told.get("asked") or {}).items() if v not in (None, {}, [])}
    shown = ("epochs", "steps", "batch_size", "seconds", "fingerprint")
    done = {name: told[name] for name in shown[:-1] if name in told}
    if not asked and not done:
        return "Not noted with this model."
    options = [(name, f"`{json.dumps(value)[:200]}`") for name, value in asked.items()]
    return _table([*options, *((f"{name} done", value) for name, value in done.items())])


def _scores(told: Mapping[str, Any]) -> dict[str, float]:
    held = told.get("calibration") or {}
    named = {"accuracy": held.get("accuracy"), "f1": held.get("macro_f1")}
    return {name: value for name, value in named.items() if value is not None}


def _metrics(told: Mapping[str, Any]) -> str:
    held = told.get("calibration") or {}
    if not _scores(told):
        return (
            "None with the model, which was trained without labels. `metrics.json` of its run, or "
            "`concerto evaluate`, tells those of its cells."
        )
    names = {
        "cells": "held-out cells",
        "accuracy": "accuracy on these",
        "macro_f1": "macro F1 on these",
        "rejected": f"share of known cells that is rejected at alpha {held.get('alpha')}",
    }
    told_rows = [(text, held[name]) for name, text in names.items() if name in held]
    return "As delivered, on cells held out of the training.\n\n" + _table(told_rows)


def _classes(model: Encoder | Classifier) -> tuple[str, ...]:
    return model.classes if isinstance(model, Classifier) else ()


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    cells = [(str(name), str(value).replace("|", "\\|")) for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])


def listed(names: Sequence[str]) -> str:
    """Names one after the other, the first twenty of them."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
