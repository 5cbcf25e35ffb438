from __future__ import annotations

import base64
import struct

import pytest

from protocol.errors import TriremeError
from worker.embedding import chunked, finished, to_base64


def test_long_inputs_are_cut_at_the_context() -> None:
    assert chunked([[1, 2, 3], [4]], 2) == [[[1, 2], [3]], [[4]]]


def test_chunks_are_averaged_by_their_tokens() -> None:
    (vector,) = finished([[[1, 2, 3], [4]]], [[4.0, 0.0], [0.0, 4.0]], None)
    assert vector == pytest.approx([3 / 10**0.5, 1 / 10**0.5])


def test_vectors_have_length_one_also_when_cut() -> None:
    assert finished([[[1]]], [[3.0, 4.0, 9.0]], 2) == [pytest.approx([0.6, 0.8])]


def test_a_zero_vector_stays_zero() -> None:
    assert finished([[[1]]], [[0.0, 0.0]], None) == [[0.0, 0.0]]


def test_vectors_belong_to_their_inputs() -> None:
    vectors = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert finished([[[1], [2]], [[3]]], vectors, None) == [[1.0, 0.0], [0.0, 1.0]]


def test_more_dimensions_than_there_are_is_refused() -> None:
    with pytest.raises(TriremeError) as caught:
        finished([[[1]]], [[1.0]], 2)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "dimensions")


def test_base64_is_little_endian_float32() -> None:
    assert base64.b64decode(to_base64([1.0, -2.5])) == struct.pack("<2f", 1.0, -2.5)
