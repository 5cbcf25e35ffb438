"""The keys file: what it may say, and how changes of it are taken over."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

import pytest

from gateway import keys
from gateway.keys import KeyRing, Limits, anonymous, follow, plain_key, read_keys
from tests.gateway.fakes import until
from trireme.service.auth import digest

NONE = Limits()
DIGEST = "sha256:" + digest("secret-1").hex()
ALICE = f'[[keys]]\nname = "alice"\ndigest = "{DIGEST}"\n'
BOB = '[[keys]]\nname = "bob"\nkey = "secret-2"\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "keys.toml"
    file.write_text(text)
    return file


def ring(*texts: str) -> KeyRing:
    return KeyRing((plain_key(text, NONE) for text in texts), anonymous(NONE))


@pytest.mark.parametrize("token", ["plain", "ünïcödé", "🔑", "a" * 10_000, "\udcff"])
def test_a_key_is_found_and_anything_else_is_not(token: str) -> None:
    found = ring("other", token).find(token)
    assert found is not None
    assert found.name == f"key-{digest(token).hex()[:8]}"
    assert ring("other").find(token) is None
    assert ring(token).find("") is None
    assert ring(token).find(None) is None


def test_without_keys_everybody_is_the_same_caller() -> None:
    assert ring().find(None) == ring().find("x") == anonymous(NONE)
    assert not ring()


def test_an_entry_has_a_digest_or_a_key_and_its_own_limits(tmp_path: Path) -> None:
    more = 'models = ["a", "b"]\nlimit_requests = 10\nlimit_tokens = 0\n'
    alice, bob = read_keys(written(tmp_path, ALICE + more + BOB), Limits(5, 7))
    assert (alice.name, alice.digest) == ("alice", digest("secret-1"))
    assert (alice.models, alice.limits) == ({"a", "b"}, Limits(10, 0))
    assert (bob.digest, bob.models, bob.limits) == (digest("secret-2"), None, Limits(5, 7))
    assert alice.may_use("a")
    assert not alice.may_use("c")
    assert bob.may_use("c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key in it"),
        ("keys = 3", "[[keys]]"),
        ("[keys]\na = 1", "[[keys]]"),
        ("[[key]]\n", "'key'"),
        (ALICE + "nonsense\n", "it is not valid TOML: line 4, column 9"),
        (
            ALICE + "limit_request = 1\n",
            "entry 1 (alice): no field `limit_request`; did you mean `limit_requests`?",
        ),
        (ALICE + "nothing_near = 1\n", "entry 1 (alice): no field `nothing_near`"),
        (ALICE + f'digests = ["{DIGEST}", "sha256:12"]\n', "entry 1 (alice): digests.1"),
        (ALICE + "limit_tokens = -1\n", "entry 1 (alice): limit_tokens"),
        (ALICE + 'limit_tokens = "1"\n', "entry 1 (alice): limit_tokens"),
        (ALICE + "models = []\n", "entry 1 (alice): models"),
        (ALICE + 'key = "x"\n', "entry 1 (alice): give either digest (or digests) or key"),
        ('[[keys]]\nname = "alice"\n', "entry 1 (alice): give either digest (or digests) or key"),
        ('[[keys]]\nkey = "x"\n', "entry 1: name"),
        ('[[keys]]\nname = "-"\nkey = "x"\n', "entry 1: name"),
        ('[[keys]]\nname = "a"\ndigest = "sha256:12"\n', "entry 1 (a): digest"),
        (ALICE + BOB + ALICE, "entry 3 (alice) has the name of entry 1"),
        (ALICE + ALICE.replace("alice", "carol"), "entry 2 (carol) has the key of entry 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"keys\.toml: ") as caught:
        read_keys(written(tmp_path, text), NONE)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_old_and_a_new_key_are_one_caller(tmp_path: Path) -> None:
    new = "sha256:" + digest("new").hex()
    [alice] = read_keys(written(tmp_path, ALICE + f'digests = ["{new}"]\n'), NONE)
    held = KeyRing([alice], anonymous(NONE))
    assert held.find("secret-1") is held.find("new") is alice
    assert held.find("other") is None
    [listed] = read_keys(
        written(tmp_path, f'[[keys]]\nname = "bob"\ndigests = ["{DIGEST}", "{new}"]\n'), NONE
    )
    assert listed.digests == alice.digests
    with pytest.raises(ValueError, match=r"entry 2 \(bob\) has the key of entry 1"):
        read_keys(
            written(tmp_path, ALICE + f'[[keys]]\nname = "bob"\ndigests = ["{new}", "{DIGEST}"]\n'),
            NONE,
        )


async def test_a_model_that_nobody_serves_is_warned_of_once_for_each_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.01)
    file, held, served = written(tmp_path, ALICE + 'models = ["a", "b"]\n'), ring("x"), set[str]()
    following = asyncio.create_task(
        follow(file, lambda: read_keys(file, NONE), held, lambda: served)
    )
    try:
        await until(lambda: held.find("secret-1"))
        await asyncio.sleep(0.05)
        assert "no worker serves" not in caplog.text
        served.add("b")
        await until(lambda: "no worker serves a, which key alice may use" in caplog.text)
        await asyncio.sleep(0.05)
        assert caplog.text.count("no worker serves") == 1
        written(tmp_path, ALICE + 'models = ["b", "other"]\n')
        await until(lambda: "no worker serves other" in caplog.text)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_a_change_of_the_file_is_taken_over_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.01)
    file = written(tmp_path, ALICE)
    held = ring("before")
    told: list[bool] = []
    read = partial(read_keys, file, NONE)
    following = asyncio.create_task(follow(file, read, held, tell=told.append))
    try:
        await until(lambda: held.find("secret-1"))
        written(tmp_path, BOB)
        await until(lambda: held.find("secret-2"))
        assert held.find("secret-1") is None
        with caplog.at_level(logging.ERROR):
            written(tmp_path, "broken")
            await until(lambda: "stay as they were" in caplog.text)
            written(tmp_path, "x=" + "[" * 5000)
            await until(lambda: "nested too deep" in caplog.text)
        assert held.find("secret-2")
        assert told[:2] == [True, True]
        assert not any(told[2:])
        file.unlink()
        await until(lambda: "is gone" in caplog.text)
        await asyncio.sleep(0.05)
        assert caplog.text.count("is gone") == 1
        assert held.find("secret-2")
        written(tmp_path, ALICE)
        await until(lambda: held.find("secret-1"))
        assert told[-2:] == [False, True]
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_no_fault_ends_the_watch_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "LOOK_EVERY_S", 0.01)
    file, held = written(tmp_path, ALICE), ring("other")
    faults: list[Exception] = [MemoryError(), RuntimeError()]

    def read() -> list[keys.ApiKey]:
        if faults:
            raise faults.pop()
        return read_keys(file, NONE)

    following = asyncio.create_task(follow(file, read, held))
    try:
        for text in (ALICE, BOB, ALICE + BOB):
            written(tmp_path, text)
            await asyncio.sleep(0.1)
        await until(lambda: held.find("secret-2"))
        assert caplog.text.count("stay as they were") == 2
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def test_a_file_that_is_too_large_or_nested_too_deep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for deep in ("x=" + "[" * 5000, "x=" + "{a=" * 3000):
        with pytest.raises(ValueError, match="nested too deep"):
            read_keys(written(tmp_path, deep), NONE)
    monkeypatch.setattr(keys, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(ValueError, match="more than 1 MiB"):
        read_keys(written(tmp_path, "#" * (2**20 + 1)), NONE)
