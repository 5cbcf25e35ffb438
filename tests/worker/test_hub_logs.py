"""What is logged while a hub is asked for a model that it may not have."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from worker.hub_logs import shorten_retries


@pytest.fixture
def library() -> Iterator[logging.Logger]:
    """The library's logger that tells of retries, as it was before at the end."""
    found, root = (logging.getLogger(f"huggingface_hub{name}") for name in (".utils._http", ""))
    handlers, filters = root.handlers[:], found.filters[:]
    yield found
    root.handlers[:], found.filters[:] = handlers, filters


def test_a_retry_is_one_short_line(
    library: logging.Logger, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    shorten_retries()
    library.warning("'no such name' thrown while requesting HEAD https://hub.example.org/nope")
    library.warning("Retrying in 1s [Retry 1/5].")
    assert [record.getMessage() for record in caplog.records] == ["Retrying in 1s [Retry 1/5]."]
    assert capsys.readouterr().err == ""
