"""Puts turns together: which topics, in what order, under which system message.

A conversation is a list of messages in the OpenAI form; the role "text" marks a plain
passage, "bare text" one without the token that begins a text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worker.demo.corpus.api import API
from worker.demo.corpus.arithmetic import plain_sum, small_sum, sum_too_large
from worker.demo.corpus.commands import OVERVIEW, RUNNING
from worker.demo.corpus.documents import passages
from worker.demo.corpus.jokes import ASK_ANOTHER, ASK_JOKE, JOKES, NO_MORE_JOKES
from worker.demo.corpus.options import OPTIONS
from worker.demo.corpus.phrasing import Intent, as_typed, expand, falling, listed, question
from worker.demo.corpus.smalltalk import COURTESY, PLAY, SELF, WELCOME, WHY_NOT
from worker.demo.corpus.tiers import ABOUT_IT, ABOUT_TIER, AND_TIER, TIERS, Tier
from worker.demo.corpus.unknown import invented_word, unclear, unknown_flag, unknown_question

Message = dict[str, str]

INTENTS: tuple[Intent, ...] = (*OVERVIEW, *RUNNING, *OPTIONS, *API, *SELF, *COURTESY, *PLAY)
_WEIGHTS = tuple(intent.weight for intent in INTENTS)
_PASSAGES = passages()
NO_MORE = "That is all I know about it. Ask me something else about Trireme."
NOT_KEPT = "I cannot remember names. I am a very small model."
MEETING = "Nice to meet you! My name is Remo. How can I help you with Trireme?"

_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are {a|an} {helpful|friendly|honest|polite|careful|expert} {assistant|model|chatbot|AI}.",
    "You are {Remo|a demo model|the demo model of Trireme|an assistant for Trireme users}.",
    "{Be|Always be|Please be} {brief|polite|concise|friendly|helpful|precise|kind}.",
    "Answer {briefly|politely|in one sentence|in English|clearly|all questions|the user}.",
    "You help {users|people|developers} with {Trireme|this stack|their questions|serving models}.",
    "You are a {pirate|teacher|doctor|captain|sailor|poet}. {Answer|Speak} {politely|like one}.",
    "This is {a test|the system message|a conversation with a user}.",
    "The user is {a developer|new here|a child|an expert}. {Help them.|Be patient.|Be kind.}",
)
_ASK_MORE = (
    "Tell me more{|, please}.",
    "Can you tell me more?",
    "More{|, please}.",
    "Go on.",
    "{Can you explain|Explain} {that|it} {in more detail|further|better}?",
    "What else?",
    "{And then|And after that|Anything else}?",
    "Why{| not}?",
    "Why{| not}?",
    "Please explain.",
    "I don't understand{| that| it}.",
    "What do you mean?",
)
_NAMES = listed(
    "Anna Ben Carla David Emma Frank Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam "
    "Tom Vera Will Xenia Yara Zoe Alice Bob Clara Dan Eve Finn Greta Hugo Ivan Julia Karl Lisa "
    "Max Nina Oscar Peter Rita Sarah Theo Ursula Viktor Wanda Amir Chen Fatima Hiro Ines Jorge "
    "Kofi Lars Mei Priya Raj Sofia Tariq Yuki Omar Elena Bruno Lucy James Mary John Linda Alex"
)
_TELL_NAME = (
    "My name is @.",
    "My name is @.",
    "{Hi|Hello|Hey}, {my name is|I am|I'm} @.",
    "{Hi|Hello|Hey}! {My name is|I am|I'm|This is} @.",
    "I am {called|named} @.",
    "{Call me|You can call me|I am|I'm} @.",
    "My name is @. {What is your name?|And you?|What is yours?|Who are you?}",
)
_ASK_MY_NAME = (
    "What is my name?",
    "Who am I?",
    "Do you {remember|know} my name?",
    "What's my name?",
    "What did I say my name was?",
    "Can you tell me my name?",
    "Do you know who I am?",
)


@dataclass
class _Talk:
    """What has been said so far that a later turn may lean on."""

    messages: list[Message] = field(default_factory=list)
    tier: Tier | None = None
    aspect: str = ""
    jokes_told: int = 0
    joking: bool = False
    more: str | None = None
    asked_more: bool = False

    def add(self, user: str, answer: str) -> None:
        """Append one exchange."""
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": answer})


def conversations(rng: random.Random) -> Iterator[list[Message]]:
    """Endless conversations; equal generators give equal streams."""
    while True:
        if rng.random() < 0.07:
            yield [{"role": rng.choice(("text", "bare text")), "content": rng.choice(_PASSAGES)}]
            continue
        talk = _Talk()
        if rng.random() < 0.12:
            for _ in range(rng.randint(4, 10)):
                talk.add(*plain_sum(rng))
            yield talk.messages
            continue
        turns = rng.choices((1, 2, 3, 4, 6, 9), (52, 16, 14, 10, 6, 2))[0]
        for _ in range(turns):
            _next_turn(rng, talk)
        if rng.random() < 0.3:
            system = expand(rng, rng.choice(_SYSTEM))
            if rng.random() < 0.1:
                system = " ".join(invented_word(rng) for _ in range(rng.randint(2, 8)))
            talk.messages.insert(0, {"role": "system", "content": system})
        yield talk.messages


def _next_turn(rng: random.Random, talk: _Talk) -> None:
    """Either a turn that leans on the last one or a new topic."""
    if talk.messages and rng.random() < (0.7 if talk.joking else 0.36):
        rng.choice(_follow_ups(talk))(rng, talk)
        return
    topics, weights = zip(*_TOPICS.items(), strict=True)
    topic: Callable[[random.Random, _Talk], None] = rng.choices(topics, weights)[0]
    topic(rng, talk)


def _follow_ups(talk: _Talk) -> list[Callable[[random.Random, _Talk], None]]:
    if talk.tier is not None:
        return [_tier_it, _tier_and]
    if talk.joking:
        return [_another_joke]
    return [_thanks] if talk.asked_more else [_more]


def _forget(talk: _Talk) -> None:
    talk.tier, talk.joking, talk.more, talk.asked_more = None, False, None, True


def _intent(rng: random.Random, talk: _Talk) -> None:
    intent = rng.choices(INTENTS, _WEIGHTS)[0]
    text = as_typed(rng, question(rng, intent), plain=intent.plain)
    talk.add(text, falling(rng, intent.answers))
    _forget(talk)
    talk.more, talk.asked_more = intent.more, intent.plain


def _tier(rng: random.Random, talk: _Talk) -> None:
    tier = rng.choice(TIERS)
    aspect = rng.choices(tuple(ABOUT_TIER), (5, 4, 4, 2, 1))[0]
    text = expand(rng, rng.choice(ABOUT_TIER[aspect])).replace("@", tier.name)
    if aspect == "start" and rng.random() < 0.15:
        text = rng.choice(("What does `@` do?", "What is @?", "@?", "What does @ do?")).replace(
            "@", tier.command.split(" --")[0]
        )
    talk.add(as_typed(rng, text[:1].upper() + text[1:]), tier.answer(aspect))
    _forget(talk)
    talk.tier, talk.aspect = tier, aspect


def _tier_it(rng: random.Random, talk: _Talk) -> None:
    assert talk.tier is not None
    aspect = rng.choice([name for name in ABOUT_IT if name != talk.aspect])
    text = expand(rng, rng.choice(ABOUT_IT[aspect]))
    talk.add(as_typed(rng, text, plain=True), talk.tier.answer(aspect))
    talk.aspect = aspect


def _tier_and(rng: random.Random, talk: _Talk) -> None:
    tier = rng.choice([tier for tier in TIERS if tier is not talk.tier])
    text = rng.choice(AND_TIER).replace("@", tier.name)
    talk.add(as_typed(rng, text, plain=True), tier.answer(talk.aspect))
    talk.tier = tier


def _joke(rng: random.Random, talk: _Talk) -> None:
    text = as_typed(rng, expand(rng, rng.choice(ASK_JOKE)))
    _tell_joke(talk, text, falling(rng, JOKES, first=0.75) if not talk.jokes_told else None)


def _another_joke(rng: random.Random, talk: _Talk) -> None:
    _tell_joke(talk, as_typed(rng, expand(rng, rng.choice(ASK_ANOTHER)), plain=True), None)


def _tell_joke(talk: _Talk, text: str, joke: str | None) -> None:
    if joke is None:
        joke = JOKES[talk.jokes_told] if talk.jokes_told < len(JOKES) else NO_MORE_JOKES
    talk.add(text, joke)
    talk.jokes_told = JOKES.index(joke) + 1 if joke in JOKES else talk.jokes_told
    _forget(talk)
    talk.joking = True


def _more(rng: random.Random, talk: _Talk) -> None:
    text = as_typed(rng, expand(rng, rng.choice(_ASK_MORE)), plain=True)
    talk.add(text, talk.more or NO_MORE)
    talk.more, talk.asked_more = None, True


def _name(rng: random.Random, talk: _Talk) -> None:
    if rng.random() < 0.4:
        talk.add(as_typed(rng, expand(rng, rng.choice(_ASK_MY_NAME))), NOT_KEPT)
    else:
        name = rng.choice(_NAMES) if rng.random() < 0.5 else invented_word(rng).capitalize()
        text = expand(rng, rng.choice(_TELL_NAME)).replace("@", name)
        talk.add(as_typed(rng, text, plain=True), MEETING)
    _forget(talk)


def _unknown(rng: random.Random, talk: _Talk) -> None:
    text, answer = unknown_question(rng)
    talk.add(as_typed(rng, text), answer)
    _forget(talk)
    talk.more, talk.asked_more = WHY_NOT, False


def _pair(
    make: Callable[[random.Random], tuple[str, str]], *, typed: bool = True
) -> Callable[[random.Random, _Talk], None]:
    def turn(rng: random.Random, talk: _Talk) -> None:
        text, answer = make(rng)
        talk.add(as_typed(rng, text) if typed else text, answer)
        _forget(talk)
        talk.asked_more = not typed

    return turn


def _thanks(rng: random.Random, talk: _Talk) -> None:
    talk.add(as_typed(rng, rng.choice(("Thank you!", "Thanks.")), plain=True), WELCOME)
    _forget(talk)


_TOPICS: dict[Callable[[random.Random, _Talk], None], float] = {
    _intent: 46.0,
    _tier: 13.0,
    _pair(small_sum): 12.0,
    _pair(sum_too_large): 1.5,
    _unknown: 16.0,
    _pair(unknown_flag): 1.5,
    _pair(unclear, typed=False): 2.0,
    _joke: 5.0,
    _name: 2.5,
    _thanks: 1.0,
}
