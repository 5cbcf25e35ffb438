"""`trireme key`, and a gateway's reading of what it prints."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from gateway.keys import KeyRing, Limits, anonymous, read_keys

Trireme = Callable[..., subprocess.CompletedProcess[str]]


def test_the_entry_is_that_of_the_key(trireme: Trireme, tmp_path: Path) -> None:
    flags = ("--models", "a, b", "--limit-requests", "60", "--limit-tokens", "0")
    made = [trireme("key", "alice", *flags), trireme("key", "bob")]
    assert [one.returncode for one in made] == [0, 0]
    file = tmp_path / "keys.toml"
    file.write_text("".join(one.stdout for one in made))
    ring = KeyRing(read_keys(file, Limits(5, 7)), anonymous(Limits()))
    alice, bob = (one.stderr.split()[-1] for one in made)
    assert alice != bob
    assert alice not in file.read_text()
    found = ring.find(alice)
    assert found is not None
    assert (found.name, found.models, found.limits) == ("alice", {"a", "b"}, Limits(60, 0))
    assert (other := ring.find(bob)) is not None
    assert (other.name, other.models, other.limits) == ("bob", None, Limits(5, 7))


def test_a_name_that_the_file_could_not_have_is_refused(trireme: Trireme) -> None:
    refused = trireme("key", "al ice")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'al ice'" in refused.stderr
    assert trireme("key", "a\n").returncode == 2
