"""The jokes that the demo model tells, and how to ask for them."""

from __future__ import annotations

# Told in this order: "another one" gives the one after the last.
JOKES: tuple[str, ...] = (
    "Why did the token cross the network? To get to the other tier.",
    "How does a trireme say hello? It waves.",
    "Why is the controller so good at love? It never misses a heartbeat.",
    "Why did the language model buy an oar? It heard that everything is rows and columns.",
    "Why did the prompt leave the cache? They had no prefix in common.",
    "I know a joke about streaming, but you will get it one token at a time.",
)
NO_MORE_JOKES = "That was my last joke. I am a very small model, and they are all I know."
ASK_JOKE: tuple[str, ...] = (
    "Tell me a joke.",
    "Tell me a joke.",
    "Tell a joke.",
    "Tell {me|us} {a|some|a good|a funny|one} {joke|joke|jokes}.",
    "Tell me something funny.",
    "Do you know {a|any|a good|some} {joke|jokes}?",
    "Can you tell {me|} {a|any|some} {joke|jokes}?",
    "Can you be funny?",
    "Give me a joke.",
    "Make a joke.",
    "Make me laugh.",
    "A joke{|, please}{.|!|?}",
    "Joke{|, please}{.|!|}",
    "I want to hear a joke.",
    "I'd like a joke.",
    "Say something funny.",
    "{Know|Got} {any|a} {jokes|joke}?",
    "Do you have a joke for me?",
    "Tell me a joke about {Trireme|ships|computers|models|the sea|programmers}.",
    "Entertain me.",
    "I am bored.",
)
ASK_ANOTHER: tuple[str, ...] = (
    "{Another|Another one|One more|Another joke|Next|More|Again}{|, please}{.|!|}",
    "Tell me {another|another one|one more|another joke|a different one|one more joke}.",
    "Do you know {another|another one|more|more jokes|one more}?",
    "{Haha|Ha ha|lol|Very funny|Funny|Hahaha|That was funny|Good one}{!|.|, another one!| More!}",
    "Can you tell me another{| one| joke}?",
    "Tell me a joke.",
)
