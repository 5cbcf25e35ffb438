"""Keeps the hub's library to one short line for each time that it asks again; it writes four."""

from __future__ import annotations

import logging


def shorten_retries() -> None:
    """For a process that logs already. Imports the library."""
    from huggingface_hub.utils import logging as _hub  # noqa: F401 - it gives itself a handler

    logging.getLogger("huggingface_hub").handlers.clear()
    # what stands before each of these lines, with a long address, is told once at the end
    logging.getLogger("huggingface_hub.utils._http").addFilter(_is_short)


def _is_short(record: logging.LogRecord) -> bool:
    return "thrown while requesting" not in record.getMessage()
