"""Relays `/worker_generate_stream` to a worker: the only connections that a controller opens.

The caller passes a worker that may be relayed to (`Entry.relayable`); redirects are not followed,
and no proxy of the environment is used.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Final

import httpx

from controller.metrics import ControllerMetrics
from protocol.errors import ErrorCode
from protocol.fastchat import NETWORK_ERROR_TEXT
from protocol.framing import NUL, FrameSplitter

log = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(connect=2.0, read=100.0, write=10.0, pool=5.0)
"""Seconds; `read` is the longest silence of a worker, as FastChat's own WORKER_API_TIMEOUT."""
LIMITS: Final = httpx.Limits(max_connections=512, max_keepalive_connections=32)


def error_frame(code: ErrorCode) -> bytes:
    """A failure as FastChat's clients read it: a frame with text and a number."""
    frame = {"text": NETWORK_ERROR_TEXT, "error_code": int(code)}
    return json.dumps(frame).encode() + NUL


class Relay:
    """Streams answers of workers.

    Args:
        token: shown to the worker, which shares the cluster token; empty shows none.
    """

    def __init__(self, token: str, metrics: ControllerMetrics) -> None:
        headers = {b"content-type": b"application/json"}
        if token:
            headers[b"authorization"] = b"Bearer " + token.encode("utf-8", "surrogateescape")
        self._headers = headers
        self._metrics = metrics
        # the context reads SSL_CERT_FILE, which `trust_env=False` would have httpx ignore
        trusted = ssl.create_default_context()
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT, limits=LIMITS, verify=trusted, trust_env=False
        )

    async def close(self) -> None:
        """Close the pooled connections."""
        await self._client.aclose()

    async def stream(self, address: str, body: bytes) -> AsyncIterator[bytes]:
        """The worker's frames, each with its delimiter; a failure is one more frame.

        Closing the iterator closes the worker's stream.
        """
        outcome = "cancelled"
        splitter = FrameSplitter(NUL)
        url = f"{address}/worker_generate_stream"
        try:
            async with self._client.stream(
                "POST", url, content=body, headers=self._headers
            ) as answer:
                answer.raise_for_status()
                async for data in answer.aiter_bytes():
                    for frame in splitter.feed(data):
                        yield frame + NUL
            if splitter.pending:
                raise httpx.RemoteProtocolError("the stream ended within a frame")
            outcome = "done"
        except (httpx.HTTPError, ValueError) as error:
            outcome = "failed"
            log.warning("relay to %s failed: %s", address, str(error) or type(error).__name__)
            yield error_frame(ErrorCode.CONTROLLER_WORKER_TIMEOUT)
        finally:
            self._metrics.relays.labels(outcome).inc()
