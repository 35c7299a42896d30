"""Our records read in PyTorch, by the package `tfrecord`: pip install tfrecord torch

    python examples/records_in_pytorch.py FOLDER

Without PyTorch the same loop gives NumPy arrays. `tfrecord` cannot be imported beside TensorFlow,
nor is it needed there. The format is specified in tfrecords/README.md.
"""

# ---- from here
import json
import sys
from pathlib import Path

import numpy as np
from tfrecord.reader import tfrecord_loader

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
rna = manifest["modalities"]["rna"]
kinds = {"cell": "byte", "genes": "byte", "values": "byte", "row": "int", "source": "int"}
compression = "gzip" if manifest["compression"] == "gzip" else None


def cells():
    for shard in manifest["shards"]:
        path = str(folder / shard["file"])
        for found in tfrecord_loader(path, None, kinds, compression_type=compression):
            genes = np.frombuffer(bytes(found["genes"]), rna["gene_dtype"]).astype(np.int64)
            values = np.frombuffer(bytes(found["values"]), rna["value_dtype"]).astype(np.float32)
            yield int(found["row"][0]), genes, values  # torch.from_numpy takes each


# ---- to here


if __name__ == "__main__":
    rows, total = [], 0.0
    for row, genes, values in cells():
        assert len(genes) == len(values)
        rows.append(row)
        total += float(values.sum())
    print(f"cells: {len(rows)} of {manifest['n_cells']}")
    print(f"counts: {total:.0f}")
