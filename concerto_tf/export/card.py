"""The model card of an export: what someone who serves the model needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from concerto_tf.export.answer import Answer
from concerto_tf.models.card import model_card
from concerto_tf.models.encoder import looks_at


def card(answer: Answer, training: Mapping[str, Any] | None = None) -> str:
    """The text of MODEL_CARD.md.

    Args:
        answer: What is exported.
        training: What ``training.json`` beside the model says.
    """
    rows: list[tuple[str, Any]] = []
    if answer.classes:
        rows.append(("unknown below a novelty p-value of", answer.alpha))
    for key, (n_cells, n_labels) in answer.labels.items():
        rows += [
            (f"reference for {key}", f"{n_cells} cells of {n_labels} labels; {answer.k} vote"),
            (f"{key} unknown below a novelty p-value of", answer.alpha_of_reference),
        ]
    return model_card(answer.model, training, rows=rows, usage=_usage(answer))


def _usage(answer: Answer) -> str:
    encoder = answer.encoder
    told = 'answer["embedding"], answer["unknown_genes"]'
    if answer.classes or len(answer.labels) == 1:
        told = 'answer["label"], answer["confidence"], ' + told
    several = ""
    if len(looks_at(encoder)) > 1:
        several = ", `by_modality` (as `by_source`,\nwith further modalities)"
    return f"""TensorFlow alone is needed.

```python
import tensorflow as tf

model = tf.saved_model.load("FOLDER")
answer = model.signatures["serving_default"](
    genes=tf.constant([["{encoder.modality_inputs[0].vocabulary[0]}", ""]]),
    values=tf.constant([[3.0, 0.0]]),
)
{told}
```

Signatures: `serving_default` (genes by name, padded with ""), `by_index` (genes by their position
in the vocabulary), `by_source` (genes by name, and the name of each cell's source){several}."""
