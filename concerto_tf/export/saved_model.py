"""A trained model as a SavedModel: raw counts by gene name in, embeddings and labels out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from concerto_tf._calls import checked
from concerto_tf._files import is_empty
from concerto_tf._lock import new_folder
from concerto_tf._paths import as_path
from concerto_tf.errors import InputError
from concerto_tf.export.answer import Answer, kept_reference
from concerto_tf.export.card import card
from concerto_tf.jobs import read_note
from concerto_tf.models import load_model
from concerto_tf.models.card import FILE_NAME as CARD
from concerto_tf.models.classifier import Classifier
from concerto_tf.models.encoder import Encoder, looks_at
from concerto_tf.models.saving import SUMMARY
from concerto_tf.records.batch import SOURCE, ModalityBatch
from concerto_tf.tasks.io.result import check_target
from concerto_tf.tasks.reference import model_folder

_TEXT = tf.TensorSpec([None, None], tf.string, name="genes")
_INDEX = tf.TensorSpec([None, None], tf.int32, name="genes")
_VALUES = tf.TensorSpec([None, None], tf.float32, name="values")
_SOURCE = tf.TensorSpec([None], tf.string, name="source")


@checked
def export(
    model: Encoder | Classifier | str | Path,
    out: str | Path,
    *,
    alpha: float | None = None,
    k: int = 5,
) -> Path:
    """Writes a SavedModel that holds vocabulary and normalization and needs only TensorFlow.

    Its signatures, each of which returns ``embedding`` float32 [B, d] and ``unknown_genes``
    float32 [B] (share of the cell's genes that the model does not know, and so ignored):

    - ``serving_default``: ``genes`` string [B, K], padded with ""; ``values`` float32 [B, K]
    - ``by_index``: ``genes`` int32 [B, K] as indices of the vocabulary, padding anything with
      value 0; ``values`` float32 [B, K]
    - ``by_source``: as ``serving_default``, and ``source`` string [B]; a source the model does
      not know is normalized by the statistics pooled over all sources
    - ``by_modality``, of a model that looks at several: as ``by_source``, and for each further one
      ``<name>_genes`` string and ``<name>_values`` float32, padded alike

    A fine-tuned model also returns ``label`` string [B] (``unknown`` where rejected),
    ``predicted`` string [B] (the label before that), ``rejected`` bool [B] and ``confidence``,
    ``probability`` and ``novelty`` float32 [B], see `annotate`. A model with a reference beside
    it (`map` keeps one in the model's folder) returns the same of the label that is transferred
    from its cells, which are inside; of several keys each as ``label_<key>`` and so on, too.

    Args:
        model: A trained model, or its path.
        out: Folder to write; must not exist, or be empty.
        alpha: Where a label is rejected; by default as in `annotate` and `map`.
        k: Number of reference cells that vote.

    Returns:
        The folder.

    Raises:
        InputError: The model cannot be loaded, or ``out`` holds something.

    Example:

    >>> import tempfile
    >>> import tensorflow as tf
    >>> from concerto_tf.export import export
    >>> from concerto_tf.models import Concerto
    >>> folder = export(Concerto(["CD3E", "MS4A1"]), tempfile.mkdtemp() + "/served")
    >>> answer = tf.saved_model.load(str(folder)).signatures["serving_default"](
    ...     genes=tf.constant([["CD3E", "NOT1", ""]]), values=tf.constant([[3.0, 1.0, 0.0]])
    ... )
    >>> answer["embedding"].shape.as_list(), answer["unknown_genes"].numpy().tolist()
    ([1, 128], [0.5])
    """
    reference, folder = kept_reference(model), model_folder(model)
    training = None if folder is None else read_note(folder / SUMMARY)
    if isinstance(model, str | Path):
        model = load_model(model)
    out = as_path(out)
    if out.exists() and not (out.is_dir() and is_empty(out)):
        raise InputError(f"{out}: is there already; name another folder, or remove this one")
    if alpha is not None and not 0 <= alpha < 1:
        raise InputError(f"alpha is {alpha}; it must lie between 0 and 1")
    if not out.exists():
        check_target(out)
    answer = Answer(model, reference, alpha, k)
    served = _Served(answer)
    with new_folder(out) as temporary:
        tf.saved_model.save(served, str(temporary), signatures=served.signatures())
        (temporary / CARD).write_text(card(answer, training), "utf-8")
    return out


class _Served(tf.Module):
    """What a SavedModel keeps of a model: its variables, its tables and its functions."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        model = answer.model
        self._outcome = answer.of_batch
        # The plain variables of TensorFlow, so that nothing of Keras is needed to load them.
        self.weights = [getattr(weight, "value", weight) for weight in model.weights]
        if callable(self.weights[0]):  # Keras 2: `value` is a method of the variable itself
            self.weights = list(model.weights)
        self.kept = answer.kept
        encoder = answer.encoder
        self.sources = _table({name: code for code, name in enumerate(encoder.sources)})
        # Where there is one source, all cells are of it.
        self._default_source = 0 if len(encoder.sources) == 1 else -1
        #: Index of each gene of each modality by its name.
        self.genes = {
            one.name: _table(_gene_names(one.vocabulary, one.symbols))
            for one in encoder.modality_inputs
        }
        self._n_genes = len(encoder.modality_inputs[0].vocabulary)
        self._first, *self._further = looks_at(encoder)

    def signatures(self) -> dict[str, Any]:
        """The concrete functions by the names of their signatures."""
        found = {
            "serving_default": self.by_name.get_concrete_function(),
            "by_index": self.by_index.get_concrete_function(),
            "by_source": self.by_source.get_concrete_function(),
        }
        if self._further:
            specs = {"genes": _TEXT, "values": _VALUES, "source": _SOURCE}
            for name in self._further:
                for kind, spec in (("genes", _TEXT), ("values", _VALUES)):
                    key = f"{name}_{kind}"
                    specs[key] = tf.TensorSpec(spec.shape, spec.dtype, name=key)
            self.by_modality = tf.function(self._by_modality)
            found["by_modality"] = self.by_modality.get_concrete_function(**specs)
        return found

    @tf.function(input_signature=[_TEXT, _VALUES])
    def by_name(self, genes: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._answer([self._named(self._first, genes, values)])

    @tf.function(input_signature=[_INDEX, _VALUES])
    def by_index(self, genes: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
        known = (genes >= 0) & (genes < self._n_genes)
        given = tf.not_equal(values, 0)
        return self._answer([_Given(self._first, tf.where(known, genes, -1), values, given)])

    @tf.function(input_signature=[_TEXT, _VALUES, _SOURCE])
    def by_source(
        self, genes: tf.Tensor, values: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return self._answer([self._named(self._first, genes, values)], source)

    def _by_modality(
        self, genes: tf.Tensor, values: tf.Tensor, source: tf.Tensor, **further: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        given = [self._named(self._first, genes, values)]
        for name in self._further:
            given.append(self._named(name, further[f"{name}_genes"], further[f"{name}_values"]))
        return self._answer(given, source)

    def _named(self, modality: str, genes: tf.Tensor, values: tf.Tensor) -> _Given:
        """What is given by the names of genes."""
        index = self.genes[modality].lookup(genes)
        return _Given(modality, index, values, tf.not_equal(genes, ""))

    def _answer(
        self, parts: Sequence[_Given], source: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        first = parts[0]
        if source is None:
            code = tf.fill(tf.shape(first.index)[:1], self._default_source)
        else:
            code = self.sources.lookup(source)
        batch = {SOURCE: code}
        for part in parts:
            known = part.given & (part.index >= 0)
            held = ModalityBatch(tf.where(known, part.index, 0), tf.where(known, part.values, 0.0))
            batch.update(held.entries(part.modality))
        unknown = tf.cast(first.given & (first.index < 0), tf.float32)
        share = tf.math.divide_no_nan(
            tf.reduce_sum(unknown, 1), tf.reduce_sum(tf.cast(first.given, tf.float32), 1)
        )
        return {**self._outcome(batch), "unknown_genes": share}


class _Given(NamedTuple):
    """What is given of a modality.

    Attributes:
        modality: Its name.
        index: Indices int32 [B, K] in its vocabulary, -1 for a gene that the model does not know.
        values: Their values [B, K].
        given: What is no padding, bool [B, K].
    """

    modality: str
    index: tf.Tensor
    values: tf.Tensor
    given: tf.Tensor


def _table(codes: dict[str, int]) -> tf.lookup.StaticHashTable:
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(codes), tf.string), tf.constant(list(codes.values()), tf.int32)
        ),
        default_value=-1,
    )


def _gene_names(vocabulary: Sequence[str], symbols: Sequence[str] | None) -> dict[str, int]:
    """Identifiers and, where they name one gene, symbols, each with its index."""
    names = {name: i for i, name in enumerate(vocabulary)}
    times = Counter(symbols or ())
    for i, symbol in enumerate(symbols or ()):
        if symbol and times[symbol] == 1:
            names.setdefault(symbol, i)
    return names
