"""The one error taxonomy: code -> status, seed number, OpenAI type, retryable. No transport here.

Every tier raises `TriremeError` with a code of `TAXONOMY`; each dialect renders it:
`gateway/errors.py` for OpenAI clients, `worker/fastchat.py` for the FastChat wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

MAX_MESSAGE_CHARS: Final = 1024


class ErrorCode(IntEnum):
    """The numbers that FastChat's clients know."""

    VALIDATION_TYPE_ERROR = 40001
    INVALID_AUTH_KEY = 40101
    INCORRECT_AUTH_KEY = 40102
    NO_PERMISSION = 40103
    INVALID_MODEL = 40301
    PARAM_OUT_OF_RANGE = 40302
    CONTEXT_OVERFLOW = 40303
    RATE_LIMIT = 42901
    QUOTA_EXCEEDED = 42902
    ENGINE_OVERLOADED = 42903
    INTERNAL_ERROR = 50001
    CUDA_OUT_OF_MEMORY = 50002
    GRADIO_REQUEST_ERROR = 50003
    GRADIO_STREAM_UNKNOWN_ERROR = 50004
    CONTROLLER_NO_WORKER = 50005
    CONTROLLER_WORKER_TIMEOUT = 50006


_PASSING: Final = frozenset({421, 429, 500, 502, 503, 504})
"""Statuses of errors that lie with the moment, not with the request."""


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """How one code is answered.

    Attributes:
        status: HTTP status.
        number: FastChat's number, sent beside it as `error_code`.
        type: OpenAI's `error.type`.
        retryable: whether another worker could answer the same request.
        public: whether the code itself is shown as `error.code`.
        shown_as: what is shown in place of one that is not (null without it).
        final: whether the same request would fail again, though its status does not say so.
    """

    status: int
    number: ErrorCode
    type: str = "invalid_request_error"
    retryable: bool = False
    public: bool = True
    shown_as: str | None = None
    final: bool = False

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later, as it is."""
        return self.status in _PASSING and not self.final


_BODY = ErrorCode.VALIDATION_TYPE_ERROR
_RANGE = ErrorCode.PARAM_OUT_OF_RANGE
_SERVER = "server_error"

TAXONOMY: Final[Mapping[str, ErrorSpec]] = MappingProxyType(
    {
        # the request's form
        "invalid_body": ErrorSpec(400, _BODY, public=False),
        "invalid_request": ErrorSpec(400, _BODY, public=False),
        "invalid_type": ErrorSpec(400, _BODY),
        "missing_required_parameter": ErrorSpec(400, _BODY),
        "unknown_parameter": ErrorSpec(400, _BODY),
        "unsupported_parameter": ErrorSpec(400, _BODY),
        "unsupported_content_type": ErrorSpec(415, _BODY),
        "request_too_large": ErrorSpec(413, _BODY),
        "unknown_url": ErrorSpec(404, _BODY),
        "method_not_supported": ErrorSpec(405, _BODY),
        # its values
        "invalid_value": ErrorSpec(400, _RANGE),
        "empty_array": ErrorSpec(400, _RANGE),
        "array_above_max_length": ErrorSpec(400, _RANGE),
        "string_above_max_length": ErrorSpec(400, _RANGE),
        "integer_below_min_value": ErrorSpec(400, _RANGE),
        "integer_above_max_value": ErrorSpec(400, _RANGE),
        "decimal_below_min_value": ErrorSpec(400, _RANGE),
        "decimal_above_max_value": ErrorSpec(400, _RANGE),
        "invalid_json_schema": ErrorSpec(400, _RANGE),
        "invalid_grammar": ErrorSpec(400, _RANGE),
        "context_length_exceeded": ErrorSpec(400, ErrorCode.CONTEXT_OVERFLOW),
        # who asks, and for what
        "missing_api_key": ErrorSpec(401, ErrorCode.INVALID_AUTH_KEY, public=False),
        "invalid_api_key": ErrorSpec(401, ErrorCode.INCORRECT_AUTH_KEY),
        "response_not_found": ErrorSpec(404, _BODY, public=False),
        "previous_response_not_found": ErrorSpec(400, _BODY),
        "model_not_found": ErrorSpec(404, ErrorCode.INVALID_MODEL),
        "unsupported_by_model": ErrorSpec(400, ErrorCode.INVALID_MODEL),
        # limits
        "rate_limit_exceeded": ErrorSpec(429, ErrorCode.RATE_LIMIT, "requests"),
        "token_limit_exceeded": ErrorSpec(
            429,
            ErrorCode.RATE_LIMIT,
            "tokens",
            public=False,
            shown_as="rate_limit_exceeded",
        ),
        "insufficient_quota": ErrorSpec(
            429, ErrorCode.QUOTA_EXCEEDED, "insufficient_quota", final=True
        ),
        "overloaded": ErrorSpec(503, ErrorCode.ENGINE_OVERLOADED, _SERVER, retryable=True),
        # ours
        "wrong_instance": ErrorSpec(421, ErrorCode.CONTROLLER_NO_WORKER, _SERVER, retryable=True),
        "draining": ErrorSpec(503, ErrorCode.ENGINE_OVERLOADED, _SERVER, retryable=True),
        "no_worker": ErrorSpec(503, ErrorCode.CONTROLLER_NO_WORKER, _SERVER),
        "worker_unreachable": ErrorSpec(
            502, ErrorCode.CONTROLLER_WORKER_TIMEOUT, _SERVER, retryable=True
        ),
        "worker_lost": ErrorSpec(502, ErrorCode.CONTROLLER_WORKER_TIMEOUT, _SERVER, retryable=True),
        "worker_timeout": ErrorSpec(
            504, ErrorCode.CONTROLLER_WORKER_TIMEOUT, _SERVER, retryable=True
        ),
        "deadline_exceeded": ErrorSpec(504, ErrorCode.CONTROLLER_WORKER_TIMEOUT, "timeout"),
        "out_of_memory": ErrorSpec(500, ErrorCode.CUDA_OUT_OF_MEMORY, _SERVER, retryable=True),
        "engine_dead": ErrorSpec(503, ErrorCode.INTERNAL_ERROR, _SERVER, retryable=True),
        "engine_unavailable": ErrorSpec(503, ErrorCode.INTERNAL_ERROR, _SERVER, retryable=True),
        "request_quarantined": ErrorSpec(500, ErrorCode.INTERNAL_ERROR, _SERVER, final=True),
        "bad_logits": ErrorSpec(500, ErrorCode.INTERNAL_ERROR, _SERVER, final=True),
        "internal_error": ErrorSpec(500, ErrorCode.INTERNAL_ERROR, _SERVER),
    }
)


class TriremeError(Exception):
    """An error that a caller is told about, in any dialect.

    Args:
        code: a key of `TAXONOMY`.
        message: one sentence for a person, cut at `MAX_MESSAGE_CHARS`; it names the offending
            value and the limit, never an address, a path or a traceback.
        param: the field at fault, such as `messages[0].role`.
        retry_after_s: seconds after which a retry makes sense.

    Raises:
        KeyError: when the code is not in the taxonomy.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.spec = TAXONOMY[code]
        self.code = code
        self.message = message[:MAX_MESSAGE_CHARS]
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    def __repr__(self) -> str:
        return f"TriremeError({self.code!r}, {self.message!r}, param={self.param!r})"

    def to_wire(self) -> dict[str, Any]:
        """The fields that cross between tiers."""
        return {
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "retry_after_s": self.retry_after_s,
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> TriremeError:
        """Read `to_wire`'s fields; a code of a newer version becomes `internal_error`."""
        code = str(fields.get("code"))
        return cls(
            code if code in TAXONOMY else "internal_error",
            str(fields.get("message", "")),
            param=fields.get("param"),
            retry_after_s=fields.get("retry_after_s"),
        )


def quoted(value: object, limit: int = 100) -> str:
    """A caller's value for an error message: cut at `limit` characters, unprintables escaped."""
    text = value if isinstance(value, str) else repr(value)
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(ch if ch.isprintable() else repr(ch)[1:-1] for ch in cut)
