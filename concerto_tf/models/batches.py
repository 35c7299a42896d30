"""Batches of cells as models take them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_READ = ("genes", "values", "total", "offset", "source", "row", "observed")

Batch = dict[str, tf.Tensor]
#: Gene indices, values and rows, as `ContrastiveModel.nonzeros` gives them.
Cells = tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]


def source_codes(batch: Batch) -> tf.Tensor:
    """Source codes of a batch; all cells are of the first source where it names none."""
    if "source" in batch:
        return tf.cast(batch["source"], tf.int32)
    return tf.zeros(tf.shape(batch["genes"])[:1], tf.int32)


def tensors(batch: Any) -> Batch:
    """The numeric entries of a batch that a model reads."""
    batch = batch[0] if isinstance(batch, tuple) else batch
    return {
        key: tf.convert_to_tensor(batch[key])
        for key in batch
        if key in _READ or (key.endswith(("/genes", "/values")) and not key.startswith("label/"))
    }


def without_text(x: Any) -> Any:
    """A dataset of batches without the entries (barcodes) that XLA cannot take."""
    spec = getattr(x, "element_spec", None)
    spec = spec[0] if isinstance(spec, tuple) and spec else spec
    if not isinstance(x, tf.data.Dataset) or not isinstance(spec, dict):
        return x
    kept = [key for key, of in spec.items() if of.dtype != tf.string]
    if len(kept) == len(spec):
        return x

    def choose(batch: Any, *rest: Any) -> Any:
        batch = {key: batch[key] for key in kept}
        return (batch, *rest) if rest else batch

    return x.map(choose)
