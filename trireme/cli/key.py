"""`trireme key`: a new API key, shown once, and what a gateway keeps of it."""

from __future__ import annotations

import json
import re
import secrets
import sys

from trireme.service.auth import DIGEST_PREFIX, KEY_NAME, digest


def make_key(name: str, models: str, limit_requests: int | None, limit_tokens: int | None) -> int:
    """Write the key to stderr and its entry, as TOML, to stdout; returns the exit code."""
    if not re.fullmatch(KEY_NAME, name):
        sys.stderr.write(
            f"✗ {name[:80]!r} is no name for a key: use letters, digits and . _ @ - (at most 64)\n"
        )
        return 2
    key = "sk-" + secrets.token_urlsafe(32)
    fields: dict[str, str | int | list[str]] = {
        "name": name,
        "digest": DIGEST_PREFIX + digest(key).hex(),
    }
    if allowed := [model.strip() for model in models.split(",") if model.strip()]:
        fields["models"] = allowed
    if limit_requests is not None:
        fields["limit_requests"] = limit_requests
    if limit_tokens is not None:
        fields["limit_tokens"] = limit_tokens
    # texts, numbers and lists of texts look the same in TOML as in JSON
    lines = [f"{field} = {json.dumps(value)}" for field, value in fields.items()]
    sys.stdout.write("\n".join(["", "[[keys]]", *lines, ""]))
    sys.stderr.write(f"The key, which is shown this once:\n{key}\n")
    return 0
