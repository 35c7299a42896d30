"""The answers of a served model about a batch of cells, in plain TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from concerto_tf.models.classifier import Classifier
from concerto_tf.models.encoder import Encoder, Teachable
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.novelty import UNKNOWN
from concerto_tf.records.batch import Batch
from concerto_tf.reference.cells import Reference
from concerto_tf.reference.files import FOLDER, is_reference, load_reference
from concerto_tf.reference.transfer import LabelTransfer
from concerto_tf.tasks.annotate import ALPHA as ALPHA_OF_TYPES
from concerto_tf.tasks.embed import encoder_of
from concerto_tf.tasks.map import ALPHA as ALPHA_OF_REFERENCE
from concerto_tf.tasks.reference import model_folder

_log = logging.getLogger("concerto_tf")


def kept_reference(model: Any) -> Reference | None:
    """The reference that `map` has kept in a model's folder, or None."""
    folder = model_folder(model)
    if folder is None or not is_reference(folder / FOLDER):
        return None
    return load_reference(folder / FOLDER)


class Answer:
    """The answers about cells: embeddings, and labels where the model or its reference has some.

    Args:
        model: A trained model, with types or without.
        reference: Reference cells with labels, or None.
        alpha: Where a label is rejected; None for the defaults of `annotate` and `map`.
        k: Number of reference cells that vote.
    """

    def __init__(
        self, model: Encoder | Classifier, reference: Reference | None, alpha: float | None, k: int
    ) -> None:
        self.model = model
        self.encoder = encoder_of(model)
        if reference is not None and reference.model != fingerprint(self.encoder):
            _log.warning(
                "the reference kept with the model was embedded by other weights and is left out; "
                "run map with its cells again to export its labels"
            )
            reference = None
        self.classes = model.classes if isinstance(model, Classifier) else ()
        self.alpha = ALPHA_OF_TYPES if alpha is None else alpha
        self.alpha_of_reference = ALPHA_OF_REFERENCE if alpha is None else alpha
        self.k = k
        #: What has to be kept beside the model's weights.
        self.kept: list[LabelTransfer] = []
        #: Number of reference cells and of labels by key.
        self.labels: dict[str, tuple[int, int]] = {}
        self._transfers: dict[str, Callable[[tf.Tensor, Batch], dict[str, tf.Tensor]]] = {}
        if reference is not None:
            self._transfers = {key: self._transfer(reference, key) for key in reference.labels}

    def of_batch(self, batch: Batch) -> dict[str, tf.Tensor]:
        """The answers for a batch of cells; see `export`."""
        if not isinstance(self.model, Classifier):
            found = {"embedding": tf.cast(self.model(batch, training=False), tf.float32)}
        else:
            outcome = self.model.outcome(batch)
            found = {
                "embedding": outcome["embedding"],
                **_told(outcome, self.classes, self.model.rejected(outcome["novelty"], self.alpha)),
            }
        for key, transfer in self._transfers.items():
            told = transfer(found["embedding"], batch)
            if len(self._transfers) == 1 and not self.classes:
                found.update(told)
            else:
                found.update((f"{name}_{key}", value) for name, value in told.items())
        return found

    def _transfer(
        self, reference: Reference, key: str
    ) -> Callable[[tf.Tensor, Batch], dict[str, tf.Tensor]]:
        part, names = reference.labelled(key), reference.labels[key].names
        self.labels[key] = (part.n_cells, len(names))
        label = LabelTransfer(part, key, min(self.k, part.n_cells))
        self.kept.append(label)
        # Outside of a graph: what is asked of an encoder may be computed.
        encoder = self.encoder
        reader = encoder if label.listens and isinstance(encoder, Teachable) else None

        def transfer(z: tf.Tensor, batch: Batch) -> dict[str, tf.Tensor]:
            found = label(z, None if reader is None else reader.standardized(batch))
            rejected = found["novelty"] < self.alpha_of_reference
            return _told(found, names, rejected | (found["code"] < 0))

        return transfer


def _told(
    found: dict[str, tf.Tensor], names: Sequence[str], rejected: tf.Tensor
) -> dict[str, tf.Tensor]:
    """What is answered of labels: their codes, probabilities and novelty, and which are unknown."""
    code, probability, novelty = found["code"], found["probability"], found["novelty"]
    label = tf.gather(tf.constant(names), tf.maximum(code, 0))
    predicted = tf.where(code >= 0, label, UNKNOWN)
    return {
        "label": tf.where(rejected, UNKNOWN, predicted),
        "predicted": predicted,
        "rejected": rejected,
        "confidence": tf.sqrt(probability * novelty),
        "probability": probability,
        "novelty": novelty,
    }
