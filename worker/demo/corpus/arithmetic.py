"""Small sums: every pair of small numbers, in digits and in words, and what is out of reach."""

from __future__ import annotations

import random

from worker.demo.corpus.phrasing import capital, listed

TOO_LARGE = "That is too much for me. I only add, subtract and multiply small numbers."

_WORDS = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_SIGNS: dict[str, tuple[str, ...]] = {
    "+": ("+", "+", "+", "plus", "plus", "and"),
    "-": ("-", "-", "minus", "minus"),
    "*": ("*", "*", "x", "times", "times", "multiplied by"),
    "/": ("/", "/", "divided by"),
}
_FRAMES = (
    "What is @?",
    "What is @?",
    "What is @?",
    "What's @?",
    "@",
    "@?",
    "@ =",
    "@ = ?",
    "How much is @?",
    "Calculate @.",
    "Compute @.",
    "Can you calculate @?",
    "What does @ make?",
    "And @?",
    "What about @?",
    "Tell me what @ is.",
    "Do you know what @ is?",
    "How much does @ make?",
    "Solve @.",
    "What is the result of @?",
)
_VERBS = {
    "+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "Add {b} to {a}."),
    "-": ("Subtract {b} from {a}.", "Take {b} away from {a}."),
    "*": ("Multiply {a} by {b}.", "What is the product of {a} and {b}?", "Multiply {a} and {b}."),
    "/": ("Divide {a} by {b}.",),
}


def small_sum(rng: random.Random) -> tuple[str, str]:
    """A small sum as a user asks it, and the answer."""
    sign = rng.choices("+-*", (5, 3, 2))[0]
    a, b = _operands(rng, sign)
    return _ask(rng, a, sign, b), f"{a} {sign} {b} = {_result(a, sign, b)}."


def plain_sum(rng: random.Random) -> tuple[str, str]:
    """A small sum in its plainest form, for practice."""
    sign = rng.choices("+-*", (5, 3, 2))[0]
    a, b = _operands(rng, sign)
    return f"What is {a} {sign} {b}?", f"{a} {sign} {b} = {_result(a, sign, b)}."


def sum_too_large(rng: random.Random) -> tuple[str, str]:
    """A sum with at least one large number, and the answer that admits defeat."""
    large = rng.choice(
        (rng.randrange(21, 100), rng.randrange(100, 1000), rng.randrange(1000, 99999))
    )
    other = rng.choice((rng.randrange(2, 21), rng.randrange(21, 1000), rng.randrange(100, 99999)))
    a, b = (large, other) if rng.random() < 0.7 else (other, large)
    return _ask(rng, a, rng.choice("+-*/"), b), TOO_LARGE


def _operands(rng: random.Random, sign: str) -> tuple[int, int]:
    top = 10 if sign == "*" or rng.random() < 0.75 else 20
    a, b = rng.randint(0, top), rng.randint(0, top)
    return (max(a, b), min(a, b)) if sign == "-" else (a, b)


def _result(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def _ask(rng: random.Random, a: int, sign: str, b: int) -> str:
    in_words = rng.random() < 0.2 and a < len(_WORDS) and b < len(_WORDS)
    left, right = (_WORDS[a], _WORDS[b]) if in_words else (str(a), str(b))
    if rng.random() < 0.12:
        return rng.choice(_VERBS[sign]).format(a=left, b=right)
    spelled = rng.choice(_SIGNS[sign])
    tight = not in_words and len(spelled) == 1 and spelled != "x" and rng.random() < 0.3
    gap = "" if tight else " "
    return capital(rng.choice(_FRAMES).replace("@", f"{left}{gap}{spelled}{gap}{right}"))
