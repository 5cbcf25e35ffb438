"""Intents about the HTTP API and the ideas behind serving a model."""

from __future__ import annotations

from worker.demo.corpus.phrasing import Intent

API: tuple[Intent, ...] = (
    Intent(
        "stream",
        (
            'Add `"stream": true` to your request. The answer then comes piece by piece as '
            "server-sent events and ends with `data: [DONE]`.",
        ),
        ask=(
            "How do I stream?",
            "How do I stream?",
            "How does streaming work?",
            "Can I stream{| the answer| answers| tokens}?",
            "Does {it|Trireme|the API|the gateway} {support|do} streaming?",
            "Do you support {streaming|streams|server-sent events|SSE}?",
            "How does a stream end?",
            "What is data: [DONE]?",
        ),
        how=(
            "stream",
            "stream {the|an|my} {answer|answers|response|responses|output|tokens|reply}",
            "stream {answers|responses|tokens|the output}",
            "{use|enable|turn on|get|switch on} streaming",
            "get {a stream|the answer token by token|tokens one by one|the answer piece by piece}",
            "{receive|get|see} {the|} {tokens|words|answer} {as they come|as it comes|at once}",
            "{receive|get|see} {the tokens|the words} while they are {generated|written|made}",
        ),
        what=("streaming", "a stream", "server-sent events", "the stream option"),
        weight=2.5,
    ),
    Intent(
        "curl",
        (
            "Try `curl http://localhost:8000/v1/chat/completions -H 'Content-Type: "
            'application/json\' -d \'{"model": "NAME", "messages": [{"role": "user", "content": '
            '"Hello!"}]}\'`. GET /v1/models tells you the NAME.',
        ),
        ask=(
            "Give me {a curl|an} example.",
            "Show me {a curl command|an example|a curl example|an example request}.",
            "Do you have {a curl command|an example|a curl example}?",
            "What does a request look like?",
            "curl?",
            "curl example?",
        ),
        how=(
            "{use|call|ask|test} {the API|it|the gateway} with curl",
            "{send|make} {a|my first|an HTTP} request",
            "call the {API|gateway|chat endpoint}",
            "use {the API|curl}",
        ),
        weight=1.5,
    ),
    Intent(
        "python client",
        (
            'Use the openai package: `client = OpenAI(base_url="http://localhost:8000/v1", '
            'api_key="none")`, and then `client.chat.completions.create(...)`.',
        ),
        ask=(
            "Is there a Python {client|example|library|SDK}?",
            "Can I use {the OpenAI client|the openai package|Python|OpenAI's client}?",
            "Show me a Python example.",
            "Which client {can|should} I use?",
            "Does the {openai|OpenAI} {client|package|SDK|library} work?",
        ),
        how=(
            "use {it|Trireme|the API} {from|in|with} Python",
            "{call|ask|use} {it|the gateway|the model} from Python",
            "use the {openai|OpenAI} {client|package|library|SDK}",
            "connect {a|my} {Python|} {client|program|app}",
            "connect my {client|program|app|application}",
        ),
        what=("the Python client", "the OpenAI client"),
        weight=1.5,
    ),
    Intent(
        "openai compatible",
        ("Yes. The gateway is OpenAI-compatible: point your client at http://localhost:8000/v1.",),
        ask=(
            "Is {it|Trireme|the API|the gateway} OpenAI-compatible?",
            "Is {it|Trireme|the API|the gateway} compatible with OpenAI{|'s API}?",
            "Is this an OpenAI API?",
            "Does {it|Trireme} {speak|have|offer} {the|an} OpenAI API?",
            "Can I use it like {OpenAI|the OpenAI API}?",
            "Does it work with OpenAI clients?",
        ),
    ),
    Intent(
        "url",
        ("The API is at http://localhost:8000/v1.",),
        ask=(
            "{What|Which} is the {URL|base URL|address|endpoint} {|of the API|of Trireme}?",
            "Where is the API?",
            "Which {URL|base URL|address|base_url} {do I use|should I use|do I need}?",
            "What {URL|base URL|address|base_url} {do I use|should I use|do I need}?",
            "At which address {is the API|can I reach you}?",
            "{URL|Base URL|API address}?",
            "Where can I reach the API?",
        ),
        what=("the base URL", "the API address"),
        weight=1.5,
    ),
    Intent(
        "models route",
        ("GET http://localhost:8000/v1/models lists the models that are being served.",),
        ask=(
            "Which models are {served|being served|running|available|loaded}?",
            "What models are {served|running|available|there}?",
            "What is {/v1/models|GET /v1/models}?",
        ),
        how=("list {the|all|available} models", "{see|find} which models are {served|there}"),
        what=("/v1/models", "the models endpoint"),
    ),
    Intent(
        "embeddings",
        ("Send a POST to /v1/embeddings with `model` and `input`. You get one vector per input.",),
        ask=(
            "Does {it|Trireme} {support|have|do} embeddings?",
            "Can I get embeddings?",
            "What is /v1/embeddings?",
        ),
        how=("{get|make|compute|create} {an embedding|embeddings|vectors}", "embed {text|a text}"),
        what=("embeddings", "the embeddings endpoint", "/v1/embeddings"),
    ),
    Intent(
        "completions",
        ("POST /v1/completions continues a plain prompt, without a chat template.",),
        ask=(
            "What is the difference between chat and completions?",
            "Can I complete {a|plain} text?",
            "What is /v1/completions?",
        ),
        how=("complete {a text|a prompt}", "continue a {text|prompt}"),
        what=("/v1/completions", "the completions endpoint", "a completion"),
    ),
    Intent(
        "endpoints",
        (
            "The gateway has /v1/chat/completions, /v1/completions, /v1/embeddings and "
            "/v1/models, and also /health, /readyz and /metrics.",
        ),
        ask=(
            "{What|Which} {routes|endpoints|URLs|paths} {are there|does the gateway have|exist}?",
            "List {the|all} {routes|endpoints}.",
            "What does the API offer?",
        ),
        what=("the endpoints", "the routes", "the API"),
    ),
    Intent(
        "health",
        (
            "Ask GET /health. /readyz answers 503 until a model can be served, and /metrics has "
            "numbers for Prometheus.",
        ),
        ask=(
            "Is there a health check?",
            "What does {/readyz|/health|/metrics} {do|say}?",
            "Are there metrics?",
            "Does it have {metrics|Prometheus metrics|health checks}?",
        ),
        how=("check the health", "{get|read|see} {the|} metrics", "monitor {Trireme|the stack}"),
        what=("/health", "/readyz", "/metrics", "the health check"),
    ),
    Intent(
        "heartbeat",
        (
            "A heartbeat is a short message that a worker sends to the controller every second to "
            "say that it is alive. After 5 seconds of silence the worker is taken off the list.",
        ),
        ask=(
            "How often {does a worker send|are there|come} heartbeats?",
            "What are heartbeats {|for}?",
            "Why {are there|do you need} heartbeats?",
            "How does the controller know {which workers are alive|that a worker is dead}?",
        ),
        what=("a heartbeat", "the heartbeat", "heartbeats", "the registry"),
        weight=1.5,
    ),
    Intent(
        "continuous batching",
        (
            "Continuous batching means that new requests join the running batch at any step and "
            "finished ones leave at once, so nobody waits for the slowest answer.",
        ),
        ask=(
            "How {does|do} {batching|batches} work?",
            "Why {is continuous batching good|continuous batching}?",
            "How does the worker {handle|answer} many requests {at once|}?",
        ),
        what=("continuous batching", "batching", "a batch"),
        weight=1.5,
    ),
    Intent(
        "kv cache",
        (
            "The KV cache keeps the keys and values of the tokens read so far, so that they are "
            "not computed again. The worker keeps it in blocks of fixed size.",
        ),
        ask=("How does the {KV|} cache work?", "Why is there a KV cache?"),
        what=("the KV cache", "a KV cache", "the paged cache", "paged attention"),
    ),
    Intent(
        "token",
        ("A token is a small piece of text: a word, or a part of one. Models work with tokens.",),
        ask=("What are tokens?", "How many tokens is a word?"),
        what=("a token", "tokens", "the tokenizer"),
    ),
    Intent(
        "temperature",
        (
            "The temperature says how freely the model picks its words. At 0 it always takes the "
            "most likely token. The default is 0.7.",
        ),
        ask=("Which temperature should I use?", "What is the default temperature?"),
        how=("{set|change} the temperature", "get the same answer every time"),
        what=("the temperature", "temperature"),
    ),
    Intent(
        "max tokens",
        ("`max_tokens` limits the length of an answer, counted in tokens.",),
        ask=(
            "What does max_tokens do?",
            "Why is {the|my} answer {cut off|cut|so short}?",
        ),
        how=("get {longer|shorter} answers", "limit the {length of the answer|answer}"),
        what=("max_tokens", "the max_tokens option"),
    ),
    Intent(
        "fastchat",
        (
            "Trireme speaks the wire format of FastChat 0.2.36, so that you can swap one tier at "
            "a time.",
        ),
        ask=(
            "Is {it|Trireme} compatible with FastChat?",
            "Does {it|Trireme} work with FastChat?",
            "Can I {use|keep|mix} {my|a} FastChat {workers|tiers|worker|controller}?",
        ),
        how=("{move|migrate|switch} from FastChat", "use it with FastChat"),
        what=("the FastChat wire", "FastChat compatibility"),
    ),
    Intent(
        "no worker",
        (
            "Then no worker serves that model. Look at `trireme status`, and start one with "
            "`trireme up --model-path /path/to/model`.",
        ),
        ask=(
            "I get {a|an error|} 503.",
            "{My model|The API|The gateway|It} {gives|returns|answers} {a|me a|an error|} 503.",
            "Why do I get {a|} {503|40301}?",
            "What does {error|status|} {503|40301} mean?",
            "The model {is not found|was not found|does not answer}.",
            "There is no worker.",
            "It does not {work|answer|start}.",
            "It doesn't {work|answer}.",
            "Nothing {works|happens}.",
        ),
    ),
)
