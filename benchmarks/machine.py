"""What figures were measured on, and with which versions."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("trireme", "torch", "transformers", "aiohttp", "uvicorn", "uvloop")


def machine() -> dict[str, Any]:
    """The processor, what of it may be used, and how busy it was."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": _memory_gib(),
        "load_average_before": os.getloadavg(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def versions() -> dict[str, str]:
    """Versions of what runs here; with the commit, in a checkout."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    folder = Path(__file__).parents[1]
    if (folder / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            found["commit"] = subprocess.run(
                ["git", "describe", "--always", "--dirty", "--abbrev=12"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
    return found
