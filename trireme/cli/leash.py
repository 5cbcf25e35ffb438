"""Run as a script: `leash.py PARENT COMMAND…` becomes the command, and dies with the parent.

On Linux the kernel sends SIGKILL when the thread that started it ends, however it ends; the order
survives the exec. Elsewhere there is no such leash. It is a program, not a `preexec_fn`, because
code between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main() -> None:
    """Tie this process to its parent and become the command; returns only by an exception."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)  # it died before the leash held
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
