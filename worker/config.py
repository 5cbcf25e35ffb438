"""The worker's settings: the only source of its flags, environment names, defaults and help."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import CliToggleFlag

from protocol import conversation
from trireme.service.addresses import base_url
from trireme.service.settings import Strings, TierSettings, settings_config
from worker.engine.protocol import ModelLoadError
from worker.engine.registry import ENGINES, EngineKind
from worker.text import formats

_URL = re.compile(r"https?://[^\s/@?#]+")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu|npu)(:\d+)?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _known_engine(name: str) -> str:
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; choose from {', '.join(ENGINES)}")
    return name


def _device_name(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"no device {name!r}; give auto, cpu, mps, cuda, xpu or npu, or cuda:1")
    return name


def _limit(value: Any) -> Any:
    return None if value in (None, "auto") else value


def _urls(values: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(map(base_url, values))
    for value in found:
        if not _URL.fullmatch(value):
            raise ValueError(f"{value!r} is no base URL such as http://localhost:21001")
    return found


def _url(value: str | None) -> str | None:
    return None if value is None else _urls((value,))[0]


def _template_name(name: str | None) -> str | None:
    if name is not None:
        conversation.named(name)  # raises ValueError with the nearest names
    return name


def _one_of(known: Iterable[str]) -> Callable[[str], str]:
    names = ("auto", formats.NONE, *known)

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"no format {name!r}; choose from {', '.join(names)}")
        return name

    return check


def _existing_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ValueError(f"no file at {path}")
    return path


class Settings(TierSettings):
    """Everything that a worker can be told."""

    model_config = settings_config("worker")

    port: int = Field(21002, ge=0, le=65535, description="port to bind; 0 takes a free one")
    worker_address: Annotated[str | None, AfterValidator(_url)] = Field(
        None, description="base URL that others reach this worker at (from host and port)"
    )
    controller_address: Annotated[Strings, AfterValidator(_urls)] = Field(
        ("http://localhost:21001",), description="controllers to register with, all of them"
    )
    # a toggle: argparse reads any flag that starts with --no- as a negation otherwise
    no_register: CliToggleFlag[bool] = Field(
        False, description="serve without registering anywhere"
    )
    heartbeat_interval: float = Field(1.0, gt=0, le=60, description="seconds between heartbeats")

    engine: Annotated[str, AfterValidator(_known_engine)] = Field(
        "paged", description=f"how the model is run: {', '.join(ENGINES)}"
    )
    model_path: str | None = Field(
        None, description="model folder or hub id (the embedded demo model)"
    )
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    model_names: Strings = Field((), description="names to serve it by (basename of the path)")
    trust_remote_code: bool = Field(False, description="run Python code that a checkpoint brings")
    conv_template: Annotated[str | None, AfterValidator(_template_name)] = Field(
        None, description="named conversation template to use instead of the model's own"
    )
    chat_template: Annotated[Path | None, AfterValidator(_existing_file)] = Field(
        None, description="file with a Jinja chat template to use instead of the model's own"
    )
    tool_call_parser: Annotated[str, AfterValidator(_one_of(formats.TOOL_CALLS))] = Field(
        "auto",
        description="how the model writes tool calls: auto, none, " + ", ".join(formats.TOOL_CALLS),
    )
    reasoning_parser: Annotated[str, AfterValidator(_one_of(formats.REASONING))] = Field(
        "auto",
        description="how the model marks reasoning: auto, none, " + ", ".join(formats.REASONING),
    )

    device: Annotated[str, AfterValidator(_device_name)] = Field(
        "auto", description="cpu, cuda, cuda:1, ...; auto takes the best"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="type of the weights; auto takes the checkpoint's"
    )
    gpus: str | None = Field(None, description="GPUs to use, such as 0,1")
    num_gpus: int = Field(1, ge=0, description="how many GPUs the weights are spread over")
    tensor_parallel_size: int = Field(
        1, ge=1, description="processes, on a GPU each, that share every layer of the model"
    )
    max_gpu_memory: str | None = Field(None, description="memory per GPU, such as 13GiB")
    load_8bit: bool = Field(False, description="load the weights in 8 bits")
    cpu_offloading: bool = Field(False, description="keep what no GPU holds in main memory")
    native_kernels: bool = Field(
        True,
        description="compile the engine's CPU kernels at the first start, if there is a compiler",
    )
    squeeze_weights: bool = Field(
        True,
        description="on a CPU that gains by it, keep bfloat16 weights a second time in 12 bits, "
        "where a quarter of the free memory holds them",
    )
    prompt_lookup: Literal["auto", "on", "off"] = Field(
        "auto",
        description="on a CPU, draft tokens from what a text has repeated, and keep those that "
        "are sampled anyway; auto does where a token does not depend on what is computed beside "
        "it: in one process, in float32, or in bfloat16 where layers run on the engine's own "
        "kernels",
    )
    max_model_len: int | None = Field(
        None, ge=1, description="context length (from the model's configuration)"
    )
    max_batch_tokens: int | None = Field(None, ge=1, description="token budget of one step")
    max_running: int | None = Field(None, ge=1, description="sequences that run at once")
    kv_cache_gb: float | None = Field(None, gt=0, description="memory of the KV cache in GiB")
    gpu_memory_share: float = Field(
        0.9, gt=0, le=1, description="share of each GPU's memory that the engine may fill"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs: launch each operation")
    overlap: Literal["auto", "on", "off"] = Field(
        "auto", description="launch a step before the one before has ended; auto does on a GPU"
    )
    seed: int | None = Field(
        None, description="makes the seeds drawn for requests without one repeatable"
    )

    engine_stall_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds without any progress, inside a step too, after which the engine's "
        "process is taken for hung, killed and started again; six times as long, a minute at "
        "least, while it computes",
    )
    limit_worker_concurrency: Annotated[
        Annotated[int, Field(ge=1)] | None, BeforeValidator(_limit)
    ] = Field(None, description="requests that run at once; auto is what the engine can run")
    max_queue_requests: int = Field(1024, ge=0, description="requests that may wait, at most")
    max_queue_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens that may wait (16 times the context length; of an encoder at "
        "least 262144)",
    )
    stream_interval: int = Field(1, ge=1, description="tokens between two events of a stream")
    pooling: Literal["auto", "mean", "cls", "last", "max"] = Field(
        "auto",
        description="how an embedding is made of the tokens' states; auto is what the model's "
        "sentence-transformers files say, else mean",
    )
    embed_in_truncate: bool = Field(
        False,
        description="truncate long embedding inputs instead of averaging their chunks, and long "
        "pairs to score instead of refusing them",
    )
    drain_grace_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that running requests get on SIGTERM before other workers go on with "
        "them; as long again where none can",
    )

    sim_tokens: int = Field(64, ge=1, description="sim: completion length")
    sim_ttft_ms: float = Field(0.0, ge=0, description="sim: milliseconds to the first token")
    sim_itl_ms: float = Field(0.0, ge=0, description="sim: milliseconds between tokens")
    sim_max_running: int = Field(256, ge=1, description="sim: sequences that run at once")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.require_token_off_loopback()
        if self.conv_template and self.chat_template:
            raise ValueError("--conv-template and --chat-template exclude each other")
        if self.chat_template and not self.engine_kind.needs_model:
            raise ValueError(f"--chat-template: --engine {self.engine} takes --conv-template only")
        if self.overlap == "on" and self.prompt_lookup == "on":
            raise ValueError("--overlap on and --prompt-lookup on exclude each other")
        if self.model_path is not None and not self.model_path.strip():
            raise ValueError("--model-path is empty")
        self._check_tensor_parallel()
        return self

    def _check_tensor_parallel(self) -> None:
        if self.tensor_parallel_size == 1:
            return
        if self.engine != "paged":
            raise ValueError("--tensor-parallel-size needs --engine paged")
        if ":" in self.device:
            raise ValueError("--tensor-parallel-size takes several devices: choose them by --gpus")
        for flag, given in (
            ("--num-gpus", self.num_gpus > 1),
            ("--max-gpu-memory", self.max_gpu_memory is not None),
            ("--cpu-offloading", self.cpu_offloading),
            ("--load-8bit", self.load_8bit),
            ("--overlap on", self.overlap == "on"),
        ):
            if given:
                raise ValueError(f"--tensor-parallel-size and {flag} exclude each other")

    @property
    def engine_kind(self) -> EngineKind:
        """The entry of the engine registry."""
        return ENGINES[self.engine]

    @property
    def resolved_model_path(self) -> str:
        """The model folder or hub id; the embedded demo model when none is given."""
        if self.model_path is not None:
            return self.model_path
        from worker.demo import demo_model_path

        return str(demo_model_path())

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names that clients call the model, never empty."""
        if self.model_names:
            return tuple(dict.fromkeys(self.model_names))
        if not self.engine_kind.needs_model:
            return (self.engine,)
        if self.model_path is None:
            return ("trireme-demo",)
        return (Path(self.model_path).resolve().name or "model",)

    @property
    def asks_the_hub(self) -> bool:
        """Whether the model path is no folder here, so that it must be a hub id."""
        return self.engine_kind.needs_model and not Path(self.resolved_model_path).is_dir()

    def check_model_path(self) -> None:
        """Find out early, and without a heavy import, that there is no such model.

        Raises:
            ModelLoadError: the path is a folder without a configuration, or can only be a folder
                and there is none.
        """
        if not self.engine_kind.needs_model:
            return
        path = Path(self.resolved_model_path)
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise ModelLoadError(f"no config.json in model folder {path}")
        elif path.exists():
            raise ModelLoadError(f"{path} is a file, not a model folder")
        elif self.model_path is None or not _HUB_ID.fullmatch(self.model_path):
            raise ModelLoadError(f"no model folder at {path}")

    def base_url(self, port: int, own_ip: str) -> str:
        """The address to register: as given, else from host and port.

        Args:
            port: the port that was bound.
            own_ip: this machine's address towards the controller, for a wildcard `--host`.
        """
        if self.worker_address:
            return self.worker_address
        host = own_ip if self.host in ("0.0.0.0", "::", "[::]") else self.host.strip("[]")
        scheme = "https" if self.ssl else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
