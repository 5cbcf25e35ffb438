"""What memory is left, to the machine and to a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engine.memory import free_memory

GIB = 1024**3


def write(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert free_memory(tmp_path, available=7 * GIB) == 7 * GIB
    assert free_memory() > 0


@pytest.mark.parametrize(
    ("limit", "free"), [(str(4 * GIB), 3 * GIB), (str(64 * GIB), 7 * GIB), ("max", 7 * GIB)]
)
def test_a_limit_of_cgroup_2_holds(tmp_path: Path, limit: str, free: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/box")
    write(tmp_path, "sys/fs/cgroup/box/memory.max", limit)
    write(tmp_path, "sys/fs/cgroup/box/memory.current", 2 * GIB)
    write(
        tmp_path,
        "sys/fs/cgroup/box/memory.stat",
        f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB - GIB // 4}",
    )
    assert free_memory(tmp_path, available=7 * GIB) == free


def test_the_tightest_group_above_the_process_holds(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/pod/box")
    for folder, limit in (("pod", 2 * GIB), ("pod/box", 6 * GIB)):
        write(tmp_path, f"sys/fs/cgroup/{folder}/memory.max", limit)
        write(tmp_path, f"sys/fs/cgroup/{folder}/memory.current", GIB)
    assert free_memory(tmp_path, available=7 * GIB) == GIB


def test_a_limit_of_cgroup_1_holds(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a")
    write(tmp_path, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", 4 * GIB)
    write(tmp_path, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", 3 * GIB)
    write(
        tmp_path,
        "sys/fs/cgroup/memory/a/memory.stat",
        f"total_inactive_file {GIB // 4}\ntotal_active_file {GIB - GIB // 4}",
    )
    assert free_memory(tmp_path, available=7 * GIB) == 2 * GIB


def test_a_full_group_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/memory.max", GIB)
    write(tmp_path, "sys/fs/cgroup/memory.current", 2 * GIB)
    assert free_memory(tmp_path, available=7 * GIB) == 0
