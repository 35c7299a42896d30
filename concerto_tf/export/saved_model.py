"""A trained model as a SavedModel: raw counts by gene name in, embeddings out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import tensorflow as tf

from concerto_tf._files import atomic
from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.models import ContrastiveModel, load_model
from concerto_tf.tasks.result import check_target

_TEXT = tf.TensorSpec([None, None], tf.string, name="genes")
_INDEX = tf.TensorSpec([None, None], tf.int32, name="genes")
_VALUES = tf.TensorSpec([None, None], tf.float32, name="values")
_SOURCE = tf.TensorSpec([None], tf.string, name="source")


def export(model: ContrastiveModel | str | Path, out: str | Path) -> Path:
    """Writes a SavedModel that holds vocabulary and normalisation and needs only TensorFlow.

    Its signatures, each of which returns ``embedding`` float32 [B, d] and ``unknown_genes``
    float32 [B] (share of the cell's genes that the model does not know, and so ignored):

    - ``serving_default``: ``genes`` string [B, K], padded with ""; ``values`` float32 [B, K]
    - ``by_index``: ``genes`` int32 [B, K] as indices of the vocabulary, padding anything with
      value 0; ``values`` float32 [B, K]
    - ``by_source``: as ``serving_default``, and ``source`` string [B]; a source the model does
      not know is normalised by the statistics pooled over all sources

    Args:
        model: A trained model, or its path.
        out: Folder to write; must not exist.

    Returns:
        The folder.

    Raises:
        InputError: The model cannot be loaded, or ``out`` is there already.

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
    if not isinstance(model, ContrastiveModel):
        model = load_model(model)
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: is there already; name another folder, or remove this one")
    check_target(out)
    served = _Served(model)
    signatures = {
        "serving_default": served.by_name.get_concrete_function(),
        "by_index": served.by_index.get_concrete_function(),
        "by_source": served.by_source.get_concrete_function(),
    }
    with atomic(out) as temporary:
        tf.saved_model.save(served, str(temporary), signatures=signatures)
        (temporary / "MODEL_CARD.md").write_text(_card(model), "utf-8")
    return out


class _Served(tf.Module):
    """What a SavedModel keeps of a model: its variables, its tables and three functions."""

    def __init__(self, model: ContrastiveModel) -> None:
        super().__init__()
        self._embed = lambda batch: tf.cast(model(batch, training=False), tf.float32)
        # The plain variables of TensorFlow, so that nothing of Keras is needed to load them.
        self.weights = [getattr(weight, "value", weight) for weight in model.weights]
        if callable(self.weights[0]):  # Keras 2: `value` is a method of the variable itself
            self.weights = list(model.weights)
        self.genes = _table(_gene_names(model))
        self.sources = _table({name: code for code, name in enumerate(model.sources)})
        self._n_genes = len(model.vocabulary)
        # Where there is one source, all cells are of it.
        self._default_source = 0 if len(model.sources) == 1 else -1

    @tf.function(input_signature=[_TEXT, _VALUES])
    def by_name(self, genes: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._answer(self.genes.lookup(genes), values, tf.not_equal(genes, ""))

    @tf.function(input_signature=[_INDEX, _VALUES])
    def by_index(self, genes: tf.Tensor, values: tf.Tensor) -> dict[str, tf.Tensor]:
        known = (genes >= 0) & (genes < self._n_genes)
        return self._answer(tf.where(known, genes, -1), values, tf.not_equal(values, 0))

    @tf.function(input_signature=[_TEXT, _VALUES, _SOURCE])
    def by_source(
        self, genes: tf.Tensor, values: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        code = self.sources.lookup(source)
        return self._answer(self.genes.lookup(genes), values, tf.not_equal(genes, ""), code)

    def _answer(
        self,
        index: tf.Tensor,
        values: tf.Tensor,
        given: tf.Tensor,
        source: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        known = given & (index >= 0)
        if source is None:
            source = tf.fill(tf.shape(index)[:1], self._default_source)
        embedding = self._embed({
            "genes": tf.where(known, index, 0),
            "values": tf.where(known, values, 0.0),
            "source": source,
        })
        unknown = tf.cast(given & (index < 0), tf.float32)
        share = tf.math.divide_no_nan(
            tf.reduce_sum(unknown, 1), tf.reduce_sum(tf.cast(given, tf.float32), 1)
        )
        return {"embedding": embedding, "unknown_genes": share}


def _table(codes: dict[str, int]) -> tf.lookup.StaticHashTable:
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.constant(list(codes), tf.string), tf.constant(list(codes.values()), tf.int32)
        ),
        default_value=-1,
    )


def _gene_names(model: ContrastiveModel) -> dict[str, int]:
    """Identifiers and, where they name one gene, symbols, each with its index."""
    names = {name: i for i, name in enumerate(model.vocabulary)}
    times = Counter(model.symbols or ())
    for i, symbol in enumerate(model.symbols or ()):
        if symbol and times[symbol] == 1:
            names.setdefault(symbol, i)
    return names


def _card(model: ContrastiveModel) -> str:
    """What whoever serves the model needs to know."""
    if model.target_sum is None:
        units = "values normalised as those it was trained on"
    else:
        units = f"raw counts (scaled to {model.target_sum:g} per cell and log1p inside)"
    shown = ", ".join(model.sources[:20]) + (", ..." if len(model.sources) > 20 else "")
    rows: list[tuple[str, Any]] = [
        ("method", type(model).__name__),
        ("written by", f"concerto_tf {__version__}"),
        ("input", units),
        ("genes known", len(model.vocabulary)),
        ("genes used", model.n_inputs),
        ("sources", shown),
        ("embedding", f"{model.embedding_dim} dimensions, float32"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""# A cell embedding model

| | |
|---|---|
{table}

```python
import tensorflow as tf

model = tf.saved_model.load("FOLDER")
answer = model.signatures["serving_default"](
    genes=tf.constant([["{model.vocabulary[0]}", ""]]), values=tf.constant([[3.0, 0.0]])
)
answer["embedding"], answer["unknown_genes"]
```

Signatures: `serving_default` (genes by name, padded with ""), `by_index` (genes by their position
in the vocabulary), `by_source` (genes by name, and the name of each cell's source).
"""
