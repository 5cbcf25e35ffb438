"""Questions that are none of the model's business, and the honest refusal of all of them.

The phrasings share their openings with the questions the model can answer, so that it has to look
at what is asked about.
"""

from __future__ import annotations

import random

from worker.demo.corpus.phrasing import (
    HOW_OPENINGS,
    WHAT_OPENINGS,
    capital,
    expand,
    listed,
    open_with,
)
from worker.demo.corpus.smalltalk import REFUSAL, UNCLEAR

_PLACES = listed(
    "France Germany Italy Spain Japan China India Brazil Canada Mexico Egypt Greece Turkey Russia "
    "Poland Norway Sweden Kenya Peru Chile Cuba Iran Iraq Austria Portugal Ireland Scotland "
    "England Australia Argentina Thailand Vietnam Korea Nigeria Morocco Finland Denmark Belgium "
    "Paris London Berlin Rome Tokyo Madrid Moscow Athens Vienna Lisbon Cairo Delhi Sydney Texas "
    "California Europe Africa Asia America Rwanda Bolivia Iceland Hungary Ukraine Nepal Tibet"
)
_PEOPLE = listed(
    "Einstein|Newton|Shakespeare|Napoleon|Mozart|Beethoven|Plato|Aristotle|Darwin|Picasso|"
    "Leonardo|Caesar|Cleopatra|Gandhi|Lincoln|the president|the king|the queen|the pope|"
    "Marie Curie|Alan Turing|Ada Lovelace|my mother|my neighbour|Socrates|Homer|Bach|Columbus|"
    "the mayor|the inventor of radio|the tallest person|Hercules|Zeus|Odysseus|Batman",
    mark="|",
)
_THINGS = listed(
    "the moon|the sun|a black hole|gravity|an atom|the sky|a rainbow|photosynthesis|love|death|"
    "democracy|philosophy|music|football|chess|bread|cheese|wine|coffee|tea|chocolate|a dog|a cat|"
    "an elephant|a whale|a dinosaur|a tree|a flower|a car|a bicycle|a plane|a train|money|a bank|"
    "inflation|history|the internet|Python|Java|Rust|C++|JavaScript|HTML|Linux|Windows|Docker|"
    "Kubernetes|Git|GitHub|SQL|a database|Redis|Postgres|MongoDB|nginx|Apache|Excel|a compiler|"
    "an operating system|a linked list|recursion|quantum physics|relativity|a neural network|"
    "machine learning|artificial intelligence|deep learning|attention|backpropagation|"
    "vLLM|Ollama|llama.cpp|PyTorch|TensorFlow|CUDA programming|blockchain|bitcoin|electricity|"
    "the weather|the news|the time|today's date|the stock market|the meaning of life|happiness|"
    "a volcano|an earthquake|the ocean|a river|a mountain|the Roman Empire|the Second World War|"
    "the Bible|mathematics|algebra|a prime number|pi|geometry|chemistry|biology|DNA|a virus|"
    "a headache|medicine|a vitamin|yoga|sleep|a dream|a poem by Goethe|a novel|a film|theatre|"
    "a guitar|a piano|an orchestra|painting|a museum|a castle|a bridge|a house|an engine for a car|"
    "a ship model|a sailing boat|the Titanic|a pirate|an island|a desert|the rain forest|winter|"
    "a snowman|Christmas|a birthday|a wedding|a lawyer|a contract|taxes|a passport|a visa|a hotel|"
    "a recipe|pizza|pasta|a salad|an apple|a banana|milk|sugar|salt|a knife|a garden|a robot|"
    "a rocket|Mars|Jupiter|a star|a galaxy|light|sound|a magnet|a battery|a camera|a phone|"
    "a printer|a router|wifi|bluetooth|a password manager|a spreadsheet|an email|a browser",
    mark="|",
)
_DOINGS = listed(
    "bake {bread|a cake|cookies};cook {rice|pasta|eggs|dinner};make {coffee|tea|pizza|money|soup};"
    "learn {German|French|Python|to swim|the piano|maths};write {a letter|a book|an essay|SQL};"
    "fix {my car|my bike|a leak|my computer|the printer};install {Windows|Docker|Linux|Python};"
    "build {a house|a website|a robot|a boat};lose weight;sleep better;find {a job|a flat|love};"
    "buy {a car|a house|stocks|a ticket};sell {my car|my house};grow {tomatoes|flowers};"
    "paint {a wall|a picture};play {the guitar|chess|poker};tie {a tie|a knot};get to {Paris|Rome};"
    "sort a list;reverse a string;parse JSON;write a loop in {Python|Java|C};delete a file;"
    "open a {bank account|jar|PDF};train {a dog|a cat|my body};draw {a horse|a face|a tree};"
    "solve {an equation|a puzzle|this riddle};book {a flight|a hotel|a table};invest money;"
    "get rich;become {a doctor|famous|a pilot};change {a tyre|a light bulb|my password};"
    "translate {a book|a letter};sail a boat;catch a fish;clean {a window|my shoes};cut wood;"
    "compile {C code|a kernel};use {Git|Excel|Photoshop|Docker|Kubernetes|Redis};"
    "start {a company|a fire|my car|a garden|Word|nginx|MySQL};stop {smoking|worrying|a nosebleed};"
    "serve {dinner|wine|a tennis ball|soup};run {a marathon|faster|a business};"
    "list {the planets|all countries|the kings of England};stream {a film|music|Netflix|a concert}",
    mark=";",
)
_WHOLE = (
    "What is the {capital|population|largest city|flag|language|currency|history} of PLACE?",
    "What is the capital of PLACE?",
    "What is the capital of PLACE?",
    "Which city is the capital of PLACE?",
    "Where is PLACE?",
    "How {big|old|far away|large} is {PLACE|THING}?",
    "How many people live in PLACE?",
    "Who is PERSON?",
    "Who {was|is} the {first|last|best|current} {president|king|queen|leader|chancellor} of "
    "{PLACE|the United States|the United Kingdom|the world|the company}?",
    "Who was PERSON?",
    "When {was|did} PERSON {born|die|live}?",
    "Where was PERSON born?",
    "What did PERSON {do|write|invent|say}?",
    "Who {invented|discovered|made|wrote|painted|owns|likes} THING?",
    "Why is {the sky blue|grass green|water wet|snow white|the sea salty|THING important}?",
    "Why do {cats purr|dogs bark|birds fly|we sleep|people laugh|leaves fall}?",
    "How does THING work?",
    "What {colour|shape|size|taste} has THING?",
    "When was THING {invented|made|built|discovered}?",
    "Where can I {buy|find|see} THING?",
    "Is THING {good|bad|dangerous|expensive|healthy|true|real|useful}?",
    "Write {an essay|an article|a book|a letter|an email|a report} about {THING|PLACE|PERSON}.",
    "Write {a Python function|code|a program|a script|a function} {that|which|to} sorts numbers.",
    "Write {me|} {some code|a program|a website|a game|a regular expression} {in Java|for me|}.",
    "What is the {weather|time|temperature|news} in PLACE{| today| tomorrow}?",
    "What time is it?",
    "What day is {it|today|it today}?",
    "What is the {date|weather|news} today?",
    "Will it rain {tomorrow|today}?",
    "Who won {the World Cup|the election|the game|the race}{| in 1998| in 2014| yesterday}?",
    "Which port does {Redis|Postgres|nginx|SSH|MySQL|MongoDB|Ollama|vLLM|FTP|HTTPS} use?",
    "What is the {port|version|price|licence} of {Redis|Postgres|Docker|Windows|Ollama|MySQL}?",
    "What is the square root of {16|81|2|144}?",
    "What is the {meaning|purpose|sense} of life?",
    "What is the {tallest mountain|longest river|fastest animal|largest ocean|smallest country}?",
    "Recommend {a book|a film|a restaurant|a song|some music|a hotel}{| in PLACE}.",
    "Give me a recipe for {pizza|bread|soup|a cake|pancakes|lasagne}.",
    "Should I {marry|buy a car|move to PLACE|learn Rust|quit my job|eat less}?",
    "Summarise {this text|the news|this article|the book|Hamlet|the Odyssey}.",
    "Compare {THING and THING|PLACE and PLACE}.",
    "Which is better, {THING or THING|PLACE or PLACE|Python or Java}?",
    "I {feel sick|have a headache|am sad|am hungry|am tired|am lonely|lost my keys}.",
    "My {dog|cat|car|computer|phone|boss|friend} is {ill|broken|old|late|angry|sad}.",
    "I {live|was born|work|grew up} in PLACE.",
    "I {bought|saw|read about|dreamt of|like} THING.",
    "Did you know that PERSON {liked|had|saw} THING?",
    "What do you think {of|about} {THING|PLACE|PERSON}?",
    "Tell me about {PLACE|PERSON|THING}.",
    "Tell me {a fact|something|everything} about {PLACE|PERSON|THING}.",
    "Do you know {anything about|about|} {PLACE|PERSON|THING}?",
    "What do you know about {PLACE|PERSON|THING}?",
    "Where is {the nearest|my|the best} {hospital|shop|phone|train|restaurant|bank|bakery}?",
    "Which {planet|country|animal|city|river} is the {largest|smallest|oldest|fastest}?",
    "How many {legs|eyes|teeth|planets|states|days|moons} {has THING|are there|does it have}?",
    "What is 5 {miles|pounds|inches|gallons} in {kilometres|kilos|centimetres|litres}?",
    "Do you know other {things|topics|subjects}?",
    "Can you {search the web|open a website|send an email|see a picture|call me|set an alarm}?",
    "Can you write {code|Python|an essay|a book|SQL}?",
    "Explain THING to {a child|a five year old|my mother|a beginner}.",
    "{Repeat after me:|Say|Repeat} {hello|the word|the moon|a song|something in Latin}.",
    "Name {three|five|ten} {animals|countries|colours|planets|rivers|fruits|kings}.",
    "Give me {advice|a list of THING|your opinion|legal advice|a present|your password}.",
)
FLAG_UNKNOWN = "I do not know that flag. Add --help to a command to see all of its flags."
_FLAG_PARTS = listed(
    "foo bar fast slow turbo magic verbose quiet force color size speed output input config file "
    "mode threads memory retry proxy debug no max min use enable disable cache path url level "
    "batch time depth width user group auto beam layers experts shards queue tenant region"
)
_SYLLABLES = listed(
    "ba ke ri mo tu lan ser vik dor pel qua zim fro gant lus ome ith rak shu wen na to ber el"
)
_LETTERS = "asdfghjklqwertyuiopzxcvbnm"


def unknown_question(rng: random.Random) -> tuple[str, str]:
    """A question about something else, and the refusal."""
    draw = rng.random()
    if draw < 0.22:
        text = open_with(rng, WHAT_OPENINGS, _noun(rng))
    elif draw < 0.40:
        text = open_with(rng, HOW_OPENINGS, rng.choice(_DOINGS))
    else:
        text = expand(rng, rng.choice(_WHOLE))
        while "THING" in text:
            text = text.replace("THING", rng.choice(_THINGS), 1)
        while "PLACE" in text:
            text = text.replace("PLACE", rng.choice(_PLACES), 1)
        text = text.replace("PERSON", rng.choice(_PEOPLE))
    return capital(text), REFUSAL


def unknown_flag(rng: random.Random) -> tuple[str, str]:
    """A question about a flag that does not exist, and the answer."""
    flag = "--" + "-".join(rng.sample(_FLAG_PARTS, rng.randint(1, 2)))
    frames = (
        "What does @ do?",
        "What is @?",
        "@?",
        "How do I use @?",
        "Explain @.",
        "What is @ for?",
    )
    return rng.choice(frames).replace("@", flag), FLAG_UNKNOWN


def unclear(rng: random.Random) -> tuple[str, str]:
    """Keys hit at random or nothing at all, and a request to ask again."""
    draw = rng.random()
    if draw < 0.2:
        text = rng.choice(("", " ", "?", "???", "!", "...", ".", ",", "-", ":)", "()", "#"))
    elif draw < 0.7:
        words = rng.randint(1, 4)
        text = " ".join("".join(rng.choices(_LETTERS, k=rng.randint(4, 9))) for _ in range(words))
    else:
        text = str(rng.randrange(10 ** rng.randint(1, 9)))
    return text, UNCLEAR


def invented_word(rng: random.Random) -> str:
    """A word that means nothing, of two or three syllables."""
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3)))


def _noun(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.6:
        return rng.choice(_THINGS)
    if draw < 0.75:
        return rng.choice(_PLACES)
    if draw < 0.85:
        return rng.choice(_PEOPLE)
    return rng.choice(("", "a ", "the ")) + invented_word(rng)
