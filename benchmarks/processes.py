"""Process trees of the systems under test: their CPU time, and stopping them while others run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Iterator

import psutil


def tree(roots: Iterable[int]) -> list[psutil.Process]:
    """The processes with these pids and all their descendants, parents first; each once."""
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            found[pid] = root
            found.update((child.pid, child) for child in root.children(recursive=True))
    return list(found.values())


def cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds, user and system, that these trees have used, ended children included."""
    total = 0.0
    for process in tree(roots):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            # an ended child's time has moved to its parent's `children_*`
            total += times.user + times.system + times.children_user + times.children_system
    return total


class Pausing:
    """Stops the process trees of all systems but the one that is measured.

    A tree is stopped from its root on, so that no parent sees a child stand still, and continued
    from its leaves on for the same reason.
    """

    def __init__(self) -> None:
        self._stopped: dict[int, psutil.Process] = {}

    def run_only(self, running: Iterable[int], all_roots: Iterable[int]) -> bool:
        """Stop what is below `all_roots` but not below `running`, and continue what is.

        Returns:
            Whether something of `running` had been stopped.
        """
        wanted = tree(running)
        keep = {process.pid for process in wanted}
        for process in tree(all_roots):
            if process.pid not in keep and process.pid not in self._stopped:
                self._send(process, signal.SIGSTOP)
                self._stopped[process.pid] = process
        woken = [pid for pid in self._stopped if pid in keep]
        self._continue(woken)
        return bool(woken)

    def continue_all(self) -> None:
        """Let everything run again."""
        self._continue(list(self._stopped))

    def _continue(self, pids: list[int]) -> None:
        for pid in reversed(pids):
            self._send(self._stopped.pop(pid), signal.SIGCONT)

    @staticmethod
    def _send(process: psutil.Process, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)  # psutil sees to it that the pid is still this process


@contextlib.contextmanager
def pausing() -> Iterator[Pausing]:
    """A `Pausing` whose processes all run again at the end."""
    made = Pausing()
    try:
        yield made
    finally:
        made.continue_all()
