"""Embedding vectors: pieces of long inputs, their mean, length 1, the wire's form. Pure."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from math import hypot, isfinite

from protocol.errors import TriremeError


def windows(whole: list[int], inner: list[int], size: int) -> list[list[int]]:
    """The tokens of one input in pieces of at most `size`, each with the special ones around it.

    Args:
        whole: its tokens with the special ones. inner: the same without them.
    """
    if len(whole) <= size:
        return [whole]
    room = size - (len(whole) - len(inner))
    places = range(len(whole) - len(inner) + 1)
    lead = next((at for at in places if whole[at : at + len(inner)] == inner), None)
    if lead is None or room < 1:
        return [whole[at : at + size] for at in range(0, len(whole), size)]
    head, tail = whole[:lead], whole[lead + len(inner) :]
    return [head + inner[at : at + room] + tail for at in range(0, len(inner), room)]


def check_finite(values: Sequence[float]) -> None:
    """Raises `bad_logits` for infinities and what is no number: JSON has neither."""
    if not all(map(isfinite, values)):
        raise TriremeError("bad_logits", "The model gave numbers that are not finite.")


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Of vectors of length 1."""
    return sum(a * b for a, b in zip(first, second, strict=True))


def finished(
    inputs: Sequence[list[list[int]]], vectors: Sequence[list[float]], dimensions: int | None
) -> list[list[float]]:
    """One vector of length 1 an input, from one vector a chunk (in order).

    Args:
        dimensions: keep the first so many; None keeps all.

    Raises:
        TriremeError: `invalid_value` for more dimensions than the vectors have; `bad_logits` for
            what is not finite.
    """
    if dimensions is not None and dimensions > len(vectors[0]):
        message = f"dimensions {dimensions} is more than this model's {len(vectors[0])}."
        raise TriremeError("invalid_value", message, param="dimensions")
    each: Iterator[list[float]] = iter(vectors)
    return [_unit(_mean(chunks, list(islice(each, len(chunks))))[:dimensions]) for chunks in inputs]


def _mean(chunks: Sequence[list[int]], vectors: Sequence[list[float]]) -> list[float]:
    """Weighted by the chunks' tokens."""
    if len(vectors) == 1:
        return vectors[0]
    total = sum(map(len, chunks))
    weights = [len(chunk) / total for chunk in chunks]
    columns = zip(*vectors, strict=True)
    return [sum(w * x for w, x in zip(weights, column, strict=True)) for column in columns]


def _unit(vector: list[float]) -> list[float]:
    norm = hypot(*vector) or 1.0
    check_finite([norm])
    return [value / norm for value in vector]


def to_base64(vector: Sequence[float]) -> str:
    """Little-endian float32, base64."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
