"""What a gateway's processes share, found or made before they start."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import IO

from gateway.buckets import TABLE_BYTES
from gateway.config import GatewaySettings
from trireme.service.ledger import LedgerError, default_path, open_ledger, user_path

log = logging.getLogger(__name__)


def usage_db(settings: GatewaySettings) -> Path | None:
    """The file of the usage ledger; None when there is to be none.

    The default one is done without where it cannot be written, as in a container. A file that is
    locked, or on a full disk, is waited for by whoever writes it.

    Raises:
        LedgerError: the file that was asked for cannot be used.
    """
    if settings.usage_db == "none":
        return None
    asked_for = settings.usage_db != "auto"
    try:
        path = user_path(settings.usage_db) if asked_for else default_path()
        return _usable(path)
    except LedgerError as error:
        if asked_for:
            raise LedgerError(f"--usage-db {error}") from error
        log.warning("no usage ledger is kept: %s", error)
        return None


def _usable(path: Path) -> Path:
    try:
        open_ledger(path).close()
    except LedgerError as error:
        if not error.is_passing:
            raise
        log.warning("the usage ledger cannot be written yet: %s", error)
    return path


def shared_table() -> IO[bytes]:
    """The memory in which several processes keep what callers have used of their limits; it is
    gone when the last of them closes it.

    Its room is taken now: a process that writes where a full file system has none would be killed.

    Raises:
        OSError: there is none.
    """
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("trireme-limits"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
    file.write(bytes(TABLE_BYTES))
    file.flush()
    return file
