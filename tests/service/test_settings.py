"""Settings: flag beats environment beats default; bad ones are one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import Field

from trireme.service.settings import (
    Strings,
    TierSettings,
    is_loopback,
    load_settings,
    settings_config,
)


class Sample(TierSettings):
    """A tier for tests."""

    model_config = settings_config("sample")

    port: int = Field(4321, ge=0, le=65535, description="port to bind")
    model_names: Strings = Field((), description="names")
    ratio: float = Field(0.5, gt=0, description="a share")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_KEYFILE", "SSL_CERTFILE", "TRIREME_CLUSTER_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        load_settings(Sample, argv)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("python -m sample: ")
    return line


def test_a_flag_beats_the_environment_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(Sample, []).port == 4321
    monkeypatch.setenv("TRIREME_SAMPLE_PORT", "1000")
    assert load_settings(Sample, []).port == 1000
    assert load_settings(Sample, ["--port", "2000"]).port == 2000


def test_an_empty_environment_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIREME_SAMPLE_PORT", "")
    assert load_settings(Sample, []).port == 4321


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b ,", ("a", "b")),
        ('["a", "b,c"]', ("a", "b,c")),
        ("[]", ()),
        ('["*"]', ("*",)),
    ],
)
def test_lists_come_as_json_or_with_commas(
    given: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(Sample, ["--model-names", given]).model_names == names
    assert load_settings(Sample, [f"--model-names={given}"]).model_names == names
    monkeypatch.setenv("TRIREME_SAMPLE_MODEL_NAMES", given)
    assert load_settings(Sample, []).model_names == names


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("--port", "many"), ("--port", "many")),
        (("--port", "70000"), ("--port", "65535", "70000")),
        (("--ratio", "0"), ("--ratio",)),
        (("--model-names", "[1]"), ("--model-names",)),
        (("--model-names", "["), ("--model-names",)),
        (("--unknown", "1"), ("--unknown",)),
        (("--port",), ("--port",)),
        (("stray",), ("stray",)),
        (("--log-format", "xml"), ("--log-format", "json")),
    ],
)
def test_bad_arguments_are_one_line_that_names_them(
    argv: tuple[str, ...], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *argv)
    assert all(part in line for part in parts)


@pytest.mark.parametrize(
    "argv",
    [("--cluster-token", ""), ("--cluster-token=",), ("--model-names", " "), ("--model-names=",)],
)
def test_a_flag_with_an_empty_value_is_refused(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    flag = argv[0].rstrip("=")
    assert f"{flag} is empty" in refused(capsys, "--port", "1", *argv)


def test_a_bad_environment_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIREME_SAMPLE_PORT", "many")
    assert "many" in refused(capsys)


def test_names_that_all_tiers_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    monkeypatch.setenv("SSL_KEYFILE", str(key))
    monkeypatch.setenv("SSL_CERTFILE", str(certificate))
    monkeypatch.setenv("TRIREME_CLUSTER_TOKEN", "shared")
    settings = load_settings(Sample, ["--ssl"])
    assert (settings.ssl_keyfile, settings.ssl_certfile) == (key, certificate)
    assert settings.cluster_token == "shared"
    monkeypatch.setenv("TRIREME_SAMPLE_CLUSTER_TOKEN", "own")
    assert load_settings(Sample, []).cluster_token == "own"
    assert load_settings(Sample, ["--cluster-token", "flag"]).cluster_token == "flag"


def test_the_token_is_not_in_the_repr() -> None:
    assert "geheim" not in repr(load_settings(Sample, ["--cluster-token", "geheim"]))


def test_tls_without_its_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "SSL_KEYFILE" in refused(capsys, "--ssl")
    key = tmp_path / "key"
    key.touch()
    monkeypatch.setenv("SSL_KEYFILE", str(key))
    assert "SSL_CERTFILE" in refused(capsys, "--ssl")
    assert "no file" in refused(capsys, "--ssl", "--ssl-certfile", str(tmp_path / "absent"))


def test_a_key_that_is_not_the_certificates_or_no_key_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    authority = trustme.CA()
    authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(str(certificate))
    authority.issue_cert("localhost").private_key_pem.write_to_path(str(key))
    flags = ("--ssl", "--ssl-keyfile", str(key), "--ssl-certfile", str(certificate))
    assert f"SSL_KEYFILE {key} is not the key of" in refused(capsys, *flags)
    key.write_text("nonsense")
    assert "no certificate chain and key in PEM" in refused(capsys, *flags)
    locked = load_pem_private_key(trustme.CA().private_key_pem.bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    key.write_bytes(locked)
    assert "SSL_KEYFILE is encrypted" in refused(capsys, *flags)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    Sample(host=host).require_token_off_loopback()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "worker.example.org", ""])
def test_any_other_address_needs_a_token_or_a_word(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="--cluster-token"):
        Sample(host=host).require_token_off_loopback()
    Sample(host=host, cluster_token="t").require_token_off_loopback()
    Sample(host=host, allow_unauthenticated=True).require_token_off_loopback()


def test_help_shows_defaults_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(Sample, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "A tier for tests." in shown
    assert "--model-names a,b" in shown
    assert "(default: 4321)" in shown
    assert "TRIREME_SAMPLE_LOG_LEVEL" in shown
    for word in ("tuple", "null", "()"):
        assert word not in shown
