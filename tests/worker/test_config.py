from __future__ import annotations

from pathlib import Path

import pytest

from trireme.service.settings import load_settings
from worker.config import Settings
from worker.engine.protocol import ModelLoadError


def load(*args: str) -> Settings:
    return load_settings(Settings, args)


def test_defaults_are_the_documented_ones() -> None:
    settings = load()
    assert (settings.port, settings.engine, settings.stream_interval) == (21002, "paged", 1)
    assert settings.controller_address == ("http://localhost:21001",)
    assert settings.limit_worker_concurrency is None
    assert not settings.no_register
    assert settings.served_names == ("trireme-demo",)
    assert settings.resolved_model_path.endswith("model")


def test_flags_are_read() -> None:
    settings = load(
        "--engine=sim", "--no-register", "--model-names", "a,b", "--limit-worker-concurrency", "5",
        "--controller-address", "http://x:1/,https://y", "--gpus", "0,1",
    )  # fmt: skip
    assert settings.no_register
    assert settings.served_names == ("a", "b")
    assert settings.limit_worker_concurrency == 5
    assert settings.controller_address == ("http://x:1", "https://y")
    assert settings.gpus == "0,1"


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:1", "mps", "xpu:0"])
def test_devices_that_there_are(name: str) -> None:
    assert load("--device", name).device == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU"])
def test_a_device_that_there_is_not_is_a_bad_argument(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load("--device", name)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_auto_is_no_limit() -> None:
    assert load("--limit-worker-concurrency", "auto").limit_worker_concurrency is None


def test_the_environment_is_read_and_a_flag_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIREME_WORKER_SIM_TOKENS", "9")
    monkeypatch.setenv("TRIREME_WORKER_NO_REGISTER", "1")
    assert (load().sim_tokens, load().no_register) == (9, True)
    assert load("--sim-tokens", "3").sim_tokens == 3


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--engine", "x"], "no engine 'x'"),
        (["--conv-template", "vicuna"], "vicuna_v1.1"),
        (["--chat-template", "/nowhere"], "no file at /nowhere"),
        (["--conv-template", "llama-2", "--chat-template", __file__], "exclude each other"),
        (["--overlap", "on", "--prompt-lookup", "on"], "--prompt-lookup on exclude each other"),
        (["--engine", "sim", "--chat-template", __file__], "--conv-template only"),
        (["--host", "0.0.0.0"], "not loopback"),
        (["--limit-worker-concurrency", "0"], "greater than or equal to 1"),
        (["--stream-interval", "0"], "greater than or equal to 1"),
        (["--controller-address", "localhost:21001"], "write http://localhost:21001"),
        (["--worker-address", "http://user@host"], "no base URL"),
        (["--model-path", " "], "--model-path is empty"),
        (["--tensor-parallel-size", "0"], "greater than or equal to 1"),
        (["--tensor-parallel-size", "2", "--engine", "generate"], "needs --engine paged"),
        (["--tensor-parallel-size", "2", "--device", "cuda:1"], "choose them by --gpus"),
        (["--tensor-parallel-size", "2", "--num-gpus", "2"], "--num-gpus exclude each other"),
        (["--tensor-parallel-size", "2", "--load-8bit"], "--load-8bit exclude each other"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    args: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(*args)
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert reason in message
    assert message.count("\n") == 1


def test_an_open_address_is_fine_with_a_token() -> None:
    assert load("--host", "0.0.0.0", "--cluster-token", "x").host == "0.0.0.0"


def test_a_model_is_named_by_the_basename_of_its_path() -> None:
    assert load("--model-path", "org/some-model").served_names == ("some-model",)
    assert load("--model-path", "/models/other/").served_names == ("other",)
    assert load("--engine", "sim").served_names == ("sim",)


def test_a_folder_that_cannot_be_a_model_is_told_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "missing", "no model folder at"),
        (tmp_path, "no config.json"),
        (tmp_path / "file", "is a file"),
        (Path("./a/b/c"), "no model folder at"),
    ):
        with pytest.raises(ModelLoadError, match=reason):
            load("--model-path", str(path)).check_model_path()
    load("--model-path", "org/name").check_model_path()
    load("--engine", "sim").check_model_path()


def test_the_address_comes_from_host_and_port() -> None:
    assert load().base_url(5, "10.0.0.1") == "http://127.0.0.1:5"
    assert load("--host", "::1").base_url(5, "10.0.0.1") == "http://[::1]:5"
    everywhere = load("--host", "0.0.0.0", "--cluster-token", "x")
    assert everywhere.base_url(5, "10.0.0.1") == "http://10.0.0.1:5"
    named = load("--worker-address", "https://worker.example:99/")
    assert named.base_url(5, "10.0.0.1") == "https://worker.example:99"


@pytest.mark.parametrize("limit", ["inf", "nan", "0"])
def test_a_limit_for_hung_engines_that_never_ends_is_a_bad_argument(
    limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load("--engine-stall-s", limit)
    assert ended.value.code == 2
    assert "engine-stall-s" in capsys.readouterr().err
