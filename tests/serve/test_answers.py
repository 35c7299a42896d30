"""The answers of a served model, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.export import export
from concerto_tf.serve.answers import Answers, padded_together


@pytest.fixture(scope="module")
def answers(model) -> Answers:
    return Answers(model.folder, k=3)


def given(model, rows: slice) -> dict[str, np.ndarray]:
    values = model.cells.X[rows]
    genes = np.tile(np.array(model.cells.var_names, object), (len(values), 1))
    return {"genes": genes, "values": values}


def test_embeddings_are_those_of_embed(model, answers: Answers) -> None:
    z = answers(given(model, slice(0, 60)))["embedding"]
    assert np.abs(z - model.embeddings).max() < 1e-5 * np.abs(model.embeddings).max()


def test_labels_and_nearest_cells_of_the_reference(model, answers: Answers) -> None:
    assert list(answers.signatures) == ["embedding", "labels", "nearest"]
    found = answers(given(model, slice(5, 20)))
    for outputs in answers.signatures.values():
        for one in outputs:
            assert found[one.name].shape[1:] == one.shape[1:], one
    assert found["nearest"][:, 0].tolist() == list(range(5, 20))  # each cell itself
    np.testing.assert_allclose(found["cosine"][:, 0], 1, atol=1e-5)
    assert found["nearest_type"][:, 0].tolist() == model.cells.obs["type"].tolist()[5:20]


def test_padding_changes_nothing(model, answers: Answers) -> None:
    wide, narrow = given(model, slice(0, 1)), given(model, slice(1, 2))
    narrow = {name: x[:, :25] for name, x in narrow.items()}
    together = answers(padded_together([wide, narrow]))
    for i, alone in enumerate([answers(wide), answers(narrow)]):
        np.testing.assert_allclose(together["embedding"][i], alone["embedding"][0], atol=1e-5)
        assert together["unknown_genes"][i] == alone["unknown_genes"][0] == 0


def test_sources_are_an_input_of_their_own(model, answers: Answers) -> None:
    assert [one.name for one in answers.inputs] == ["genes", "values", "source"]
    one = given(model, slice(0, 4))
    known = answers({**one, "source": np.array(["all"] * 4, object)})
    np.testing.assert_allclose(known["embedding"], answers(one)["embedding"], atol=1e-6)


def test_what_is_exported_answers_without_its_model(model, tmp_path: Path) -> None:
    served = Answers(export(model.folder, tmp_path / "served"))
    assert list(served.signatures) == ["embedding", "labels"]
    z = served(given(model, slice(0, 7)))["embedding"]
    np.testing.assert_allclose(z, model.embeddings[:7], atol=1e-5)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(model.folder)
    assert list(Answers(tmp_path / "run").signatures) == ["embedding", "labels", "nearest"]
    with pytest.raises(InputError, match="there is no such model"):
        Answers(tmp_path / "nothing")
