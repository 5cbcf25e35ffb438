"""Why a request went to its worker: what a gateway answers at `GET /debug/route/{request_id}`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class CandidateReport(_Report):
    """A worker that the policy looked at."""

    worker: str
    """its instance id"""
    reported_tokens: int
    """tokens of work there, by its last heartbeat; while none is told, this gateway's own"""
    unreported_tokens: int
    """tokens that this gateway sent it since then"""
    speed: float
    """tokens of prefill a second, or the named speed where not all candidates measured it"""
    matched_tokens: int
    """about how many tokens of the prompt's prefix it was sent before"""
    cost: float
    """(reported + unreported + the rest of the prompt) / speed; the least one is chosen"""


class LeftOut(_Report):
    """Workers of the model that were not to be chosen."""

    reason: str
    """why: `tried`, `ejected`, `set aside`, `lacks …`, `not native`, `another digest`, …"""
    workers: Sequence[str]
    """instance ids, at most 16"""
    count: int
    """how many there were"""


class AttemptReport(_Report):
    """One try at a worker."""

    request_id: str
    """as the worker's log has it"""
    number: int
    """1 for the first try"""
    time: float
    """Unix seconds of its begin"""
    worker: str
    """instance id of the chosen worker"""
    address: str
    """its base URL"""
    prompt_tokens: int
    """about how many the prompt has"""
    choices: int
    """workers that could have been chosen; a policy looks at a few of many"""
    candidates: Sequence[CandidateReport]
    """those that it looked at"""
    left_out: Sequence[LeftOut]
    """those that were not to be chosen"""
    outcome: str
    """`running`, `done`, `cancelled` (the client left), or the code of the error"""
    first_event_s: float | None
    """seconds until the worker admitted the request; of streams only"""
    ended_s: float | None
    """seconds until the outcome"""
    predicted_cached_tokens: int
    """tokens of the prompt that the worker was thought to have computed already"""
    cached_tokens: int | None
    """those that it had; null before the end, and where it did not say"""


class RouteReport(_Report):
    """A client's request. One with several prompts is several requests at workers."""

    request_id: str
    """the answer's `x-request-id`"""
    attempts: Sequence[AttemptReport]
    """in the order of their begin; the first 16"""
    attempts_left_out: int
    """how many more there were"""
