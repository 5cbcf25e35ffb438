"""Who may call: the API keys, what each is allowed, and the file that they are read from.

Keys are held and compared as digests and never logged; a key's name stands for it everywhere.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trireme.service.auth import DIGEST_PREFIX, KEY_NAME, digest

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
GONE_AFTER: Final = 2
"""Looks in a row that find no file: one alone may fall between two steps of an editor."""
MAX_FILE_BYTES: Final = 16 * 2**20
_MAX_LIMIT: Final = 10**12


@dataclass(frozen=True, slots=True)
class Limits:
    """Most requests and tokens a minute; 0 is no limit."""

    requests: int = 0
    tokens: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that may be used, without the key itself.

    Attributes:
        name: stands for it in the usage ledger.
        digest: SHA-256 of the key.
        salt: tells tenants apart on workers, without telling their keys.
        models: the only ones that it may use; None for all.
    """

    name: str
    digest: bytes
    salt: str
    models: frozenset[str] | None = None
    limits: Limits = Limits()

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


def api_key(name: str, found: bytes, models: Iterable[str] | None, limits: Limits) -> ApiKey:
    """The key with that digest."""
    allowed = None if models is None else frozenset(models)
    return ApiKey(name, found, found.hex()[:16], allowed, limits)


def plain_key(key: str, limits: Limits) -> ApiKey:
    """A key without an entry of its own, named by the beginning of its digest."""
    found = digest(key)
    return api_key(f"key-{found.hex()[:8]}", found, None, limits)


def anonymous(limits: Limits) -> ApiKey:
    """Everybody, where there are no keys."""
    return ApiKey("-", digest(""), "", None, limits)


class KeyRing:
    """The accepted keys. An empty ring accepts every caller as `nobody`.

    A key is found by a keyed hash of its digest, so that the time of a look-up tells nothing of
    the digests, however many there are.
    """

    def __init__(self, keys: Iterable[ApiKey], nobody: ApiKey) -> None:
        self._nobody = nobody
        self._secret = secrets.token_bytes(32)
        self.replace(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """These keys from now on; of two with one digest the last counts."""
        self._keys = {self._place(key.digest): key for key in keys}

    def find(self, token: str | None) -> ApiKey | None:
        """The key that `token` is."""
        if not self._keys:
            return self._nobody
        if token is None:
            return None
        given = digest(token)
        key = self._keys.get(self._place(given))
        return key if key is not None and hmac.compare_digest(given, key.digest) else None

    def _place(self, found: bytes) -> bytes:
        return blake2b(found, key=self._secret, digest_size=16).digest()


# ---- the file -----------------------------------------------------------------------------------


_Name = Annotated[str, StringConstraints(pattern=KEY_NAME)]
_Limit = Annotated[int, Field(ge=0, le=_MAX_LIMIT)]


class _Entry(BaseModel):
    """A table of the file; `digest` or `key` says which key it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Name
    digest: Annotated[str, StringConstraints(pattern=rf"^{DIGEST_PREFIX}[0-9a-f]{{64}}$")] = ""
    key: Annotated[str, StringConstraints(pattern=r"^\S+$", max_length=1024)] = ""
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    limit_requests: _Limit | None = None
    limit_tokens: _Limit | None = None

    def api_key(self, default: Limits) -> ApiKey:
        given = bytes.fromhex(self.digest.removeprefix(DIGEST_PREFIX)) or digest(self.key)
        limits = Limits(
            default.requests if self.limit_requests is None else self.limit_requests,
            default.tokens if self.limit_tokens is None else self.limit_tokens,
        )
        return api_key(self.name, given, self.models, limits)


def read_keys(path: Path, default: Limits) -> list[ApiKey]:
    """The keys of a file: one key a line, or where its name ends in `.toml` one table a key.

    Args:
        default: limits of the keys that have none of their own.

    Raises:
        ValueError: names the file and the line or entry at fault, and tells no key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES >> 20} MiB")
        text = content.decode("utf-8")
        read = _tables if path.suffix == ".toml" else _lines
        keys = read(text, default)
        if not keys:
            raise ValueError("no key in it")
        return keys
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8 text") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _lines(text: str, default: Limits) -> list[ApiKey]:
    keys = []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if len(line.split()) > 1 and not line.startswith("#"):
            raise ValueError(f"line {number} has a space in it")
        if line and not line.startswith("#"):
            keys.append(plain_key(line, default))
    return keys


def _tables(text: str, default: Limits) -> list[ApiKey]:
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # the message shows a line's number, and nothing of the line
        place = re.search(r"\(at .+?\)$", str(error))
        raise ValueError(f"it is no TOML {place[0] if place else ''}".strip()) from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if unknown := found.keys() - {"keys"}:
        raise ValueError(f"unknown table or field '{min(unknown)}'; entries begin with [[keys]]")
    entries = found.get("keys", [])
    if not isinstance(entries, list):
        raise ValueError("entries begin with [[keys]]")
    keys: list[ApiKey] = []
    seen: dict[object, int] = {}
    for number, fields in enumerate(entries, start=1):
        key = _entry(number, fields).api_key(default)
        for what, value in (("name", key.name), ("key", key.digest)):
            if (first := seen.setdefault(value, number)) != number:
                raise ValueError(f"entry {number} ({key.name}) has the {what} of entry {first}")
        keys.append(key)
    return keys


def _entry(number: int, fields: Any) -> _Entry:
    try:
        entry = _Entry.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "entry"
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise ValueError(f"entry {number}, {field}: {reason}") from None
    if bool(entry.digest) == bool(entry.key):
        raise ValueError(f"entry {number} ({entry.name}): give either digest or key")
    return entry


async def follow(
    path: Path,
    read: Callable[[], Iterable[ApiKey]],
    ring: KeyRing,
    tell: Callable[[bool], None] = lambda _ok: None,
) -> None:
    """Take over what changes in the file, for ever; one that is no good changes nothing.

    Args:
        tell: called with whether the keys are those of the file, after every look that shows.
    """
    seen: tuple[int, ...] | None = None
    missed = 0
    while True:
        stamp = await asyncio.to_thread(_stamp, path)
        missed = missed + 1 if stamp is None else 0
        if missed == GONE_AFTER:
            log.error("the API keys stay as they were: %s is gone or cannot be looked at", path)
            tell(False)
            seen = ()  # whatever comes back is to be read
        elif stamp is not None and stamp != seen:
            tell(await _take_over(read, ring, again=seen is not None))
            seen = stamp
        await asyncio.sleep(LOOK_EVERY_S)


async def _take_over(read: Callable[[], Iterable[ApiKey]], ring: KeyRing, *, again: bool) -> bool:
    try:
        ring.replace(await asyncio.to_thread(read))
    except ValueError as error:
        log.error("the API keys stay as they were: %s", error)
        return False
    except Exception:  # whatever it is, the next change is to be read
        log.exception("the API keys stay as they were")
        return False
    if again:
        log.info("the API keys were read again")
    return True


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes with the file; None while there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
