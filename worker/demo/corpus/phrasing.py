"""How a user may phrase one thing: templates, sentence openings, spelling noise.

Pure text and a random generator that is passed in; knows nothing of any particular topic.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

_CHOICE = re.compile(r"\{([^{}]*)\}")

# Openings for a verb phrase ("serve my own model"); the end mark follows the bar.
HOW_OPENINGS: tuple[str, ...] = (
    "How do I @?",
    "How do I @?",
    "How do I @?",
    "How can I @?",
    "How can I @?",
    "How would I @?",
    "How should I @?",
    "How does one @?",
    "How do you @?",
    "How do we @?",
    "How to @?",
    "How could I @?",
    "What do I do to @?",
    "What do I {need|have|type|run} to @?",
    "What is the {command|way|best way|easiest way} to @?",
    "Which command do I use to @?",
    "Can I @?",
    "Can you {show|tell} me how to @?",
    "Could you {show|explain to} me how to @?",
    "Please {show|tell} me how to @.",
    "{Show|Tell} me how to @.",
    "Explain how to @.",
    "I {want|need|would like} to @.",
    "I'd like to @.",
    "I want to @, how?",
    "Is it possible to @?",
    "Help me @.",
    "I am trying to @.",
    "I don't know how to @.",
)

# Openings for a noun phrase ("the controller").
WHAT_OPENINGS: tuple[str, ...] = (
    "What is @?",
    "What is @?",
    "What is @?",
    "What's @?",
    "What exactly is @?",
    "What does @ mean?",
    "What do you mean by @?",
    "Explain @.",
    "Explain @ to me.",
    "Explain @ in simple terms.",
    "Describe @.",
    "Define @.",
    "Tell me about @.",
    "Tell me something about @.",
    "Tell me what @ is.",
    "Please explain @.",
    "Can you explain @?",
    "Could you describe @?",
    "Can you tell me what @ is?",
    "Do you know what @ is?",
    "Do you know @?",
    "What do you know about @?",
    "What can you tell me about @?",
    "Give me {an overview|a short description|a summary} of @.",
    "I want to know about @.",
    "I would like to understand @.",
    "I don't understand @.",
    "What about @?",
    "@?",
)

_LEADS = (
    "Hi, ",
    "Hi! ",
    "Hello, ",
    "Hello! ",
    "Hello! ",
    "Hey, ",
    "Good morning! ",
    "Please, ",
    "Excuse me, ",
    "Sorry, ",
    "Quick question: ",
    "Question: ",
    "Ok, ",
    "OK. ",
    "So, ",
    "And ",
    "Now, ",
    "Well, ",
    "Tell me: ",
    "One more question: ",
    "Can you help me? ",
    "I have a question. ",
)
_TAILS = (
    " Thanks!",
    " Thank you.",
    " Please help.",
    " Please answer.",
    " I am new here.",
    " I have no idea.",
    " Be brief.",
    " Answer in one sentence.",
)
_SWAPS = (
    ("what is", "what's"),
    ("what is", "whats"),
    ("do not", "don't"),
    ("i am", "i'm"),
    ("i would", "i'd"),
    ("you are", "you're"),
    ("please", "pls"),
    ("are", "r"),
    ("you", "u"),
    ("your", "ur"),
)


@dataclass(frozen=True)
class Intent:
    """One thing a user may want and the answer to it.

    `ask` holds whole sentences, `how` verb phrases, `what` noun phrases; all are templates for
    `expand`. `answers` come in falling likelihood. `more` answers "tell me more".
    """

    name: str
    answers: tuple[str, ...]
    ask: tuple[str, ...] = ()
    how: tuple[str, ...] = ()
    what: tuple[str, ...] = ()
    more: str | None = None
    weight: float = 1.0
    plain: bool = False  # small talk takes no "Quick question:" in front

    def __post_init__(self) -> None:
        if not self.answers or not (self.ask or self.how or self.what):
            raise ValueError(f"intent {self.name!r} needs an answer and a way to ask for it")


def listed(text: str, mark: str = " ") -> tuple[str, ...]:
    """The parts of a text between the marks."""
    return tuple(text.split(mark))


def expand(rng: random.Random, template: str) -> str:
    """Replace every `{a|b|c}` (nesting allowed) by one of its choices."""
    while True:
        found = _CHOICE.search(template)
        if found is None:
            return re.sub(r"  +", " ", template).strip()
        choice = rng.choice(found.group(1).split("|"))
        template = template[: found.start()] + choice + template[found.end() :]


def open_with(rng: random.Random, openings: Sequence[str], phrase: str) -> str:
    """Put a phrase template into one of the openings."""
    return expand(rng, rng.choice(openings).replace("@", phrase))


def falling(rng: random.Random, choices: Sequence[str], first: float = 0.7) -> str:
    """The first choice with probability `first`, otherwise one of the others."""
    if len(choices) == 1 or rng.random() < first:
        return choices[0]
    return rng.choice(choices[1:])


def question(rng: random.Random, intent: Intent) -> str:
    """One clean phrasing of the intent, beginning with a capital letter."""
    kinds = [kind for kind in ("ask", "ask", "how", "what") if getattr(intent, kind)]
    kind = rng.choice(kinds)
    if kind == "ask":
        text = expand(rng, rng.choice(intent.ask))
    elif kind == "how":
        text = open_with(rng, HOW_OPENINGS, rng.choice(intent.how))
    else:
        text = open_with(rng, WHAT_OPENINGS, rng.choice(intent.what))
    return capital(text)


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def as_typed(rng: random.Random, text: str, *, plain: bool = False) -> str:
    """The text as a hurried user may type it: case, end marks, leads, abbreviations, slips."""
    if not plain:
        if rng.random() < 0.16:
            lead = rng.choice(_LEADS)
            text = lead + (text if lead[-2] in "!.?:" else text[:1].lower() + text[1:])
        if rng.random() < 0.06:
            text += rng.choice(_TAILS)
    draw = rng.random()
    if draw < 0.28:
        text = text.lower()
    elif draw < 0.31:
        text = text.upper()
    if rng.random() < 0.08:
        old, new = rng.choice(_SWAPS)
        text = re.sub(rf"\b{old}\b", new, text, flags=re.IGNORECASE)
    if rng.random() < 0.07:
        text = _slip(rng, text)
    draw = rng.random()
    if draw < 0.24:
        text = text.rstrip("?.!")
    elif draw < 0.30:
        text = text.rstrip("?.!") + rng.choice(["??", "!", "...", " ?", "?!", "."])
    return text


def _slip(rng: random.Random, text: str) -> str:
    """One typing slip inside a longer word: letters swapped, lost or doubled."""
    spots = [m for m in re.finditer(r"[A-Za-z]{5,}", text)]
    if not spots:
        return text
    spot = rng.choice(spots)
    at = rng.randrange(spot.start() + 1, spot.end() - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at] + text[at:]
