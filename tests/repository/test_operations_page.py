"""docs/operations.md says what the code says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.keys import Limits, read_keys
from protocol.errors import TAXONOMY

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/operations.md", "docs/api.md"]


def test_the_tables_of_flags_are_those_of_the_settings() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_tables.py", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def shell_lines(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def tier_commands() -> list[tuple[str, str]]:
    """(page, command line) of each tier that a page starts."""
    return [
        (page, line)
        for page in PAGES
        for line in shell_lines(page)
        if re.match(r"(\S+=\S+ )*(trireme-|python -m (controller|worker|gateway))", line)
    ]


@pytest.mark.parametrize(("page", "line"), tier_commands())
def test_a_command_in_the_pages_has_only_flags_that_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    found = re.search(r"(?:trireme-|python -m )(controller|worker|gateway)", line)
    assert found is not None
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= known_flags(found[1])


def known_flags(tier: str) -> set[str]:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_tables
    finally:
        sys.path.pop(0)
    return {make_tables.flag(name) for name in make_tables.settings_of(tier).model_fields}


def test_the_flags_in_the_readme_belong_to_the_tiers_beside_them() -> None:
    rows = re.findall(
        r"^\| (`--.+?) \| ([\w, ]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 5
    for flags, tiers in rows:
        used = set(re.findall(r"`(--[a-z-]+)", flags))
        for tier in ("controller", "worker", "gateway") if tiers == "all" else tiers.split(", "):
            assert used <= known_flags(tier), (tier, used)


def test_the_pages_keys_file_is_one(tmp_path: Path) -> None:
    [example] = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs/operations.md").read_text(), flags=re.DOTALL
    )
    file = tmp_path / "keys.toml"
    file.write_text(example)
    [key] = read_keys(file, Limits())
    assert (key.name, key.limits) == ("alice", Limits(600, 200_000))


def up_commands() -> list[str]:
    lines = {line for page in PAGES for line in shell_lines(page)}
    return sorted(line for line in lines if re.match(r"trireme up\b|make up ARGS=", line))


def test_the_pages_give_trireme_up_only_flags_that_exist() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trireme.cli", "up", "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    known = set(re.findall(r"--[a-z-]+", done.stdout))
    commands = up_commands()
    assert len(commands) >= 2
    for line in commands:
        own = line.partition(" -- ")[0]
        assert set(re.findall(r"(?<=[\s'])--[a-z-]+", own)) <= known, line


def test_every_alert_is_about_metrics_and_jobs_that_exist() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    [example] = re.findall(r"```yaml\n(rule_files:.*?)```", page, flags=re.DOTALL)
    jobs = {job["job_name"] for job in yaml.safe_load(example)["scrape_configs"]}
    known = set(re.findall(r"^\| `((?:trireme_|vllm:)\w+)` \|", page, flags=re.MULTILINE))
    [group] = yaml.safe_load((ROOT / "docs/alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        named = re.findall(r"(?:trireme_|vllm:)\w+", rule["expr"])
        watched = re.findall(r'job="(trireme-\w+)"', rule["expr"])
        assert named or "up{" in rule["expr"], rule
        assert set(watched) <= jobs, rule
        assert {name.removesuffix("_bucket") for name in named} <= known, rule


def test_the_codes_that_alerts_count_are_those_of_the_taxonomy() -> None:
    rules = (ROOT / "docs/alerts.yml").read_text()
    counted = [code for found in re.findall(r'code=~?"(.*?)"', rules) for code in found.split("|")]
    assert {"overloaded", "no_worker", "internal_error"} <= set(counted)
    for code in counted:
        assert any(re.fullmatch(code, known) for known in TAXONOMY), code


def test_every_failure_that_is_not_the_requests_own_is_counted_as_one() -> None:
    rules = yaml.safe_load((ROOT / "docs/alerts.yml").read_text())["groups"][0]["rules"]
    [errors] = [rule["expr"] for rule in rules if rule["alert"] == "TriremeErrors"]
    [counted] = re.findall(r'code=~"(.*?)"', errors)
    passing = {code for code, spec in TAXONOMY.items() if spec.status >= 500}
    # full queues, drains and missing workers have alerts of their own; deadlines are the client's
    apart = {"overloaded", "draining", "no_worker", "deadline_exceeded"}
    assert {code for code in TAXONOMY if re.fullmatch(counted, code)} == passing - apart


def test_every_error_code_that_the_page_names_exists() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    named = set(re.findall(r"^\| [45]\d\d `(\w+)`", text, flags=re.MULTILINE))
    assert named
    assert named <= set(TAXONOMY)
