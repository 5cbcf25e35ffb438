"""How a tier is started: its command line and environment. Imports no tier."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trireme


def tier_command(tier: str, args: Sequence[str]) -> list[str]:
    """`python -m <tier>` of this interpreter; -P keeps folders of the same name where the person
    happens to stand from being taken for the tier."""
    return [sys.executable, "-P", "-m", tier, *args]


def tier_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment, in which the tiers' packages are found as `trireme` was found."""
    environment = dict(os.environ) | dict(extra or {})
    root = str(Path(trireme.__file__).parents[1])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def become(tier: str, args: Sequence[str]) -> None:
    """Replace this process by the tier; does not return."""
    os.execve(sys.executable, tier_command(tier, args), tier_environment())
