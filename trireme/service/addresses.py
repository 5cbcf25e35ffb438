"""Base URLs of tiers as people write them. Dials nobody."""

from __future__ import annotations

from urllib.parse import urlsplit


def base_url(text: str) -> str:
    """`http://host:port` or `https://…`, without a slash at its end.

    Raises:
        ValueError: it is none; the message says what to write.
    """
    given = text[:80]
    if "://" not in text:
        raise ValueError(f"{given!r} has no scheme: write http://{given}")
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # such as a port above 65535
        usable = False
    if not usable or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise ValueError(f"{given!r} is no base URL such as http://localhost:21001")
    return text.rstrip("/")


def base_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """The same for each of several, every one once.

    Raises:
        ValueError: one is no base URL, or there is none.
    """
    if not urls:
        raise ValueError("give at least one address")
    return tuple(dict.fromkeys(map(base_url, urls)))
