"""Intents about Trireme as a whole: what it is, its commands, how to run it."""

from __future__ import annotations

from worker.demo.corpus.phrasing import Intent

OVERVIEW: tuple[Intent, ...] = (
    Intent(
        "trireme",
        (
            "Trireme is a serving stack for language models in three tiers: a controller that "
            "keeps track of the workers, workers that run the models, and a gateway with an "
            "OpenAI-compatible API.",
        ),
        ask=(
            "What is this?",
            "What is this {project|software|program|tool|repository|thing} {|about|for}?",
            "What does Trireme do?",
            "What is Trireme {for|good for|used for|about}?",
            "What can Trireme do?",
            "Who or what is Trireme?",
            "Why {should I use|would I use|use} Trireme?",
            "Introduce Trireme.",
            "What kind of software is Trireme?",
            "How does Trireme work?",
        ),
        what=("Trireme", "Trireme", "this stack", "the Trireme stack", "the stack", "this project"),
        more=(
            "A client talks to the gateway on port 8000. The gateway picks a worker and streams "
            "its answer back. The controller on port 21001 learns from heartbeats which workers "
            "are alive."
        ),
        weight=3.0,
    ),
    Intent(
        "tiers",
        (
            "The three tiers are the controller on port 21001, the worker on port 21002 and the "
            "gateway on port 8000.",
        ),
        ask=(
            "What are the {three|3|} tiers?",
            "What are the tiers of {Trireme|the stack}?",
            "Which tiers {are there|does Trireme have|exist}?",
            "How many tiers {are there|does Trireme have|does it have}?",
            "Name the {three|} tiers.",
            "List the {three|} tiers{| of Trireme}.",
            "What {parts|components|processes|pieces|services} does Trireme have?",
            "Which {parts|components|processes|services} {are there|make up Trireme}?",
            "{What|Which} ports {are used|are there|does Trireme use|do you use}?",
            "List {all|the} ports.",
            "Which ports {do the tiers use|do I need|must be open|are open}?",
            "What are the {default|} ports{| of the tiers}?",
            "{Ports|All ports|Which ports|What ports}?",
            "Tell me the ports.",
            "Which port does Trireme use?",
        ),
        what=("the three tiers", "the tiers", "the architecture", "the parts of Trireme"),
        more=(
            "The controller keeps the registry of workers, the worker runs the model, and the "
            "gateway offers the OpenAI-compatible API. Each tier is a process of its own."
        ),
        weight=2.0,
    ),
    Intent(
        "why tiers",
        (
            "Three tiers, so that each can be started, stopped and multiplied alone: more workers "
            "for more load, more gateways for more clients, and nothing else has to restart.",
        ),
        ask=(
            "Why {are there|does it have|does Trireme have|do we need} {three|3} tiers?",
            "Why three tiers?",
            "Why is {Trireme|the stack|it} split {into|in} {three|} {tiers|parts|processes}?",
            "What is the advantage of {three|separate} tiers?",
            "Why not one process?",
        ),
    ),
    Intent(
        "the ship",
        (
            "A trireme is an ancient Greek warship with three rows of oars on each side. This "
            "stack has three tiers, hence the name.",
        ),
        ask=(
            "Why is it called Trireme?",
            "Why the name{| Trireme}?",
            "Where does the name {Trireme|} come from?",
            "What does {the name|the word} {Trireme|} mean?",
            "What does Trireme stand for?",
            "What is a trireme?",
            "Is a trireme a {ship|boat}?",
            "Is Trireme a {ship|boat}?",
            "Who invented the name Trireme?",
        ),
        what=("the name Trireme", "the word trireme", "a trireme", "the name of the stack"),
    ),
    Intent(
        "request path",
        (
            "First the gateway on port 8000 takes your request and checks it. Then it picks a "
            "worker that has the model and opens one stream to it. The worker applies the chat "
            "template, turns the text into tokens, and adds the request to the running batch. "
            "Each new token goes back through the gateway to you at once. The controller only "
            "keeps the list of living workers, so it is not on the way of a request.",
        ),
        ask=(
            "How does a request {flow|travel|get|go} through {the stack|Trireme|the tiers}?",
            "What happens {to|with} {a|my} {request|message|prompt}?",
            "What happens when I send a {request|message|prompt|question}?",
            "How {does|do} the tiers {work|play} together?",
            "How do the {tiers|three tiers|controller, worker and gateway} talk to each other?",
            "Describe the {life|path|way} of a request.",
            "Give me a long {answer|explanation} {about|of} Trireme.",
            "Write a long text about Trireme.",
            "Explain {in detail|step by step} how Trireme works.",
            "How does it {all|} work, step by step?",
        ),
        what=("the path of a request", "the life of a request", "the way of a request"),
        weight=1.5,
    ),
    Intent(
        "difference",
        (
            "The worker runs the model, the gateway talks to the clients, and the controller "
            "tells the gateway which workers are alive.",
        ),
        ask=(
            "What is the difference between the {worker and the gateway|gateway and the worker}?",
            "What is the difference between the {controller and the|gateway and the} worker?",
            "What is the difference between the controller and the gateway?",
            "How {is the worker different from|does the worker differ from} the gateway?",
            "How is the controller different from the {worker|gateway}?",
            "{Compare|Explain} the {worker|controller} {and|with} the gateway.",
            "Which tier does what?",
            "Who does what?",
        ),
    ),
)

RUNNING: tuple[Intent, ...] = (
    Intent(
        "start",
        (
            "Run `make up`. It starts the controller, a worker and the gateway. Then the API is "
            "open at http://localhost:8000/v1.",
        ),
        ask=(
            "How do I start?",
            "How do I start?",
            "How do I begin?",
            "How can I {start|begin}?",
            "Where do I {start|begin}?",
            "How to {start|begin|get started}?",
            "What do I do first?",
            "What is the first step?",
            "Quickstart{|, please}?",
            "What does make up do?",
            "What does `make up` do?",
            "make up?",
        ),
        how=(
            "start",
            "get started",
            "start Trireme",
            "start the {stack|whole stack|whole thing|system|server|servers}",
            "{start|launch|run} {everything|all of it|the whole thing}",
            "{start|launch|run} all {three|} tiers",
            "{run|launch|use|install|set up|try|bring up} Trireme",
            "{run|launch|use|bring up} the {stack|server|project}",
            "get it running",
            "run it",
            "run {this|everything}",
        ),
        what=("make up", "`make up`", "the quickstart"),
        more=(
            "To serve your own model use `trireme up --model-path /path/to/model`. With "
            "`trireme status` you see what is running, and with `trireme chat` you can talk to it."
        ),
        weight=3.0,
    ),
    Intent(
        "own model",
        (
            "Run `trireme up --model-path /path/to/model`. It starts all three tiers with your "
            "model and opens http://localhost:8000/v1.",
        ),
        ask=(
            "How do I serve my own model?",
            "How do I serve my own model?",
            "I have a model{| of my own| on my disk| in a folder}, what now?",
            "I {trained|fine-tuned|downloaded|made} a model, how {do|can} I {serve|run|use} it"
            "{| here| with Trireme}?",
            "I have my own {model|checkpoint}, how do I {run|serve|use} it?",
            "Can Trireme {serve|run|load} {my|other|a different|any|another} {model|models}?",
            "Can it {serve|run} {other models|my model|another model}?",
            "What does trireme up do?",
            "What does `trireme up` do?",
            "What {is|does} --model-path {|for|do|mean}?",
            "Where do I put my {model|weights|checkpoint}?",
            "Which models {can I|does it} {use|serve|run}?",
            "Which models {can I use|does Trireme support|are supported}?",
            "Do you support {Llama|Qwen|Mistral|Gemma|Hugging Face} {|models}?",
        ),
        how=(
            "{serve|run|use|host|deploy|load|start} my own model",
            "{serve|run|use|host|deploy|load|start} my {model|checkpoint|LLM}",
            "{serve|run|use|host|deploy|load} {a|my} {custom|different|local|real|bigger|better} "
            "model",
            "{serve|run|use|host|deploy|load} another model",
            "{serve|run|host|deploy} a {|Hugging Face|transformers|Llama|Qwen|language} model",
            "{change|replace|switch} the {demo|} model",
            "{serve|run|use|host|deploy} a model {that|} I {trained|made|downloaded|tuned|have}"
            "{| myself}",
            "{serve|run|deploy} {a|my} {Mistral|Llama|Qwen|Gemma|fine-tuned} model {|here|locally}"
            "{| on my machine| on my laptop| with Trireme}",
            "point it at my model",
            "bring my own model",
            "use {my own|my} weights",
            "start {Trireme|the stack} with my {own|} model",
            "pass {a|the} model path",
        ),
        what=("trireme up", "`trireme up`", "--model-path", "the --model-path flag"),
        more=(
            "The path is a folder in the Hugging Face layout, with config.json, the tokenizer and "
            "the weights. Add `--workers 2` to start two workers, and `--dtype` or `--device` to "
            "choose how the model is loaded."
        ),
        weight=4.0,
    ),
    Intent(
        "workers flag",
        (
            "Add `--workers N` to start N workers, for example "
            "`trireme up --model-path /path/to/model --workers 2`.",
        ),
        ask=(
            "What does --workers do?",
            "Can I {start|run|add|use} {more|several|two|many} workers?",
            "What is --workers?",
            "How many workers {can I start|can I have|are there|should I use}?",
            "Can I have {more than one worker|several workers|two workers|many workers}?",
            "{Two|More|Several} workers?",
            "How does Trireme scale?",
            "Does it scale?",
        ),
        how=(
            "{start|run|use|add|have|launch} {more|several|many|multiple} workers",
            "{start|run|use|add|have|launch} {two|three|four|2|3|4} workers",
            "{start|run|use|add|have|launch} {another|a second} worker",
            "set the number of workers",
            "{start|run|use|add|have|launch} {more than one worker|more worker processes}",
            "scale {up|out|Trireme|the stack}",
            "{serve|handle} {more|many} {users|requests|clients}",
        ),
        what=("--workers", "the --workers flag"),
        weight=2.0,
    ),
    Intent(
        "status",
        ("Run `trireme status`. It shows which tiers are running and which models they serve.",),
        ask=(
            "What does trireme status do?",
            "What does `trireme status` do?",
            "Is {it|everything|the stack|Trireme} running?",
            "Is {it|everything} {working|ok|up|fine}?",
            "Which {tiers|workers|processes} are {running|alive|up}?",
            "Status?",
        ),
        how=(
            "see {what is running|the status|if it is running|whether it runs}",
            "see {whether|if} everything is {fine|running|ok|up|alive}",
            "check {the status|the health of the stack|if it works|if everything is running}",
            "{check|see|list|show} {the|all|my|running} workers",
            "know {if|whether} {it|Trireme|the stack} is {running|up|healthy}",
            "show the status{| of the stack}",
        ),
        what=("trireme status", "`trireme status`", "the status command"),
        weight=1.5,
    ),
    Intent(
        "chat",
        ("Run `trireme chat`. It opens a conversation with the model in your terminal.",),
        ask=(
            "What does trireme chat do?",
            "What does `trireme chat` do?",
            "Is there a {chat|terminal client|command line chat}?",
            "Can I chat{| in the terminal| with you| on the command line}?",
        ),
        how=(
            "{chat|talk} {with|to} {the model|a model|it}",
            "{chat|talk} {with|to} {the model|it} in {the|a|my} terminal",
            "chat from the {terminal|command line|shell|console}",
            "open a {chat|conversation}",
            "try the model in the terminal",
        ),
        what=("trireme chat", "`trireme chat`", "the chat command"),
        weight=1.5,
    ),
    Intent(
        "tests",
        ("Run `make test`. It runs all the tests of Trireme.",),
        ask=(
            "What does make test do?",
            "What does `make test` do?",
            "Are there {any|} tests?",
            "make test?",
            "How is Trireme tested?",
        ),
        how=(
            "{run|start} the {tests|test suite|unit tests}",
            "test {Trireme|the code|the project|my changes}",
            "check my changes",
        ),
        what=("make test", "`make test`", "the test suite"),
    ),
    Intent(
        "commands",
        (
            "The main commands are `make up`, `make test`, `trireme up`, `trireme status` and "
            "`trireme chat`. Each tier also starts alone: `python -m controller`, "
            "`python -m worker` and `python -m gateway`.",
        ),
        ask=(
            "{What|Which} commands {are there|do you know|can I use|exist|does Trireme have}?",
            "List {all|the|your} commands.",
            "Show me {all|the} commands.",
            "{Commands|All commands|Command list}?",
            "What can I {type|run}?",
            "Which commands should I know?",
        ),
        what=("the commands", "the command line", "the trireme command"),
    ),
    Intent(
        "stop",
        ("Press Ctrl+C. Each tier finishes the requests that it has begun, and then stops.",),
        ask=("How does it stop?", "How do I stop?", "How does a tier shut down?"),
        how=(
            "stop {Trireme|the stack|it|everything|the server|all tiers}",
            "stop {the|a} {controller|worker|gateway}",
            "{shut down|quit|exit|end|terminate} {Trireme|the stack|it|the server}",
            "turn it off",
        ),
        more="A tier that gets SIGTERM drains first: it takes no new requests and ends with 0.",
    ),
)
