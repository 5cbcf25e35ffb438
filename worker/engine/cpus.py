"""How many threads the engine's arithmetic should have: the cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from worker.engine.cgroups import folders


def usable_cores(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> int:
    """Physical cores among the CPUs that this process may run on, and no more than its quota.

    Two hardware threads of one core share the units that matrix products keep busy, so they count
    once. Quotas of control groups, versions 1 and 2, are those of containers and services.

    Args:
        root: where /proc and /sys are.
        cpus: numbers of the CPUs; None for those of the process.
    """
    allowed = set(_affinity() if cpus is None else cpus)
    cores = {_siblings(root, cpu) for cpu in allowed}
    quota = min(_quotas(root), default=float(len(cores)))
    return max(1, int(min(len(cores), quota)))


def _affinity() -> Iterable[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _siblings(root: Path, cpu: int) -> str:
    """A name of the core that `cpu` belongs to."""
    listed = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return listed.read_text().strip() if listed.is_file() else str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each control group above this process allows."""
    for folder in folders(root, "cpu"):
        yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    files = folder / "cpu.max", folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if files[0].is_file():
        limit, _, period = files[0].read_text().strip().partition(" ")
        if limit != "max" and int(period or 0) > 0:
            yield int(limit) / int(period)
    elif files[1].is_file() and files[2].is_file():
        quota, period_us = int(files[1].read_text()), int(files[2].read_text())
        if quota > 0 and period_us > 0:
            yield quota / period_us
