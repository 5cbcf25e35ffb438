"""The adapters of other servers, as far as they can be tested without these."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import ENGINE_PEERS, GATEWAY_PEERS, PeerFailed
from benchmarks.peers import fastchat_tiers as fastchat_peer
from benchmarks.peers import litellm_proxy as litellm_peer
from benchmarks.peers import llama_server as llamacpp_peer
from benchmarks.peers import process as peer_process
from benchmarks.peers import rust_router as router_peer
from benchmarks.systems import Target


def flag(command: list[str], name: str) -> str:
    """The value that follows a flag, which is there once."""
    assert command.count(name) == 1
    return command[command.index(name) + 1]


@pytest.mark.parametrize("name", ENGINE_PEERS)
def test_an_engine_peer_that_is_not_there_is_an_error(
    name: str, tmp_path: Path, demo_model: Path
) -> None:
    missing = str(tmp_path / "nothing")
    with (
        pytest.raises(PeerFailed, match=missing),
        ENGINE_PEERS[name](missing, demo_model, tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", GATEWAY_PEERS)
def test_a_gateway_peer_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    with (
        pytest.raises(PeerFailed, match=missing),
        GATEWAY_PEERS[name](missing, tmp_path, "http://127.0.0.1:1", "m"),
    ):
        pass


def test_an_interpreter_without_the_package_is_an_error_that_says_where_to_read(
    tmp_path: Path,
) -> None:
    with pytest.raises(PeerFailed, match=r"no package no_such_peer; docs/peers\.md"):
        peer_process.interpreter(sys.executable, "no_such_peer")
    assert peer_process.interpreter(sys.executable, "json") == Path(sys.executable)


def test_a_peer_sees_nothing_that_is_meant_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIREME_CLUSTER_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("KEPT", "yes")
    seen = peer_process.environment({"ADDED": "1"})
    assert "TRIREME_CLUSTER_TOKEN" not in seen
    assert "PYTHONPATH" not in seen
    assert (seen["KEPT"], seen["ADDED"], seen["HF_HUB_OFFLINE"]) == ("yes", "1", "1")


def test_llamacpp_asks_for_a_slot_for_each_client() -> None:
    command = llamacpp_peer.command(Path("/a/llama-server"), Path("/a/m.gguf"), "m", 2, 99)
    assert command[0] == "/a/llama-server"
    assert (flag(command, "--model"), flag(command, "--alias")) == ("/a/m.gguf", "m")
    assert (flag(command, "--threads"), flag(command, "--port")) == ("2", "99")
    assert int(flag(command, "--ctx-size")) == int(flag(command, "--parallel")) * 4096


def test_fastchat_does_not_register_a_worker_whose_lease_would_run_out() -> None:
    command = fastchat_peer.worker_command(Path("/v/bin/python"), Path("/copy"), "m", 99)
    assert "--no-register" in command
    assert flag(command, "--worker-address") == "http://127.0.0.1:99"
    assert (flag(command, "--model-path"), flag(command, "--model-names")) == ("/copy", "m")
    assert flag(command, "--dtype") == "bfloat16"


def test_the_router_gets_a_port_of_its_own_for_metrics() -> None:
    command = router_peer.command(Path("/v/bin/python"), "http://127.0.0.1:7", 99, 98)
    assert flag(command, "--worker-urls") == "http://127.0.0.1:7"
    assert (flag(command, "--port"), flag(command, "--prometheus-port")) == ("99", "98")


def test_litellm_sends_its_one_model_to_the_backend() -> None:
    (entry,) = litellm_peer.configuration("http://127.0.0.1:7", "m")["model_list"]  # type: ignore[misc]
    assert entry["model_name"] == "m"
    assert entry["litellm_params"]["model"] == "openai/m"
    assert entry["litellm_params"]["api_base"] == "http://127.0.0.1:7/v1"
    command = litellm_peer.command(Path("/v/bin/python"), Path("/c.json"), 99)
    assert command[0] == "/v/bin/litellm"
    assert flag(command, "--config") == "/c.json"


def test_fastchat_reads_a_copy_with_a_tokenizer_class_that_it_knows(
    tmp_path: Path, demo_model: Path
) -> None:
    before = (demo_model / "tokenizer_config.json").read_bytes()
    copy = fastchat_peer.readable_copy(demo_model, tmp_path / "copy")
    fields = json.loads((copy / "tokenizer_config.json").read_text())
    assert fields == json.loads(before) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert {file.name for file in copy.iterdir()} == {file.name for file in demo_model.iterdir()}
    assert (copy / "model.safetensors").samefile(demo_model / "model.safetensors")
    assert (demo_model / "tokenizer_config.json").read_bytes() == before
    assert fastchat_peer.readable_copy(demo_model, tmp_path / "copy") == copy, "once more"


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="tokenizer_config"):
        fastchat_peer.readable_copy(tmp_path, tmp_path / "copy")


def program(path: Path, body: str) -> Path:
    """An executable Python script."""
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def llama_server(tmp_path: Path, demo_model: Path, root: Path) -> Path:
    """A program that takes llama-server's flags, is the simulated backend, and has a child."""
    (tmp_path / f"{demo_model.name}.gguf").write_bytes(b"GGUF")
    return program(
        tmp_path / "llama-server",
        f"""
        import subprocess, sys
        sys.path.insert(0, {str(root)!r})
        from benchmarks.peers import simulated_backend
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        taken = dict(zip(sys.argv, sys.argv[1:]))
        sys.argv[1:] = ["--port", taken["--port"], "--model", taken["--alias"]]
        simulated_backend.main()
        """,
    )


@pytest.fixture
def target(llama_server: Path, demo_model: Path, tmp_path: Path) -> Iterator[Target]:
    """It, as the adapter starts it."""
    with llamacpp_peer.llamacpp(str(llama_server), demo_model, tmp_path / "logs") as target:
        yield target


def test_a_started_peer_answers_and_tells_its_pid(target: Target, demo_model: Path) -> None:
    assert (target.system, target.model) == ("llama.cpp", demo_model.name)
    (pid,) = target.pids
    assert psutil.Process(pid).children(), "its own child"
    assert peer_process.chats(target.base_url, target.model)


def test_a_server_that_runs_already_is_taken_as_it_is(
    target: Target, demo_model: Path, tmp_path: Path
) -> None:
    url = f"{target.base_url}/"
    with llamacpp_peer.llamacpp(url, demo_model, tmp_path) as running:
        assert running == Target("llama.cpp", target.base_url, target.model)
    assert peer_process.chats(target.base_url, target.model), "it still runs"


def test_everything_of_a_peer_ends_though_it_was_paused(
    llama_server: Path, demo_model: Path, tmp_path: Path
) -> None:
    with llamacpp_peer.llamacpp(str(llama_server), demo_model, tmp_path / "logs") as target:
        root = psutil.Process(target.pids[0])
        processes = [root, *root.children(recursive=True)]
        for process in processes:
            process.send_signal(signal.SIGSTOP)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_a_peer_that_ends_at_its_start_tells_what_it_said(tmp_path: Path, demo_model: Path) -> None:
    (tmp_path / f"{demo_model.name}.gguf").write_bytes(b"")
    broken = program(
        tmp_path / "llama-server", "print('unknown architecture'); raise SystemExit(7)"
    )
    with (
        pytest.raises(PeerFailed, match=r"code 7:\nunknown architecture"),
        llamacpp_peer.llamacpp(str(broken), demo_model, tmp_path / "logs"),
    ):
        pass


def test_llamacpp_without_converted_weights_says_which_file(
    tmp_path: Path, demo_model: Path
) -> None:
    there = program(tmp_path / "llama-server", "")
    with (
        pytest.raises(PeerFailed, match=rf"{demo_model.name}\.gguf.*to_gguf\.py"),
        llamacpp_peer.llamacpp(str(there), demo_model, tmp_path),
    ):
        pass


def test_a_url_that_nobody_listens_on_is_an_error(tmp_path: Path, demo_model: Path) -> None:
    with (
        pytest.raises(PeerFailed, match="no server with a model"),
        llamacpp_peer.llamacpp("http://127.0.0.1:9", demo_model, tmp_path),
    ):
        pass


def test_the_converter_is_told_the_pre_tokenizer_and_writes_all_or_nothing(
    tmp_path: Path, root: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "conversion").mkdir(parents=True)
    (tree / "conversion" / "base.py").write_text(
        "class TextModel:\n    def get_vocab_base_pre(self, _):\n        raise SystemExit(9)\n"
    )
    (tree / "convert_hf_to_gguf.py").write_text(
        textwrap.dedent(
            """
            import sys
            from conversion.base import TextModel
            assert __name__ == "__main__"
            checkpoint, _, dtype, _, out = sys.argv[1:]
            if checkpoint == "bad": raise SystemExit(5)
            open(out, "w").write(f"{checkpoint} {dtype} {TextModel().get_vocab_base_pre(None)}")
            """
        )
    )
    script = root / "benchmarks" / "peers" / "to_gguf.py"

    def convert(checkpoint: str, out: Path) -> int:
        command = [sys.executable, script, tree, checkpoint, out]
        return subprocess.run(command, cwd=tmp_path, env=dict(os.environ), check=False).returncode

    assert convert("model", tmp_path / "m.gguf") == 0
    assert (tmp_path / "m.gguf").read_text() == "model bf16 gpt-2"
    assert convert("bad", tmp_path / "n.gguf") == 5
    assert not (tmp_path / "n.gguf").exists()
