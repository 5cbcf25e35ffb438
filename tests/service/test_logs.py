"""Log lines: one form for all loggers, with the request id."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from trireme.service.logs import configure_logging, request_id


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("worker", "info", "json")
    token = request_id.set("req-1")
    try:
        raise ValueError("broken\nin two lines")
    except ValueError:
        logging.getLogger("a.b").exception("it %s", "failed")
    finally:
        request_id.reset(token)
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert fields["level"] == "error"
    assert fields["tier"] == "worker"
    assert fields["logger"] == "a.b"
    assert fields["request_id"] == "req-1"
    assert fields["message"] == "it failed"
    assert "ValueError: broken" in fields["exception"]


def test_text_names_tier_and_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway", "warning", "text")
    logging.getLogger("a").info("unseen")
    logging.getLogger("a").warning("seen")
    line = capsys.readouterr().err
    assert "unseen" not in line
    assert line.endswith("WARNING gateway a [-] seen\n")


def test_chatty_libraries_are_kept_down(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway", "debug", "text")
    logging.getLogger("httpx").info("unseen")
    assert capsys.readouterr().err == ""
