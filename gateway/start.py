"""What a gateway's processes share, found or made before they start."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import IO

from gateway.buckets import TABLE_BYTES
from gateway.config import GatewaySettings
from trireme.service.ledger import LedgerError, default_path, open_ledger

log = logging.getLogger(__name__)


def usage_db(settings: GatewaySettings) -> Path | None:
    """The file of the usage ledger, which can be written; None when there is to be none.

    The default one is done without where it cannot be written, as in a container.

    Raises:
        LedgerError: the file that was asked for cannot be used.
    """
    if settings.usage_db == "none":
        return None
    asked_for = settings.usage_db != "auto"
    path = Path(settings.usage_db).expanduser() if asked_for else default_path()
    try:
        open_ledger(path).close()
    except LedgerError as error:
        if asked_for:
            raise LedgerError(f"--usage-db {error}") from error
        log.warning("no usage ledger is kept: %s", error)
        return None
    return path


def shared_table() -> IO[bytes]:
    """The memory in which several processes keep what callers have used of their limits; it is
    gone when the last of them closes it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
    file.truncate(TABLE_BYTES)
    return file
