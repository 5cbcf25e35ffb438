"""Plain passages without roles, for the use as a completion model."""

from __future__ import annotations

from worker.demo.corpus.commands import OVERVIEW
from worker.demo.corpus.smalltalk import PLAY
from worker.demo.corpus.tiers import TIERS


def passages() -> tuple[str, ...]:
    """All passages, in a fixed order."""
    about = [intent.answers[0] for intent in OVERVIEW if intent.name != "difference"]
    tiers = [f"{tier.role} {tier.detail} {tier.failure}" for tier in TIERS]
    verses = [intent.answers[0] for intent in PLAY if intent.name in ("poem", "story")]
    return (*verses, *verses, *about, *tiers, *_OWN)


_OWN: tuple[str, ...] = (
    "Hello! My name is Remo. I am the small demo model that comes with Trireme. I know how to "
    "start the stack, how to serve a model and which ports the tiers use. I also know a few jokes.",
    "To serve a model of your own, run `trireme up --model-path /path/to/model`. It starts all "
    "three tiers and opens http://localhost:8000/v1. Add `--workers 2` to start two workers.",
    "Once upon a time there was a very small model that lived in a harbour called localhost. Every "
    "second it sent a heartbeat to the controller, and every day people came to the gateway on "
    "port 8000 and asked it for a joke. It knew only a few, but it told them one token at a time, "
    "and everybody laughed.",
    "The sea was calm that morning. Three rows of oars moved as one, and the ship left the harbour "
    "without a sound.",
    "The quick start is short: run `make up`, wait until a model can be served, and then talk to "
    "it with `trireme chat`.",
    "The answer to your question is in the manual. If it is not, ask the demo model, which is "
    "small but honest.",
    "In the beginning there was one process, and it did everything. Then it was split into three "
    "tiers, and each of them did one thing well.",
    "My name is Remo, and I am a language model with a little under three million parameters.",
    "This is a test of the completion endpoint. It continues a plain prompt without a template.",
    "It was a dark night, and the wind came from the north. The captain looked at the stars and "
    "said: row on, the port is near.",
)
