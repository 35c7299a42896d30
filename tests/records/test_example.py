from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from concerto_tf.records.example import BytesColumn, encode, varint

INT64 = st.integers(-(2**63), 2**63 - 1)


def column(strings: list[bytes]) -> BytesColumn:
    offsets = np.cumsum([0, *map(len, strings)])
    return BytesColumn(np.frombuffer(b"".join(strings), np.uint8), offsets)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(INT64, st.binary(max_size=300)), max_size=5), st.randoms())
def test_is_what_tensorflow_reads(cells: list[tuple[int, bytes]], random) -> None:
    order = list(range(len(cells)))
    random.shuffle(order)
    integers = {"row": np.array([number for number, _ in cells], np.int64)}
    strings = {"genes": column([string for _, string in cells])}
    messages = list(encode(np.array(order, int), integers, strings))
    for message, i in zip(messages, order, strict=True):
        number, raw = cells[i]
        feature = tf.train.Example.FromString(message).features.feature
        assert sorted(feature) == ["genes", "row"]
        assert list(feature["row"].int64_list.value) == [number]
        assert list(feature["genes"].bytes_list.value) == [raw]


def test_same_bytes_as_tensorflow_for_one_feature() -> None:
    # With several features the order of the map is free; with one there is nothing to choose.
    for raw in (b"", b"AAAC-1", bytes(5000)):
        value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[raw]))
        expected = tf.train.Example(features=tf.train.Features(feature={"cell": value}))
        assert list(encode(np.array([0]), {}, {"cell": column([raw])})) == [
            expected.SerializeToString()
        ]
    for number in (0, 127, 128, -1, 2**40):
        value = tf.train.Feature(int64_list=tf.train.Int64List(value=[number]))
        expected = tf.train.Example(features=tf.train.Features(feature={"label/type": value}))
        assert list(encode(np.array([0]), {"label/type": np.array([number])}, {})) == [
            expected.SerializeToString()
        ]


@pytest.mark.parametrize(
    ("number", "digits"), [(0, "00"), (127, "7f"), (128, "8001"), (-1, "ffffffffffffffffff01")]
)
def test_varint(number: int, digits: str) -> None:
    assert varint(number).hex() == digits


def test_content_of_wider_dtypes_is_taken_as_bytes() -> None:
    values = np.array([1, 2, 300], "<u2")
    wide = BytesColumn(values, np.array([0, 4, 6]))
    messages = list(encode(np.array([1, 0]), {}, {"values": wide}))
    read = [
        tf.train.Example.FromString(m).features.feature["values"].bytes_list.value[0]
        for m in messages
    ]
    assert read == [values[2:].tobytes(), values[:2].tobytes()]
