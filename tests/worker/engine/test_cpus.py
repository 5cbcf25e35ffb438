"""Threads follow the cores that the process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine.cpus import usable_cores


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Four cores of two hardware threads each: CPUs 0 to 7."""
    for cpu in range(8):
        siblings = f"{cpu % 4},{cpu % 4 + 4}"
        write(
            tmp_path,
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list",
            siblings,
        )
    return tmp_path


def test_hardware_threads_of_a_core_count_once(machine: Path) -> None:
    assert usable_cores(machine, range(8)) == 4
    assert usable_cores(machine, [0, 4]) == 1
    assert usable_cores(machine, [0, 1, 5]) == 2


@pytest.mark.parametrize(
    ("limit", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 4)]
)
def test_a_quota_of_cgroup_2_holds(machine: Path, limit: str, cores: int) -> None:
    write(machine, "proc/self/cgroup", "0::/")
    write(machine, "sys/fs/cgroup/cpu.max", limit)
    assert usable_cores(machine, range(8)) == cores


def test_the_tightest_group_above_the_process_holds(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/pod/container")
    write(machine, "sys/fs/cgroup/pod/cpu.max", "100000 100000")
    write(machine, "sys/fs/cgroup/pod/container/cpu.max", "300000 100000")
    assert usable_cores(machine, range(8)) == 1


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 4)])
def test_a_quota_of_cgroup_1_holds(machine: Path, quota: str, cores: int) -> None:
    write(machine, "proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a")
    write(machine, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", quota)
    write(machine, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000")
    assert usable_cores(machine, range(8)) == cores


def test_a_system_that_tells_nothing_has_its_cpus(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, range(3)) == 3
    assert usable_cores(tmp_path, []) == 1
    assert usable_cores() >= 1
