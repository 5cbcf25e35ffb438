"""Intents about the flags and settings of the tiers."""

from __future__ import annotations

from worker.demo.corpus.phrasing import Intent

OPTIONS: tuple[Intent, ...] = (
    Intent(
        "api keys",
        (
            "Start the gateway with `--api-keys k1,k2`. Then a client must send one of the keys, "
            "as `Authorization: Bearer k1`, or it gets a 401.",
        ),
        ask=(
            "What does --api-keys do?",
            "Do I need an API key?",
            "Which API key {do I use|do I need|is needed}?",
            "Is the {API|gateway} protected?",
            "Why do I get {a|} 401?",
            "What does {error|status|} 401 mean?",
            "How does authentication work?",
        ),
        how=(
            "{set|use|add|require|configure} {an|the|} API {key|keys}",
            "{protect|secure|lock} {the gateway|the API|my server|Trireme}",
            "use authentication",
            "give {access|keys} to {a user|my users|clients}",
            "send {the|my|an} API key",
        ),
        what=("--api-keys", "the --api-keys flag", "an API key", "authentication", "API keys"),
        weight=2.0,
    ),
    Intent(
        "cluster token",
        (
            "`--cluster-token` sets a secret that the tiers share, so that only your own workers "
            "can register. You need it when a controller or worker listens on more than localhost.",
        ),
        ask=(
            "What does --cluster-token do?",
            "What is --cluster-token for?",
            "Do I need a cluster token?",
            "When do I need a cluster token?",
            "How do the tiers trust each other?",
            "Can anybody register a worker?",
            "What does TRIREME_CLUSTER_TOKEN do?",
        ),
        how=(
            "{set|use|add} {a|the} cluster token",
            "{protect|secure} the {controller|worker|workers|cluster}",
            "run the tiers on {several|two|different|many} machines",
            "keep strangers from registering workers",
        ),
        what=("--cluster-token", "the cluster token", "a cluster token", "TRIREME_CLUSTER_TOKEN"),
        weight=1.5,
    ),
    Intent(
        "dtype",
        (
            "`--dtype` sets the number format of the weights, for example `--dtype bfloat16` or "
            "`--dtype float32`. The default is auto.",
        ),
        ask=(
            "What does --dtype do?",
            "Which dtype {is used|should I use|is the default}?",
            "What dtypes are {there|supported}?",
            "Can I use {bfloat16|float16|float32|half precision|bf16|fp16}?",
        ),
        how=(
            "{set|change|choose} the {dtype|precision|number format|data type}",
            "{load|run} {the|a|my} model in {bfloat16|float16|float32|half precision|bf16|fp16}",
            "use {bfloat16|float16|float32|half precision|bf16|fp16}",
        ),
        what=("--dtype", "the --dtype flag", "dtype"),
        weight=1.5,
    ),
    Intent(
        "device",
        (
            "`--device` says where the model runs, for example `--device cpu` or `--device cuda`. "
            "The default is auto, which takes a GPU if there is one.",
        ),
        ask=(
            "What does --device do?",
            "Do I need a {GPU|graphics card|CUDA}?",
            "Does {it|Trireme} {need|use|support} {a GPU|GPUs|CUDA|a graphics card}?",
            "Can {it|Trireme} run {on a CPU|without a GPU|on my laptop|on the CPU}?",
            "Does it {run|work} {on a CPU|without a GPU|on my laptop|on a GPU}?",
            "Which device {is used|should I use}?",
            "CPU or GPU?",
            "What hardware do I need?",
        ),
        how=(
            "{use|run on|select} {a|the|my} {GPU|CPU}",
            "{run|load} {it|the model|my model} on {a|the} {GPU|CPU}",
            "{set|change|choose} the device",
            "use {CUDA|cuda}",
        ),
        what=("--device", "the --device flag"),
        weight=1.5,
    ),
    Intent(
        "chat template",
        (
            "`--chat-template FILE` makes the worker use a Jinja chat template from a file "
            "instead of the one that comes with the model.",
        ),
        ask=(
            "What does --chat-template do?",
            "Which chat template is used?",
            "My model has no chat template, what can I do?",
            "Can I use {my own|another} {chat|prompt} template?",
        ),
        how=(
            "{set|use|change|pass|give} {a|the|my own|another} {chat|prompt|Jinja} template",
            "use {a|my} Jinja {file|template}",
        ),
        what=("--chat-template", "the --chat-template flag", "a chat template"),
        weight=1.2,
    ),
    Intent(
        "conv template",
        (
            "`--conv-template NAME` makes the worker use a named conversation template, such as "
            "vicuna_v1.1 or chatml, instead of the model's own chat template.",
        ),
        ask=(
            "What does --conv-template do?",
            "Which conversation templates are there?",
            "Can I use a {named|FastChat|conversation} template?",
        ),
        how=(
            "{set|use|change|pass} {a|the} {conversation|conv|named} template",
            "use {vicuna_v1.1|chatml|the vicuna template|the chatml template}",
        ),
        what=("--conv-template", "the --conv-template flag", "a conversation template"),
        weight=1.2,
    ),
    Intent(
        "model names",
        (
            "`--model-names a,b` sets the names under which a worker serves its model. Without "
            "it the name is the last part of the model path.",
        ),
        ask=(
            "What does --model-names do?",
            "What is the model called in the API?",
            "Which model name {do I use|should I send|must I use}?",
            "Can a model have two names?",
        ),
        how=(
            "{set|change|choose} the {model name|name of the model|served name}",
            "{rename|name} {the|my|a} model",
            "give {the|my|a} model {a name|another name|two names}",
        ),
        what=("--model-names", "the --model-names flag"),
    ),
    Intent(
        "port flag",
        ("Every tier takes `--port`, for example `python -m gateway --port 8080`.",),
        ask=(
            "What does --port do?",
            "Port 8000 is {taken|busy|in use|already in use}, what can I do?",
            "The port is {taken|busy|in use|already in use}.",
            "Can I use {another|a different} port?",
            "Can I change the port?",
        ),
        how=(
            "{change|set|choose} {the|a|my} port",
            "use {another|a different} port",
            "{change|set} the port of the {gateway|worker|controller}",
            "run the gateway on {port 8080|another port}",
        ),
        what=("--port", "the --port flag"),
    ),
    Intent(
        "host flag",
        (
            "Every tier takes `--host`. The default is 127.0.0.1, so only your own machine can "
            "connect. With another address a controller or worker also needs `--cluster-token`.",
        ),
        ask=(
            "What does --host do?",
            "Can {others|other machines|other people|my colleagues} {connect|use it|reach it}?",
            "Is it {open to|reachable from} the {internet|network}?",
        ),
        how=(
            "{change|set|choose} the {host|address}",
            "{listen|bind} on {all addresses|0.0.0.0|another address}",
            "make it {reachable|visible} {from outside|in the network|from other machines}",
            "connect from another machine",
        ),
        what=("--host", "the --host flag"),
    ),
    Intent(
        "logs",
        ("Every tier takes `--log-level`, and `--log-format text` or `--log-format json`.",),
        ask=(
            "What does {--log-level|--log-format} do?",
            "Are there logs?",
            "Which log formats are there?",
        ),
        how=(
            "{change|set} the log {level|format}",
            "{see|get|read|enable} {more|debug|JSON|the} logs",
            "log as JSON",
        ),
        what=("--log-level", "--log-format", "logging"),
    ),
    Intent(
        "environment",
        (
            "Every flag can also be set in the environment, as TRIREME_<TIER>_<FLAG>, for example "
            "TRIREME_GATEWAY_PORT. A flag beats the environment.",
        ),
        ask=(
            "Which environment variables {are there|can I use|do you know}?",
            "Are there environment variables?",
            "Can I use environment variables?",
            "What does TRIREME_{GATEWAY|WORKER|CONTROLLER}_{PORT|HOST} do?",
        ),
        how=("{use|set} environment variables", "configure {it|Trireme} by environment variables"),
        what=("the environment variables", "TRIREME_GATEWAY_PORT"),
    ),
    Intent(
        "sim engine",
        (
            "`--engine sim` starts a worker without a model. It answers with made-up tokens, so "
            "that you can test clients and load without weights.",
        ),
        ask=(
            "What does --engine {sim|} do?",
            "Which engines are there?",
            "Can I {test|run} {it|Trireme} without a model?",
        ),
        how=(
            "{start|run|use} {a worker without a model|the simulated engine|the sim engine}",
            "test {without a model|my client without weights}",
        ),
        what=("--engine sim", "the simulated engine", "the sim engine"),
    ),
    Intent(
        "max model len",
        ("`--max-model-len` limits how many tokens a prompt and its answer may have together.",),
        ask=("What does --max-model-len do?", "How long can a prompt be in Trireme?"),
        how=("limit the {context length|length of prompts}", "{set|change} the context length"),
        what=("--max-model-len", "the --max-model-len flag"),
    ),
    Intent(
        "dispatch",
        ("`--dispatch-method` of the controller is `shortest_queue`, the default, or `lottery`.",),
        ask=(
            "What does --dispatch-method do?",
            "How does the controller {pick|choose} a worker?",
            "Which dispatch methods are there?",
        ),
        what=("--dispatch-method", "the dispatch method", "shortest_queue", "lottery"),
    ),
    Intent(
        "load 8bit",
        ("`--load-8bit` makes the worker load the weights in 8 bits, which saves memory.",),
        ask=("What does --load-8bit do?", "Can I use {8 bits|8-bit weights|quantisation}?"),
        how=("load {a|the|my} model in 8 bits", "{save|use less} memory", "quantise {a|my} model"),
        what=("--load-8bit", "8-bit loading"),
    ),
    Intent(
        "ssl",
        (
            "Every tier takes `--ssl`. The key and the certificate come from SSL_KEYFILE and "
            "SSL_CERTFILE in the environment.",
        ),
        ask=("What does --ssl do?", "Does {it|Trireme} support {SSL|HTTPS|TLS}?"),
        how=("{use|enable|turn on} {SSL|HTTPS|TLS}", "encrypt the traffic"),
        what=("--ssl", "the --ssl flag"),
    ),
    Intent(
        "all flags",
        (
            "Useful flags are --model-path, --workers, --api-keys, --cluster-token, --dtype, "
            "--device, --chat-template and --conv-template. Add --help to a command to see all.",
        ),
        ask=(
            "{What|Which} {flags|options|settings} {are there|do you know|can I use|exist}?",
            "List {all|the} {flags|options|settings}.",
            "{Flags|Options|All flags}?",
            "Which flags does {Trireme|the worker|the gateway|the controller} have?",
            "How do I configure {it|Trireme}?",
            "Where can I find help?",
        ),
        what=("the flags", "the options", "--help"),
    ),
)
