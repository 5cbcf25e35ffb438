"""Who may call: the API keys, what each is allowed, and the file that they are read from.

Keys are held and compared as digests and never logged; a key's name stands for it everywhere.
"""

from __future__ import annotations

import asyncio
import difflib
import hmac
import logging
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from protocol.errors import quoted
from trireme.service.auth import DIGEST_PREFIX, KEY_NAME, digest

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
GONE_AFTER: Final = 2
"""Looks in a row that find no file: one alone may fall between two steps of an editor."""
MAX_FILE_BYTES: Final = 16 * 2**20
_MAX_LIMIT: Final = 10**12
_MAX_DIGESTS: Final = 16


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
        digest: SHA-256 of the key; of several that are one caller's, the first, which stands for
            it where its limits are counted.
        salt: tells tenants apart on workers, without telling their keys.
        models: the only ones that it may use; None for all.
    """

    name: str
    digest: bytes
    salt: str
    models: frozenset[str] | None = None
    limits: Limits = Limits()
    more_digests: tuple[bytes, ...] = ()

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Of all keys that are this caller's."""
        return self.digest, *self.more_digests

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


def api_key(
    name: str, found: Sequence[bytes], models: Iterable[str] | None, limits: Limits
) -> ApiKey:
    """The caller whose keys have these digests, at least one."""
    allowed = None if models is None else frozenset(models)
    return ApiKey(name, found[0], found[0].hex()[:16], allowed, limits, tuple(found[1:]))


def plain_key(key: str, limits: Limits) -> ApiKey:
    """A key without an entry of its own, named by the beginning of its digest."""
    found = digest(key)
    return api_key(f"key-{found.hex()[:8]}", [found], None, limits)


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
        self._keys = {self._place(found): (found, key) for key in keys for found in key.digests}

    def find(self, token: str | None) -> ApiKey | None:
        """The key that `token` is."""
        if not self._keys:
            return self._nobody
        if token is None:
            return None
        given = digest(token)
        known = self._keys.get(self._place(given))
        return known[1] if known is not None and hmac.compare_digest(given, known[0]) else None

    def unserved(self, served: Collection[str]) -> dict[str, str]:
        """Models that a key may use and nobody serves, each with the name of such a key."""
        return {
            model: key.name
            for _digest, key in self._keys.values()
            for model in sorted(key.models or ())
            if model not in served
        }

    def _place(self, found: bytes) -> bytes:
        return blake2b(found, key=self._secret, digest_size=16).digest()


# ---- the file -----------------------------------------------------------------------------------


_Name = Annotated[str, StringConstraints(pattern=KEY_NAME)]
_Digest = Annotated[str, StringConstraints(pattern=rf"^{DIGEST_PREFIX}[0-9a-f]{{64}}$")]
_Limit = Annotated[int, Field(ge=0, le=_MAX_LIMIT)]


class _Entry(BaseModel):
    """A table of the file; `digest`, `digests` or `key` says which keys are the caller's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Name
    digest: _Digest = ""
    digests: Annotated[list[_Digest], Field(min_length=1, max_length=_MAX_DIGESTS)] | None = None
    key: Annotated[str, StringConstraints(pattern=r"^\S+$", max_length=1024)] = ""
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    limit_requests: _Limit | None = None
    limit_tokens: _Limit | None = None

    @property
    def all_digests(self) -> list[str]:
        return [one for one in (self.digest, *(self.digests or ())) if one]

    def api_key(self, default: Limits) -> ApiKey:
        known = [bytes.fromhex(one.removeprefix(DIGEST_PREFIX)) for one in self.all_digests]
        given = known or [digest(self.key)]
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
        place = re.search(r"\((?:at )?(line .+?|end of .+?)\)$", str(error))
        where = f": {place[1]}" if place else ""
        raise ValueError(f"it is not valid TOML{where}") from None
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
        for what, value in (("name", key.name), *(("key", one) for one in key.digests)):
            if (first := seen.setdefault(value, number)) != number:
                raise ValueError(f"entry {number} ({key.name}) has the {what} of entry {first}")
        keys.append(key)
    return keys


def _entry(number: int, fields: Any) -> _Entry:
    try:
        entry = _Entry.model_validate(fields)
    except ValidationError as error:
        raise ValueError(f"{_title(number, fields)}: {_fault(error)}") from None
    if bool(entry.all_digests) == bool(entry.key):
        raise ValueError(f"{_title(number, fields)}: give either digest (or digests) or key")
    return entry


def _title(number: int, fields: Any) -> str:
    """`entry 3 (alice)`, or `entry 3` where what should be a name is none."""
    name = fields.get("name") if isinstance(fields, dict) else None
    named = isinstance(name, str) and re.fullmatch(KEY_NAME, name)
    return f"entry {number} ({name})" if named else f"entry {number}"


def _fault(error: ValidationError) -> str:
    """What is wrong with an entry, without its values."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, _Entry.model_fields, n=1)
        return f"no field `{field[:80]}`" + (f"; did you mean `{near[0]}`?" if near else "")
    reason = first["msg"][:1].lower() + first["msg"][1:]
    return f"{field}: {reason}" if field else reason


async def follow(
    path: Path,
    read: Callable[[], Iterable[ApiKey]],
    ring: KeyRing,
    served: Callable[[], Collection[str]] = tuple,
    tell: Callable[[bool], None] = lambda _ok: None,
) -> None:
    """Take over what changes in the file, for ever; one that is no good changes nothing.

    Args:
        served: names of the fleet's models, empty as long as none is known. What the file allows
            beside them is warned of, once after each time that it was read.
        tell: called with whether the keys are those of the file, after every look that shows.
    """
    seen: tuple[int, ...] | None = None
    checked = False
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
            seen, checked = stamp, False
        if not checked and (models := served()):
            checked = True
            for model, name in ring.unserved(models).items():
                log.warning("no worker serves %s, which key %s may use", quoted(model), name)
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
