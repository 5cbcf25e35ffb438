"""Where Linux keeps what the control groups of this process allow, versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, the innermost first; they may not exist.

    Args:
        root: where /proc and /sys are.
        controller: such as `cpu` or `memory`.
    """
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return
    for line in groups.read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if controllers:
            if controller not in controllers.split(","):
                continue
            base /= controllers
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder
            if folder == base:
                break
