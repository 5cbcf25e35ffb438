"""What the clients ask, what an answer consists of, and how two answers differ. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Question:
    """One request body, without `stream`."""

    name: str
    body: dict[str, Any]

    def asked(self, stream: bool) -> dict[str, Any]:
        if not stream:
            return self.body
        return {**self.body, "stream": True, "stream_options": {"include_usage": True}}


@dataclass
class Choice:
    """All that one choice gave."""

    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Answer:
    """The fold of a stream, or a plain answer."""

    choices: list[Choice]
    usage: dict[str, Any] | None = None
    fingerprint: str | None = None

    @classmethod
    def empty(cls, n: int) -> Answer:
        return cls([Choice() for _ in range(n)])

    @classmethod
    def of_plain(cls, body: dict[str, Any]) -> Answer:
        choices = [
            Choice(
                choice["message"]["content"],
                (choice["logprobs"] or {}).get("content") or [],
                choice["finish_reason"],
            )
            for choice in sorted(body["choices"], key=lambda one: one["index"])
        ]
        return cls(choices, body["usage"], body.get("system_fingerprint"))

    def add(self, chunk: dict[str, Any]) -> bool:
        """Take a chunk of a stream; whether it brought text."""
        self.usage = chunk.get("usage") or self.usage
        self.fingerprint = chunk.get("system_fingerprint") or self.fingerprint
        brought = False
        for piece in chunk["choices"]:
            choice = self.choices[piece["index"]]
            text = piece["delta"].get("content") or ""
            brought = brought or bool(text)
            choice.text += text
            choice.logprobs += (piece.get("logprobs") or {}).get("content") or []
            choice.finish_reason = piece["finish_reason"] or choice.finish_reason
        return brought


@dataclass(frozen=True)
class Difference:
    """How an answer differs from the undisturbed one; tokens are its words."""

    missing: int = 0
    extra: int = 0
    other: str = ""

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.other)


def difference(got: Answer, whole: Answer) -> Difference:
    """Tokens that are missing, tokens too many, and whatever else is not equal."""
    missing = extra = 0
    other: list[str] = []
    for index, (one, expected) in enumerate(zip(got.choices, whole.choices, strict=True)):
        if one.text != expected.text:
            has, wants = Counter(one.text.split()), Counter(expected.text.split())
            lost, more = (wants - has).total(), (has - wants).total()
            missing, extra = missing + lost, extra + more
            if not lost and not more:
                other.append(f"choice {index}: the order of its tokens")
        if one.logprobs != expected.logprobs:
            other.append(f"choice {index}: log probabilities")
        if one.finish_reason != expected.finish_reason:
            wanted = expected.finish_reason
            other.append(f"choice {index}: finish_reason {one.finish_reason}, not {wanted}")
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        had, wants_ = (got.usage or {}).get(name), (whole.usage or {}).get(name)
        if had != wants_:
            other.append(f"usage: {name} {had}, not {wants_}")
    if got.fingerprint != whole.fingerprint:
        other.append(f"system_fingerprint {got.fingerprint}, not {whole.fingerprint}")
    return Difference(missing, extra, "; ".join(other))


SCHEMA = {
    "type": "object",
    "properties": {
        "names": {
            "type": "array",
            "items": {"type": "string", "minLength": 6, "maxLength": 16},
            "minItems": 16,
            "maxItems": 24,
        },
        "days": {"enum": [1, 2, 3]},
    },
    "required": ["names", "days"],
    "additionalProperties": False,
}
OBJECT = {"type": "json_schema", "json_schema": {"name": "o", "schema": SCHEMA, "strict": True}}
ABOUT = ("the sea", "the gateway", "a lighthouse", "nothing")


def questions(model: str) -> list[Question]:
    """What is asked of that model."""
    return simulated(model) if model == "sim" else generated(model)


def generated(model: str) -> list[Question]:
    """For a real model: greedy and seeded, with and without a JSON schema, some 200 tokens each."""
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("greedy", {"temperature": 0, "max_tokens": 200, "ignore_eos": True}),
        ("seeded", {"temperature": 1.0, "max_tokens": 200, "ignore_eos": True}),
        ("greedy, schema", {"temperature": 0, "response_format": OBJECT}),
        ("seeded, schema", {"temperature": 1.0, "response_format": OBJECT}),
    )
    return [
        Question(
            f"{name}, about {about}",
            {
                "model": model,
                "messages": [{"role": "user", "content": f"Tell me about {about}."}],
                "seed": seed,
                **fields,
            },
        )
        for seed, about in enumerate(ABOUT)
        for name, fields in kinds
    ]


def simulated(model: str, count: int = 18) -> list[Question]:
    """Chat requests of six kinds; none sets a length, so that a wrong model shows by it too."""
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("seeded", {"temperature": 0.9}),
        ("greedy", {"temperature": 0}),
        ("two choices", {"temperature": 1.0, "n": 2}),
        ("log probabilities", {"temperature": 0.7, "logprobs": True, "top_logprobs": 2}),
        ("stop strings", {"temperature": 1.0, "stop": ["zephyr yellow", "wonder amber"]}),
        ("penalties", {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.5}),
    )
    made = []
    for number in range(count):
        name, fields = kinds[number % len(kinds)]
        content = f"Question {number}: what is behind the hills?"
        made.append(
            Question(
                f"{name} {number}",
                {
                    "model": model,
                    "messages": [{"role": "user", "content": content}],
                    "seed": 1000 + number,
                    **fields,
                },
            )
        )
    return made
