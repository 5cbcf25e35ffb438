"""The FastChat 0.2.36 wire between tiers, as pydantic schemas; facts in docs/api.md."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from protocol.fleet import Count, Rate

NETWORK_ERROR_TEXT = (
    "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
)
"""What a FastChat gateway expects as `text` beside a non-zero `error_code`."""


class _Fields(BaseModel):
    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, protected_namespaces=(), hide_input_in_errors=True
    )


class WorkerStatus(_Fields):
    model_names: Annotated[list[str], Field(max_length=256)]
    speed: Rate = 1
    queue_length: Count = 0


class RegisterWorker(_Fields):
    worker_name: Annotated[str, Field(max_length=2048)]
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = False


class HeartBeat(_Fields):
    worker_name: Annotated[str, Field(max_length=2048)]
    queue_length: Count = 0


class ModelQuery(_Fields):
    model: str


class CountToken(_Fields):
    prompt: str
    model: str | None = None


class GetEmbeddings(_Fields):
    input: Annotated[list[str], Field(min_length=1, max_length=2048)]
    model: str | None = None
    encoding_format: str | None = None


class GenerateParams(_Fields):
    """Parameters of `/worker_generate` and `/worker_generate_stream`, with its defaults.

    A null means the default, as FastChat's gateway forwards a client's nulls.
    """

    model: str | None = None
    prompt: str
    temperature: float | None = 1.0
    repetition_penalty: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = -1
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    max_new_tokens: int | None = 256
    logprobs: int | None = None
    echo: bool | None = True
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    seed: int | None = None
    images: list[Any] | None = None


def base_url(name: str) -> str:
    """A worker's name as base URL without a trailing slash, as the registry keys it."""
    return name.strip().rstrip("/")
