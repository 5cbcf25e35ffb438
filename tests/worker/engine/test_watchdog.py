"""The counter that two processes share, and what its standing still is taken for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from worker.engine.watchdog import Pulse, Watchdog, idle_beat_s

BEATS = """
import sys, time
from worker.engine.watchdog import Pulse
pulse = Pulse(int(sys.argv[1]))
while True:
    pulse.beat()
    time.sleep(0.001)
"""


def until_hung(dog: Watchdog, count: int, start_s: float) -> float:
    """Seconds of looking at a counter that stands still."""
    now_s = start_s
    while not dog.is_hung(count, now_s):
        now_s += dog.look_every_s
    return now_s - start_s


def test_another_process_moves_the_counter_on_and_a_stopped_one_does_not() -> None:
    pulse = Pulse.create()
    given = [sys.executable, "-c", BEATS, str(pulse.descriptor)]
    with subprocess.Popen(given, pass_fds=[pulse.descriptor]) as beating:
        try:
            deadline = time.monotonic() + 30
            while pulse.count < 10:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            beating.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            stood = pulse.count
            time.sleep(0.1)
            assert pulse.count == stood
        finally:
            beating.kill()
    pulse.close()


@pytest.mark.parametrize("limit_s", [0.4, 10.0])
def test_a_counter_that_stands_still_is_found_soon_after_the_limit(limit_s: float) -> None:
    dog = Watchdog(limit_s)
    assert not dog.is_hung(5, 100.0)
    assert limit_s < until_hung(dog, 5, 100.0) <= 1.2 * limit_s


def test_a_counter_that_moves_now_and_then_is_not_hung() -> None:
    dog = Watchdog(10)
    for count in range(20):
        for at in range(39):  # 9.75 s
            assert not dog.is_hung(count, 10.0 * count + 0.25 * at)


def test_time_in_which_nobody_looked_proves_nothing() -> None:
    """As when the whole worker was stopped for an hour: its engine was too."""
    dog = Watchdog(10)
    assert not dog.is_hung(5, 0.0)
    assert not dog.is_hung(5, 3600.0)
    assert until_hung(dog, 5, 3600.0) > 9


@pytest.mark.parametrize(("limit_s", "found_s"), [(1.0, 60.0), (10.0, 60.0), (20.0, 120.0)])
def test_a_process_that_computes_without_moving_its_counter_has_longer(
    limit_s: float, found_s: float
) -> None:
    dog = Watchdog(limit_s)
    now_s = 100.0
    while not dog.is_hung(5, now_s, cpu_s=0.3 * now_s):
        now_s += dog.look_every_s
    assert found_s < now_s - 100 <= found_s + 2 * limit_s / 8
    assert dog.still_s == pytest.approx(now_s - 100)


def test_threads_that_wait_for_a_lock_do_not_count_as_computing() -> None:
    """They look for it now and then, which takes a hundredth of a core."""
    dog = Watchdog(10)
    now_s = 100.0
    while not dog.is_hung(5, now_s, cpu_s=7 + 0.01 * now_s):
        now_s += dog.look_every_s
    assert 10 < now_s - 100 <= 12


def test_a_process_that_stops_after_a_long_computation_is_found_soon_after_the_limit() -> None:
    dog = Watchdog(10)
    for at in range(160):  # 40 s
        assert not dog.is_hung(5, 0.25 * at, cpu_s=0.25 * at)
    now_s = 40.0
    while not dog.is_hung(5, now_s, cpu_s=40.0):
        now_s += 0.25
    assert 9 < now_s - 40 <= 12


@pytest.mark.parametrize("limit_s", [0.1, 1.0, 10.0, 100.0])
def test_a_process_without_work_moves_often_enough(limit_s: float) -> None:
    assert idle_beat_s(limit_s) + 2 * Watchdog(limit_s).look_every_s < limit_s


PARENT = """
import os, subprocess, sys, time
code = "import worker.engine.watchdog as w; w.end_with_parent(%d); print(1, flush=True); input()"
code %= os.getpid()
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
made = subprocess.Popen([sys.executable, "-c", code], **pipes)
made.stdout.readline()
print(made.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not offer it")
def test_a_stopped_process_does_not_outlive_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        child.suspend()
        assert child.is_running()
        parent.kill()
        assert not psutil.wait_procs([child], timeout=10)[1]


def test_a_process_whose_parent_has_ended_before_it_could_ask_ends_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    code = f"import worker.engine.watchdog as w; w.end_with_parent({ended.pid}); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b"")
