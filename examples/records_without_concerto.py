"""Our records read by plain TensorFlow, in a `tf.data` pipeline of one's own.

    python examples/records_without_concerto.py FOLDER       needs TensorFlow alone

The format is specified in tfrecords/README.md; `concerto convert` writes such a folder.
"""

# ---- from here
import json
import sys
from pathlib import Path

import tensorflow as tf

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
rna = manifest["modalities"]["rna"]
features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("cell", "genes", "values")}
features |= {name: tf.io.FixedLenFeature([], tf.int64) for name in ("row", "source")}


def cell(example: tf.Tensor) -> dict[str, tf.Tensor]:
    found = tf.io.parse_single_example(example, features)
    genes = tf.cast(tf.io.decode_raw(found["genes"], rna["gene_dtype"]), tf.int32)
    values = tf.cast(tf.io.decode_raw(found["values"], rna["value_dtype"]), tf.float32)
    return {**found, "genes": genes, "values": values}


shards = [str(folder / shard["file"]) for shard in manifest["shards"]]
compression = "GZIP" if manifest["compression"] == "gzip" else ""
cells = tf.data.TFRecordDataset(shards, compression, buffer_size=2**20).map(cell)
batches = cells.padded_batch(256)  # genes and values padded with 0
# ---- to here

if __name__ == "__main__":
    counted, total = 0, 0.0
    for batch in batches:
        counted += len(batch["row"])
        total += float(tf.reduce_sum(batch["values"]))
    print(f"cells: {counted} of {manifest['n_cells']}")
    print(f"counts: {total:.0f}")
    print("concerto_tf imported:", "concerto_tf" in sys.modules)
