"""FastChat: controller, worker and OpenAI gateway; or its gateway alone, in front of our worker."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.process import (
    PeerFailed,
    Server,
    Servers,
    chats,
    get_json,
    interpreter,
    post_json,
    servers,
)
from benchmarks.systems import Target

TEMPLATE = "qwen-7b-chat"
"""The ChatML template, as our checkpoint's own. FastChat would take `one_shot` for a model that it
does not know, whose example conversation makes each prompt several hundred tokens longer."""

CONCURRENCY = 32
"""Requests that its worker computes at once, each in a thread of its own; its default is 5."""


@contextlib.contextmanager
def fastchat(value: str, model: Path, logs: Path) -> Iterator[Target]:
    """FastChat's three tiers with the model in bfloat16 on the CPU.

    Raises:
        PeerFailed: it does not start.
    """
    python = interpreter(value, "fastchat")
    checkpoint = readable_copy(model, logs / "model")
    with servers(logs) as running:
        controller = _start(running, python, "controller")
        worker = running.start(
            "model_worker", lambda port: worker_command(python, checkpoint, model.name, port)
        )
        gateway = _start(running, python, "openai_api_server", controller)
        running.wait_until(lambda: context_length(worker.url) > 0, "loaded")
        running.wait_until(
            lambda: register(controller.url, worker.url, model.name), "registered", timeout_s=60
        )
        running.wait_until(lambda: chats(gateway.url, model.name), "answering", timeout_s=120)
        yield Target("fastchat", gateway.url, model.name, running.pids)


@contextlib.contextmanager
def fastchat_gateway(value: str, logs: Path, backend_url: str, model: str) -> Iterator[Target]:
    """FastChat's gateway and the controller that it asks for a worker at each request.

    Args:
        backend_url: a worker that speaks FastChat's wire; it need not register itself.

    Raises:
        PeerFailed: it does not start, or the worker does not answer through it.
    """
    python = interpreter(value, "fastchat")
    with servers(logs) as running:
        controller = _start(running, python, "controller")
        gateway = _start(running, python, "openai_api_server", controller)
        running.wait_until(
            lambda: register(controller.url, backend_url, model), "registered", timeout_s=120
        )
        running.wait_until(lambda: chats(gateway.url, model), "answering", timeout_s=120)
        yield Target("fastchat", gateway.url, model, running.pids)


def worker_command(python: Path, checkpoint: Path, name: str, port: int) -> list[str]:
    """Its model worker. It does not register: a paused worker's lease would run out."""
    return [
        *(str(python), "-P", "-m", "fastchat.serve.model_worker", "--no-register"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-address", f"http://127.0.0.1:{port}"),
        *("--model-path", str(checkpoint), "--model-names", name, "--conv-template", TEMPLATE),
        *("--device", "cpu", "--dtype", "bfloat16"),
        *("--limit-worker-concurrency", str(CONCURRENCY), "--stream-interval", "1"),
    ]


def register(controller_url: str, worker_url: str, model: str) -> bool:
    """Make a worker known to FastChat's controller for ever, without heartbeats.

    Raises:
        OSError: the controller does not answer.
    """
    status = {"model_names": [model], "speed": 1, "queue_length": 0}
    body = {
        "worker_name": worker_url,
        "check_heart_beat": False,
        "worker_status": status,
        "multimodal": False,
    }
    post_json(f"{controller_url}/register_worker", body)
    listed = post_json(f"{controller_url}/list_models", {})
    return isinstance(listed, dict) and model in listed["models"]


def context_length(worker_url: str) -> int:
    """What a worker says on its model, once it has loaded it.

    Raises:
        OSError: it does not answer yet.
    """
    details = post_json(f"{worker_url}/model_details", {})
    return int(details["context_length"]) if isinstance(details, dict) else 0


def readable_copy(model: Path, folder: Path) -> Path:
    """The checkpoint with a tokenizer class that transformers 4 has; the weights are links.

    Raises:
        PeerFailed: the folder holds no checkpoint.
    """
    config = model / "tokenizer_config.json"
    if not config.is_file():
        raise PeerFailed(f"{model} holds no {config.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    # transformers 5 writes a class there that the transformers 4 of FastChat does not know
    fields = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / config.name).unlink()
    (folder / config.name).write_text(json.dumps(fields))
    return folder.absolute()


def _start(running: Servers, python: Path, module: str, controller: Server | None = None) -> Server:
    where = ("--controller-address", controller.url) if controller else ()
    program = (str(python), "-P", "-m", f"fastchat.serve.{module}", "--host", "127.0.0.1", *where)
    server = running.start(module, lambda port: [*program, "--port", str(port)])
    if controller is None:
        running.wait_until(
            lambda: get_json(f"{server.url}/test_connection") == "success", "up", timeout_s=120
        )
    return server
