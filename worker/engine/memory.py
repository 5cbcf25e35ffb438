"""How much main memory this process may still take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from worker.engine.cgroups import folders


def free_memory(root: Path = Path("/"), available: int | None = None) -> int:
    """Bytes that the machine has left, and each control group of this process, as containers are.

    Copies of files that the system keeps in memory count as free: it gives them up for others.

    Args:
        root: where /proc and /sys are.
        available: of the machine; None to ask it.
    """
    if available is None:
        available = psutil.virtual_memory().available
    return max(0, min([available, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    for folder in folders(root, "memory"):
        for limit, usage, cached in (
            ("memory.max", "memory.current", ("active_file", "inactive_file")),
            (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                ("total_active_file", "total_inactive_file"),
            ),
        ):
            allowed, used = _number(folder / limit), _number(folder / usage)
            if allowed is not None and used is not None:
                kept = _statistics(folder / "memory.stat")
                yield allowed - used + sum(kept.get(name, 0) for name in cached)


def _number(file: Path) -> int | None:
    """What a file says, None for `max` and where it cannot be read."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _statistics(file: Path) -> dict[str, int]:
    lines = _text(file).splitlines()
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
