"""AnnData, h5ad, zarr and 10x files to shards of TFRecords, and those to `tf.data`."""

from __future__ import annotations

from concerto_tf.records.cell_set import CellSet
from concerto_tf.records.conversion.convert import convert
from concerto_tf.records.genes.selection import highly_variable, resolve_genes
from concerto_tf.records.genes.vocabulary import Vocabulary
from concerto_tf.records.inputs.opening import open_input
from concerto_tf.records.manifest import Manifest
from concerto_tf.records.reader import Records

__all__ = [
    "CellSet",
    "Manifest",
    "Records",
    "Vocabulary",
    "convert",
    "highly_variable",
    "open_input",
    "resolve_genes",
]
