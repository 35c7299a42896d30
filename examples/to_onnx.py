"""The embedding of a model as ONNX, answered by onnxruntime: pip install tf2onnx onnxruntime

    python examples/to_onnx.py MODEL CELLS.h5ad OUT.onnx

Inputs are `genes` int32 [B, K], indices of the model's vocabulary, and `values` float32 [B, K], raw
counts, both padded with 0.
"""

# ---- from here
import sys

import numpy as np
import tensorflow as tf
import tf2onnx

import concerto_tf

model = concerto_tf.load_model(sys.argv[1])
source = 0 if len(model.sources) == 1 else -1  # -1: by the statistics of all sources together


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None], tf.int32, "genes"),
        tf.TensorSpec([None, None], tf.float32, "values"),
    ]
)
def embedding(genes, values):
    cells = {"genes": genes, "values": values, "source": tf.fill(tf.shape(genes)[:1], source)}
    return {"embedding": model(cells, training=False)}


def log1p(graph, node, name, arguments):
    """tf2onnx knows no Log1p: the logarithm of one more."""
    one = graph.make_const(tf2onnx.utils.make_name("one"), np.array(1, np.float32))
    more = graph.make_node("Add", [node.input[0], one.output[0]])
    graph.replace_input(node, node.input[0], more.output[0], 0)
    node.type, node.domain = "Log", ""


tf2onnx.convert.from_function(
    embedding,
    embedding.input_signature,
    opset=17,
    custom_op_handlers={"Log1p": (log1p, [])},
    output_path=sys.argv[3],
)
# ---- to here

if __name__ == "__main__":
    import anndata
    import onnxruntime

    cells = anndata.io.read_h5ad(sys.argv[2])[:64]
    place = {name: i for i, name in enumerate(model.vocabulary)}
    known = np.array([name in place for name in cells.var_names])
    order = np.array([place[name] for name in cells.var_names[known]], np.int32)
    counts = np.asarray(cells.X.todense() if hasattr(cells.X, "todense") else cells.X)[:, known]
    session = onnxruntime.InferenceSession(sys.argv[3])
    given = {"genes": np.tile(order, (len(counts), 1)), "values": counts.astype(np.float32)}
    (z,) = session.run(["embedding"], given)
    want = concerto_tf.embed(model, cells.copy())
    print(f"cells: {len(z)}, dimensions: {z.shape[1]}")
    print(
        f"largest difference, of the largest value: {np.abs(z - want).max() / abs(want).max():.1e}"
    )
