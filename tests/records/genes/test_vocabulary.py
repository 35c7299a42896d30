from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from concerto_tf.errors import InputError
from concerto_tf.records.genes.vocabulary import Vocabulary, read_table


def test_index_names_and_take() -> None:
    vocabulary = Vocabulary(("E1", "E2", "E3"), symbols=("A", "", "C"))
    assert vocabulary.index(["E3", "A", "E1"]).tolist() == [2, -1, 0]
    assert vocabulary.index([]).dtype == np.int64
    assert vocabulary.names == ("A", "E2", "C")
    assert vocabulary.take([2, 0]) == Vocabulary(("E3", "E1"), ("C", "A"))


def test_duplicates_are_named_with_how_often_and_what_to_do() -> None:
    with pytest.raises(InputError) as error:
        Vocabulary(("A", "B", "A", "A", "B", "C"))
    assert str(error.value) == (
        "duplicate gene names: 'A' (3x), 'B' (2x); run adata.var_names_make_unique() and save again"
    )


def test_symbols_may_repeat() -> None:
    assert len(Vocabulary(("E1", "E2"), symbols=("TBCE", "TBCE"))) == 2


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError, match="2 gene ids but 1 symbols"):
        Vocabulary(("A", "B"), symbols=("a",))


@pytest.mark.parametrize("name", ["A\tB", "A\nB", "A\r"])
def test_names_that_would_break_the_table_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="tab or a line break"):
        Vocabulary(("X", name))


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary(("CD3E", "β-actin", "5'ETS\"x")),
        Vocabulary(("E1", "E2"), symbols=("A", "")),
        Vocabulary(("A", "B"), ensembl=("", "ENSG00000198851")),
        Vocabulary(("E1",), symbols=("A",), ensembl=("E1",)),
    ],
)
def test_tsv_round_trip(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "vocabulary.tsv"
    mean = np.linspace(0.1, 1 / 3, len(vocabulary))
    vocabulary.to_tsv(path, {"mean": mean})
    assert Vocabulary.from_tsv(path) == vocabulary
    assert [float(text) for text in read_table(path)["mean"]] == mean.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("gene\tmean\nA\t1\n", "no column 'id'; there are gene, mean"),
        ("id\tmean\nA\t1\nB\n", "line 3 has 1 columns where the header has 2"),
    ],
)
def test_damaged_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vocabulary.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Vocabulary.from_tsv(path)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.tsv: cannot be read"):
        Vocabulary.from_tsv(tmp_path / "nowhere.tsv")


def test_digest_tells_orders_apart_and_survives_pickling() -> None:
    vocabulary = Vocabulary(("A", "B"))
    assert vocabulary.digest != Vocabulary(("B", "A")).digest
    assert pickle.loads(pickle.dumps(vocabulary)).digest == vocabulary.digest
