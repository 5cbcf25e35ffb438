"""Wall clocks of tiers that a row sets forward and back, by libfaketime where it is installed.

The monotonic clock stays as it is, as it does when an operator or NTP sets a machine's time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NEEDS: Final = "needs libfaketime (Debian's package faketime)"


def library() -> Path | None:
    """libfaketime for programs with threads, if it is there."""
    places = ("lib*/faketime", "lib*/*/faketime", "local/lib*/faketime")
    found = (one for place in places for one in Path("/usr").glob(f"{place}/libfaketimeMT.so.1"))
    return next(found, None)


class Clock:
    """Of one tier. A process that was started with `prefix` shows the time that is set here.

    Args:
        file: is made, and read by the processes once a second.
    """

    def __init__(self, file: Path, faketime: Path) -> None:
        self._file = file
        self.set(0)
        settings = {
            "LD_PRELOAD": faketime,
            "FAKETIME_TIMESTAMP_FILE": file,
            "FAKETIME_CACHE_DURATION": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
            "NO_FAKE_STAT": 1,
        }
        self.prefix = ("env", *(f"{name}={value}" for name, value in settings.items()))

    def set(self, ahead_s: int) -> None:
        """Show the true time and so many seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}\n")
        os.replace(new, self._file)
