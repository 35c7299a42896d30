"""Labels by a fine-tuned model: the same by every way in, `unknown` as often as is allowed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData

from concerto_tf.errors import InputError
from concerto_tf.models import Concerto, load_model, save_model
from concerto_tf.novelty import rejection_rate
from concerto_tf.records import Records, convert
from concerto_tf.tasks.annotate import agreement_of, annotate
from concerto_tf.tasks.embed import embed
from concerto_tf.tasks.finetune import finetune
from concerto_tf.tasks.relearn import tell


@pytest.fixture(scope="module")
def finetuned(typed_cells: Path) -> Path:
    return typed_cells / "typed"


def test_every_way_in_gives_the_same_labels(
    make_typed: Callable[..., AnnData], finetuned: Path, typed_cells: Path, tmp_path: Path
) -> None:
    cells = make_typed(50, seed=3)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    model = load_model(finetuned)
    own = convert(
        cells,
        tmp_path / "records",
        source_key="donor",
        label_keys=["type"],
        like=typed_cells / "records",
    )
    want, seen = None, []
    ways = [(finetuned, tmp_path / "cells.h5ad"), (model, cells), (model, own)]
    for i, (of, given) in enumerate(ways):
        out = tmp_path / f"{i}.h5ad"
        source = None if isinstance(given, Records) else "donor"
        table = annotate(of, given, out, source_key=source, progress=lambda *p: seen.append(p))
        want = table if want is None else want
        assert list(table.index) == list(cells.obs_names)
        assert list(table["label"]) == list(want["label"])
        np.testing.assert_allclose(table["confidence"], want["confidence"], atol=1e-4)
        written = anndata.io.read_h5ad(out)
        assert list(written.obs["concerto_label"]) == list(table["label"])
        np.testing.assert_array_equal(written.obs["concerto_confidence"], table["confidence"])
        np.testing.assert_allclose(
            written.obsm["X_concerto"], embed(finetuned, cells, source_key="donor"), atol=1e-4
        )
        assert list(written.obs["type"]) == list(cells.obs["type"])
    assert seen == [(50, 50)] * 3
    assert np.mean(want["predicted"] == cells.obs["type"]) > 0.9
    assert ((want["confidence"] > 0) & (want["confidence"] < 1)).all()


def test_alpha_is_the_share_of_known_cells_that_is_rejected(
    make_typed: Callable[..., AnnData], finetuned: Path
) -> None:
    """Fresh cells of the same types; 48 held-out cells leave the realized share uncertain."""
    table = annotate(finetuned, make_typed(1000, seed=11), alpha=0.2)
    rejected = (table["label"] == "unknown").mean()
    _, low, high = rejection_rate(0.2, 48)
    assert low - 0.03 < rejected < high + 0.03
    assert ((table["novelty"] < 0.2) == (table["label"] == "unknown")).all()
    blend = np.sqrt(table["probability"] * table["novelty"])
    np.testing.assert_allclose(table["confidence"], blend)


def test_unseen_types_are_unknown_and_evaluated_as_such(
    make_typed: Callable[..., AnnData], finetuned: Path
) -> None:
    query = make_typed(200, seed=4, kinds=4)
    query = query[query.obs["type"] != "NK"].copy()
    table = annotate(finetuned, query)
    found = agreement_of(table, query.obs["type"].tolist(), load_model(finetuned).classes)
    assert found["types_unseen"] == ["DC"] and found["types_absent"] == ["NK"]
    assert found["auroc"] > 0.9 and found["rejected_unseen"] > found["rejected_seen"] + 0.3
    assert found["cells"] + found["cells_unseen"] == len(query) and found["accuracy"] > 0.9
    nobody = agreement_of(table, [None] * len(query), ["B", "T"])
    assert nobody["accuracy"] is None and nobody["auroc"] is None and nobody["cells"] == 0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_alpha_lies_between_0_and_1(
    make_typed: Callable[..., AnnData], finetuned: Path, alpha: float
) -> None:
    with pytest.raises(InputError, match="alpha is .*between 0 and 1"):
        annotate(finetuned, make_typed(5), alpha=alpha)


def test_where_too_few_cells_were_held_out_none_is_rejected(
    make_typed: Callable[..., AnnData], finetuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = make_typed(20)
    odd.X = np.random.default_rng(0).poisson(3.0, odd.shape).astype("float32") + 1
    assert (annotate(finetuned, odd, alpha=0.05)["label"] == "unknown").mean() > 0.8
    with caplog.at_level(logging.WARNING, "concerto_tf"):
        table = annotate(finetuned, odd, alpha=0.01)
    assert not (table["label"] == "unknown").any()
    assert "48 held-out cells, but alpha 0.01 takes 99" in caplog.text


@pytest.mark.slow
def test_without_calibration_confidence_is_the_probability(
    make_typed: Callable[..., AnnData],
    typed_cells: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = finetune(
        typed_cells / "model",
        typed_cells / "records",
        tmp_path / "m",
        label_key="type",
        epochs=10,
        calibration=0.0,
    )
    said = json.loads((tmp_path / "m" / "training.json").read_text())["calibration"]
    assert model.calibration == () and said["cells"] == 0 and said["rejected"] == 0
    with caplog.at_level(logging.WARNING, "concerto_tf"):
        table = annotate(model, make_typed(20), alpha=0.9)
    assert "without calibration" in caplog.text and not (table["label"] == "unknown").any()
    found = tell(model, convert(make_typed(20), tmp_path / "r", like=typed_cells / "records")).found
    np.testing.assert_allclose(table["confidence"], found["probabilities"].max(1), atol=1e-3)


def test_a_model_without_types_cannot_annotate(
    make_typed: Callable[..., AnnData], typed_cells: Path, tmp_path: Path
) -> None:
    save_model(Concerto([f"G{i}" for i in range(10)]), tmp_path / "m.keras")
    pretrained = typed_cells / "model"
    for model in (pretrained, tmp_path / "m.keras", load_model(pretrained)):
        with pytest.raises(InputError, match="tells no cell types; teach it some with `finetune`"):
            annotate(model, make_typed(5))
