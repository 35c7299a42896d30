"""The model card: what someone who serves the model needs to know."""

from __future__ import annotations

from typing import Any

from concerto_tf._version import __version__
from concerto_tf.export.answer import Answer
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.encoder import looks_at
from concerto_tf.models.fingerprint import fingerprint

_SHOWN = 20


def card(answer: Answer) -> str:
    """The text of MODEL_CARD.md."""
    model = answer.encoder
    first = model.modality_inputs[0]
    if first.target_sum is None:
        units = "values normalized as those it was trained on"
    else:
        units = f"raw counts (scaled to {first.target_sum:g} per cell and log1p inside)"
    rows: list[tuple[str, Any]] = [
        ("method", type(model).__name__),
        ("fingerprint", fingerprint(answer.model)),
        ("written by", f"concerto_tf {__version__}"),
        ("input", units),
        ("modalities", ", ".join(looks_at(model))),
        ("genes known", len(first.vocabulary)),
        ("genes used", first.n_inputs),
        ("sources", _listed(model.sources)),
        ("embedding", f"{model.embedding_dim} dimensions, float32"),
    ]
    if isinstance(answer.model, Classifier):
        rows += [
            ("labels", _listed(answer.classes)),
            ("held-out cells behind the confidence", len(answer.model.calibration)),
            ("unknown below a novelty p-value of", answer.alpha),
        ]
    for key, (n_cells, n_labels) in answer.labels.items():
        rows += [
            (f"reference for {key}", f"{n_cells} cells of {n_labels} labels; {answer.k} vote"),
            (f"{key} unknown below a novelty p-value of", answer.alpha_of_reference),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    told = 'answer["embedding"], answer["unknown_genes"]'
    labelled = bool(answer.classes or len(answer.labels) == 1)
    if labelled:
        told = 'answer["label"], answer["confidence"], ' + told
    several = ""
    if len(looks_at(model)) > 1:
        several = ", `by_modality` (as `by_source`,\nwith further modalities)"
    return f"""# A cell embedding model

| | |
|---|---|
{table}

```python
import tensorflow as tf

model = tf.saved_model.load("FOLDER")
answer = model.signatures["serving_default"](
    genes=tf.constant([["{first.vocabulary[0]}", ""]]), values=tf.constant([[3.0, 0.0]])
)
{told}
```

Signatures: `serving_default` (genes by name, padded with ""), `by_index` (genes by their position
in the vocabulary), `by_source` (genes by name, and the name of each cell's source){several}.
"""


def _listed(names: Any) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
