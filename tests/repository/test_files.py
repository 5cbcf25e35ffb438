"""Rules for every file of the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 600


def tracked(*patterns: str) -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data and path != Path(__file__):
            found.append((path.relative_to(ROOT), data.decode("utf-8")))
    return found


def offenders(pattern: str) -> list[str]:
    expression = re.compile(pattern)
    return [f"{path}: {match[0]}" for path, text in texts() if (match := expression.search(text))]


def test_nothing_is_left_to_do() -> None:
    assert offenders(r"\b(TODO|FIXME|XXX)\b") == []


def test_no_path_of_somebodys_machine() -> None:
    assert offenders(r"/(work/main|root/\.\w|home/\w+/\w|Users/\w+/\w)") == []


def test_no_address_of_a_package_index() -> None:
    hosts = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|docker\.io|ghcr\.io|quay\.io"
    assert offenders(hosts) == []


def test_no_python_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in tracked("*.py")}
    assert {path: count for path, count in lengths.items() if count > MAX_LINES} == {}


def test_tests_are_no_packages() -> None:
    assert tracked("tests/**/__init__.py", "tests/__init__.py") == []


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = []
    for page in tracked("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            other = (page.parent / name) if name else page
            if not other.exists() or (anchor and anchor not in anchors(other)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_every_file_that_a_page_names_exists() -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in tracked("*.md", "docs/*.md")
        for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|json|md|yaml))`", page.read_text())
        if not (ROOT / name).exists() and not (page.parent / name).exists()
    ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
