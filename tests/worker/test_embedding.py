from __future__ import annotations

import base64
import struct

import pytest

from protocol.errors import TriremeError
from worker.embedding import cosine, finished, to_base64, windows


def test_long_inputs_are_cut_at_the_context() -> None:
    assert windows([1, 2, 3], [1, 2, 3], 2) == [[1, 2], [3]]
    assert windows([4], [4], 2) == [[4]]


def test_each_piece_has_the_special_tokens() -> None:
    whole, inner = [101, 1, 2, 3, 4, 5, 102], [1, 2, 3, 4, 5]
    assert windows(whole, inner, 7) == [whole]
    assert windows(whole, inner, 4) == [[101, 1, 2, 102], [101, 3, 4, 102], [101, 5, 102]]


def test_a_context_too_small_for_special_tokens_is_filled_all_the_same() -> None:
    assert windows([101, 1, 102], [1], 2) == [[101, 1], [102]]


def test_a_cosine_of_unit_vectors() -> None:
    assert cosine([0.6, 0.8], [1.0, 0.0]) == pytest.approx(0.6)


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
