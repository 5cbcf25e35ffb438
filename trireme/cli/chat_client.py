"""Talks to an OpenAI-compatible API: models, and chat answers as a stream of text."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import httpx

Message: TypeAlias = dict[str, str]
_TIMEOUT: Final = httpx.Timeout(connect=5.0, read=600.0, write=30.0, pool=5.0)
_DATA: Final = "data:"


class ChatError(Exception):
    """The API refused or broke off; the message is one sentence for a person."""


@dataclass
class Answer:
    """What is known once an answer has been streamed.

    Attributes:
        text: all of it so far. completion_tokens: 0 when not told.
        finish_reason: None when it was broken off.
    """

    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0


class Piece(NamedTuple):
    """New text of an answer, or of what the model thinks before it."""

    text: str
    is_reasoning: bool = False


class ChatClient:
    """A client of one API; a context manager.

    Args:
        base_url: ends in `/v1`.
        verify: whether to check the server's certificate.
    """

    def __init__(self, base_url: str, api_key: str, *, verify: bool = True) -> None:
        self._base_url = base_url.rstrip("/")
        headers = {b"authorization": b"Bearer " + api_key.encode()} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def models(self) -> list[str]:
        """Names of the models that are served.

        Raises:
            ChatError: the API does not answer or refuses.
        """
        try:
            answer = self._client.get(f"{self._base_url}/models")
            if answer.is_error:
                raise ChatError(_error_text(answer))
            return [str(card["id"]) for card in answer.json()["data"]]
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ChatError(f"{self._base_url} does not answer as OpenAI's API does") from error

    def chat_models(self) -> list[str]:
        """Names of those that chat, as far as the API tells; else of all.

        Raises:
            ChatError: the API does not answer or refuses.
        """
        served = self.models()
        try:
            answer = self._client.get(f"{self._base_url}/capabilities")
            told = answer.json()["data"] if answer.status_code == 200 else []
            chat = {one["id"] for one in told if one["operations"]["chat"]["served"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            chat = set()
        return [name for name in served if name in chat] or served

    def stream(
        self, model: str, messages: list[Message], options: dict[str, Any], answer: Answer
    ) -> Generator[Piece, None, None]:
        """Pieces of the answer as they come; `answer` grows with them.

        Closing the iterator cancels the request.

        Raises:
            ChatError: the API does not answer, refuses, or breaks off.
        """
        body = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        try:
            with self._client.stream(
                "POST", f"{self._base_url}/chat/completions", json=body
            ) as response:
                if response.is_error:
                    response.read()
                    raise ChatError(_error_text(response))
                for line in response.iter_lines():
                    data = line.removeprefix(_DATA).strip() if line.startswith(_DATA) else ""
                    if data == "[DONE]":
                        return
                    if data:
                        yield from _take(json.loads(data), answer)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChatError(f"the answer could not be read ({error})") from error
        raise ChatError("the answer was broken off")

    def _unreachable(self, error: httpx.HTTPError) -> ChatError:
        reason = str(error) or type(error).__name__
        return ChatError(f"no answer from {self._base_url} ({reason})")


def _take(chunk: dict[str, Any], answer: Answer) -> list[Piece]:
    """What one chunk adds; noted in `answer`."""
    if chunk.get("error"):
        raise ChatError(str(chunk["error"].get("message") or "the answer was broken off"))
    if chunk.get("usage"):
        answer.completion_tokens = int(chunk["usage"].get("completion_tokens") or 0)
    if not chunk.get("choices"):
        return []
    choice = chunk["choices"][0]
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    delta = choice.get("delta") or {}
    reasoning, text = str(delta.get("reasoning_content") or ""), str(delta.get("content") or "")
    answer.text += text
    pieces = [Piece(reasoning, is_reasoning=True), Piece(text)]
    return [piece for piece in pieces if piece.text]


def _error_text(answer: httpx.Response) -> str:
    """The message of an error body, whatever its form."""
    try:
        body = answer.json()
        message = body["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:200].strip()
    return str(message or f"the API answers {answer.status_code}")
