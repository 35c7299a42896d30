"""A SavedModel answers like the model it came from, without this package."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from concerto_tf.errors import InputError
from concerto_tf.export import export
from concerto_tf.models import Concerto, save_model
from concerto_tf.models.fingerprint import fingerprint
from concerto_tf.reference.cells import Labels, Reference
from concerto_tf.reference.files import save_reference
from concerto_tf.reference.transfer import transfer

pytestmark = pytest.mark.stack

N = 30


def make_model(**arguments: object) -> Concerto:
    small = {
        "units": 8,
        "hidden_units": 8,
        "attention_units": 4,
        "head_units": None,
        "components": 0,
        "readout": "both",
        "genes": range(1, N),
        "sources": ("old", "young"),
    }
    # The last symbol stands for two genes, and so for none.
    symbols = [f"SYM{i}" for i in range(N - 2)] + ["TWICE", "TWICE"]
    return Concerto([f"ENSG{i}" for i in range(N)], symbols=symbols, **{**small, **arguments})


def make_cells(n: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.poisson(0.7, (n, N)).astype("float32")
    values[:, 3] += 1
    values[rng.integers(0, n)] *= 40
    return {
        "genes": np.tile(np.arange(N, dtype=np.int32), (n, 1)),
        "values": values,
        "source": (np.arange(n) % 3 == 0).astype(np.int32),
    }


def names(genes: np.ndarray, prefix: str = "ENSG") -> np.ndarray:
    return np.array([[f"{prefix}{i}" for i in row] for row in genes], object)


@pytest.fixture(scope="module")
def model() -> Concerto:
    made = make_model()
    made.calibrate([make_cells(60, seed=1)])  # statistics that differ between sources
    return made


@pytest.fixture(scope="module")
def folder(model: Concerto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "served"
    assert export(model, out) == out
    return out


@pytest.fixture(scope="module")
def signatures(folder: Path) -> dict:
    return tf.saved_model.load(str(folder)).signatures


def ask(signatures: dict, name: str, **inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    answer = signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
    assert set(answer) == {"embedding", "unknown_genes"}
    return answer["embedding"].numpy(), answer["unknown_genes"].numpy()


def near(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_signatures_are_as_specified(signatures: dict) -> None:
    assert set(signatures) == {"serving_default", "by_index", "by_source"}
    wanted = {
        "serving_default": {"genes": (tf.string, 2), "values": (tf.float32, 2)},
        "by_index": {"genes": (tf.int32, 2), "values": (tf.float32, 2)},
        "by_source": {
            "genes": (tf.string, 2),
            "values": (tf.float32, 2),
            "source": (tf.string, 1),
        },
    }
    for name, inputs in wanted.items():
        specs = signatures[name].structured_input_signature[1]
        assert {k: (s.dtype, s.shape.rank) for k, s in specs.items()} == inputs
        assert all(not s.shape.is_fully_defined() for s in specs.values())
        outputs = signatures[name].structured_outputs
        assert outputs["embedding"].dtype == outputs["unknown_genes"].dtype == tf.float32
        assert outputs["embedding"].shape.as_list() == [None, 16]
        assert outputs["unknown_genes"].shape.as_list() == [None]


def test_by_index_by_name_and_by_symbol_are_the_models_embedding(
    model: Concerto, signatures: dict
) -> None:
    cells = make_cells()
    genes, values = cells["genes"], cells["values"]
    want = model.embed([{**cells, "source": np.full(12, -1, np.int32)}])
    near(ask(signatures, "by_index", genes=genes, values=values)[0], want)
    got, unknown = ask(signatures, "serving_default", genes=names(genes), values=values)
    near(got, want)
    assert (unknown == 0).all()
    # Symbols, in another order, where they stand for one gene.
    order = np.random.default_rng(2).permutation(N)
    mixed = names(genes, "SYM")
    mixed[:, N - 2 :] = ["ENSG28", "ENSG29"]
    got, _ = ask(signatures, "serving_default", genes=mixed[:, order], values=values[:, order])
    near(got, want)


def test_by_source_takes_the_statistics_of_the_source(model: Concerto, signatures: dict) -> None:
    cells = make_cells()
    inputs = {"genes": names(cells["genes"]), "values": cells["values"]}
    source = np.array(["old", "young"])[cells["source"]]
    near(ask(signatures, "by_source", **inputs, source=source)[0], model.embed([cells]))
    pooled = ask(signatures, "serving_default", **inputs)[0]
    near(ask(signatures, "by_source", **inputs, source=np.array(["never seen"] * 12))[0], pooled)
    assert np.abs(pooled - model.embed([cells])).max() > 0.01


def test_one_source_needs_no_name(tmp_path: Path) -> None:
    model, cells = make_model(sources=("only",)), make_cells()
    cells["source"][:] = 0
    model.calibrate([make_cells(50, seed=1)])
    served = tf.saved_model.load(str(export(model, tmp_path / "served"))).signatures
    got, _ = ask(served, "by_index", genes=cells["genes"], values=cells["values"])
    near(got, model.embed([cells]))


def test_unknown_genes_are_left_out_and_their_share_told(signatures: dict) -> None:
    known = np.array([["ENSG3", "ENSG7", ""], ["ENSG9", "", ""]])
    values = np.array([[2, 5, 0], [4, 0, 0]], "float32")
    want, unknown = ask(signatures, "serving_default", genes=known, values=values)
    assert unknown.tolist() == [0, 0]
    strange = np.array([["ENSG3", "NOVEL", "ENSG7", "TWICE"], ["", "ENSG9", "?", ""]])
    values = np.array([[2, 77, 5, 9], [0, 4, 0, 0]], "float32")
    got, unknown = ask(signatures, "serving_default", genes=strange, values=values)
    near(got, want)
    assert unknown.tolist() == [0.5, 0.5]
    index = np.array([[3, -1, 7, 1000], [0, 9, 0, 0]], np.int32)
    got, unknown = ask(signatures, "by_index", genes=index, values=values)
    near(got, want)
    assert unknown.tolist() == [0.5, 0]


def test_padding_says_nothing(signatures: dict) -> None:
    one = names(np.array([[3, 7]])), np.array([[2, 5]], "float32")
    want, _ = ask(signatures, "serving_default", genes=one[0], values=one[1])
    padded = np.array([["", "ENSG3", "", "ENSG7", ""]])
    # Even where somebody left a value beside an empty name.
    values = np.array([[9, 2, 0, 5, 9]], "float32")
    got, unknown = ask(signatures, "serving_default", genes=padded, values=values)
    near(got, want)
    assert unknown.tolist() == [0]


def test_an_empty_cell_has_an_answer_and_spoils_no_other(signatures: dict) -> None:
    genes = np.array([["", ""], ["ENSG3", "ENSG7"], ["NOVEL", ""]])
    values = np.array([[0, 0], [2, 5], [3, 0]], "float32")
    got, unknown = ask(signatures, "serving_default", genes=genes, values=values)
    alone, _ = ask(signatures, "serving_default", genes=genes[1:2], values=values[1:2])
    near(got[1:2], alone)
    assert np.isfinite(got).all()
    near(got[2], got[0])
    assert unknown.tolist() == [0, 0, 1]


def test_normalized_models_take_normalized_values(tmp_path: Path) -> None:
    cells = make_cells()
    for target_sum, scales in ((1e4, True), (None, False)):
        model = make_model(target_sum=target_sum)
        folder = export(model, tmp_path / str(target_sum))
        served = tf.saved_model.load(str(folder)).signatures
        genes, values = cells["genes"], cells["values"]
        want = model.embed([{**cells, "source": np.full(12, -1, np.int32)}])
        got = ask(served, "by_index", genes=genes, values=values)[0]
        near(got, want)
        doubled = ask(served, "by_index", genes=genes, values=2 * values)[0]
        # Counts are compared at equal depth; values are taken as they are.
        assert (np.abs(doubled - got).max() < 1e-4) == scales
        card = (folder / "MODEL_CARD.md").read_text()
        assert ("raw counts" in card) == scales and "old, young" in card


WITHOUT = """
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in blocked:
                raise ImportError(f"{name} is blocked")

    blocked = ["concerto_tf", "scanpy", "anndata", "sklearn"]
    sys.meta_path.insert(0, Blocked())
    import numpy as np
    import tensorflow as tf

    blocked += ["keras", "tf_keras"]  # TensorFlow looks for them when it is imported itself
    try:
        import concerto_tf
    except ImportError:
        pass
    else:
        raise SystemExit("concerto_tf is not blocked")
    cells = np.load("cells.npz")
    served = tf.saved_model.load("served").signatures
    np.savez(
        "answer.npz",
        index=served["by_index"](
            genes=tf.constant(cells["genes"]), values=tf.constant(cells["values"])
        )["embedding"],
        source=served["by_source"](
            genes=tf.constant(cells["names"]), values=tf.constant(cells["values"]),
            source=tf.constant(cells["sources"]),
        )["embedding"],
    )
    assert not any(name.split(".")[0] == "concerto_tf" for name in sys.modules)
"""


def test_answers_where_only_tensorflow_is(model: Concerto, tmp_path: Path) -> None:
    cells = make_cells()
    save_model(model, tmp_path / "model.keras")
    export(tmp_path / "model.keras", tmp_path / "served")
    np.savez(
        tmp_path / "cells.npz",
        genes=cells["genes"],
        values=cells["values"],
        names=names(cells["genes"]).astype(str),
        sources=np.array(["old", "young"])[cells["source"]],
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "answer.npz") as answer:
        near(answer["source"], model.embed([cells]))
        near(answer["index"], model.embed([{**cells, "source": np.full(12, -1, np.int32)}]))


def test_what_is_there_is_not_touched(model: Concerto, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine").touch()
    with pytest.raises(InputError, match="is there already; name another folder"):
        export(model, tmp_path / "served")
    with pytest.raises(InputError, match="there is no such folder"):
        export(model, tmp_path / "none" / "served")
    with pytest.raises(InputError, match="there is no such model"):
        export(tmp_path / "none.keras", tmp_path / "other")
    assert [entry.name for entry in tmp_path.iterdir()] == ["served"]
    assert [entry.name for entry in (tmp_path / "served").iterdir()] == ["mine"]


def test_the_reference_kept_with_a_model_is_found_by_its_file_and_stale_ones_are_said(
    model: Concerto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(model, tmp_path / "model.keras")
    labels = {"type": Labels(np.arange(40, dtype=np.int32) % 2, ("B", "T"))}
    z = np.random.default_rng(0).normal(size=(40, 16))
    save_reference(Reference(z, labels, model=fingerprint(model)), tmp_path / "reference")
    served = export(tmp_path / "model.keras", tmp_path / "served")
    outputs = tf.saved_model.load(str(served)).signatures["by_index"].structured_outputs
    assert {"label", "novelty"} <= set(outputs) and "left out" not in caplog.text
    save_reference(Reference(z, labels, model="another"), tmp_path / "reference")
    served = export(tmp_path, tmp_path / "stale")
    outputs = tf.saved_model.load(str(served)).signatures["by_index"].structured_outputs
    assert "label" not in outputs and "is left out" in caplog.text


def test_a_reference_of_cells_that_were_trained_on_is_served_as_it_is_mapped(
    tmp_path: Path,
) -> None:
    model = make_model(components=3, readout="student")
    cells, query = make_cells(60, seed=1), make_cells(40, seed=2)
    model.initialize([cells])
    model.calibrate([cells])
    save_model(model, tmp_path / "model.keras")
    labels = {
        "type": Labels(np.arange(60, dtype=np.int32) % 2, ("B", "T")),
        "part": Labels(np.arange(60, dtype=np.int32) % 4 - 1, ("C", "D", "E")),  # some have none
    }
    reference = Reference(
        model.embed([cells]),
        labels,
        model=fingerprint(model),
        origin=model.geometry.origin,
        spread=model.geometry.spread,
    )
    assert reference.embedded.factor.min() < 0.95 and reference.embedded.middle.any()
    save_reference(reference, tmp_path / "reference")
    served = tf.saved_model.load(str(export(tmp_path, tmp_path / "served"))).signatures["by_index"]
    got = served(genes=tf.constant(query["genes"]), values=tf.constant(query["values"]))
    z = model.embed([{**query, "source": np.full(40, -1, np.int32)}])
    for key, held in labels.items():
        want = transfer(reference.labelled(key), z, key, 5)
        predicted = [name.decode() for name in got[f"predicted_{key}"].numpy()]
        assert predicted == [held.names[code] for code in want["code"]]
        near(got[f"novelty_{key}"], want["novelty"])
    # Constants have to fit into one message: of each cell they hold the code of its label alone.
    graph = served.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    per_cell = {
        node.attr["dtype"].type
        for node in nodes
        if node.op == "Const"
        and {60, 45} & {dim.size for dim in node.attr["value"].tensor.tensor_shape.dim}
    }
    assert per_cell == {tf.int32.as_datatype_enum}


def test_saved_model_cli_shows_and_runs_it(folder: Path, tmp_path: Path) -> None:
    """The tool that comes with TensorFlow, with the arguments that docs/serving.md prints."""
    command = Path(sys.executable).with_name("saved_model_cli")
    if not command.exists():
        pytest.skip("this TensorFlow brings no saved_model_cli")
    of = ["--dir", str(folder), "--tag_set", "serve", "--signature_def", "serving_default"]
    asked = ["--input_exprs", 'genes=[[b"ENSG1", b"ENSG2"]];values=[[3.0, 1.0]]']
    both = [["show", *of], ["run", *of, *asked, "--outdir", str(tmp_path)]]
    with (tmp_path / "log").open("w+") as log:
        # Side by side: what takes long is that each loads TensorFlow.
        started = [
            subprocess.Popen([command, *one], stdout=subprocess.PIPE, stderr=log, text=True)
            for one in both
        ]
        told = [process.communicate()[0] for process in started]
        log.seek(0)
        assert [process.returncode for process in started] == [0, 0], log.read()[-2000:]
    assert "inputs['genes'] tensor_info:\n      dtype: DT_STRING" in told[0]
    assert "inputs['values'] tensor_info:\n      dtype: DT_FLOAT" in told[0]
    answer = tf.saved_model.load(str(folder)).signatures["serving_default"](
        genes=tf.constant([["ENSG1", "ENSG2"]]), values=tf.constant([[3.0, 1.0]])
    )
    np.testing.assert_allclose(np.load(tmp_path / "embedding.npy"), answer["embedding"], atol=1e-6)
