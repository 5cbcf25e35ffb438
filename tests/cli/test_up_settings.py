"""What `trireme up` starts, and on which ports."""

from __future__ import annotations

import socket

import pytest

from trireme.cli.display import split_percent
from trireme.cli.supervise import RestartBudget
from trireme.cli.up_settings import PortTaken, UpSettings, open_to_others, plan, with_ports


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_workers_take_ports_one_after_the_other() -> None:
    # below those that the system gives to whoever asks for any, so that nobody takes them meanwhile
    base = next(port for port in range(23000, 32000, 2) if is_free(port) and is_free(port + 1))
    settings = UpSettings(port=0, controller_port=0, worker_port=base, workers=2)
    assert with_ports(settings).worker_ports == (base, base + 1)


def test_port_0_is_a_free_port_of_its_own_for_each() -> None:
    settings = with_ports(UpSettings(port=0, controller_port=0, worker_port=0, workers=3))
    ports = {settings.port, settings.controller_port, *settings.worker_ports}
    assert len(ports) == 5
    assert 0 not in ports


def test_a_taken_port_names_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} .* give another --controller-port"):
            with_ports(UpSettings(port=0, controller_port=port, worker_port=0))


def test_one_port_for_two_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(PortTaken, match="twice"):
        with_ports(UpSettings(port=port, controller_port=0, worker_port=port))


def test_ports_end_at_65535() -> None:
    with pytest.raises(PortTaken, match="no port 65536"):
        with_ports(UpSettings(port=0, controller_port=0, worker_port=65535, workers=2))


def test_the_plan_passes_each_flag_to_whom_it_concerns() -> None:
    settings = UpSettings(
        model_path="m/x",
        workers=2,
        model_names="a,b",
        engine="sim",
        host="0.0.0.0",
        port=1,
        controller_port=2,
        worker_ports=(3, 4),
        api_keys="k",
        worker_args=("--seed", "5"),
    )
    controller, first, second, gateway = plan(settings)
    assert [each.name for each in (controller, first, second, gateway)] == [
        "controller",
        "worker-1",
        "worker-2",
        "gateway",
    ]
    assert first.args[-8:] == (
        *("--model-path", "m/x", "--model-names", "a,b", "--engine", "sim"),
        *("--seed", "5"),
    )
    assert second.url == "http://127.0.0.1:4"
    assert gateway.url == "http://127.0.0.1:1"
    assert gateway.args[:4] == ("--host", "0.0.0.0", "--port", "1")
    assert gateway.environment == {"TRIREME_GATEWAY_API_KEYS": "k"}
    assert "k" not in gateway.args
    for loopback in (controller, first, second):
        assert loopback.args[:2] == ("--host", "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("[::1]", "http://[::1]:1"),
        ("name.example", "http://name.example:1"),
    ],
)
def test_the_gateway_is_reached_from_here(host: str, url: str) -> None:
    assert UpSettings(host=host, port=1).gateway_url == url


def test_an_open_gateway_is_known_as_such() -> None:
    assert open_to_others(UpSettings(host="0.0.0.0"))
    assert not open_to_others(UpSettings(host="0.0.0.0", api_keys="k"))
    assert not open_to_others(UpSettings())


@pytest.mark.parametrize(
    ("reason", "split"),
    [
        ("loading weights 40%", ("loading weights", 40.0)),
        ("loading weights: 7.5 %", ("loading weights:", 7.5)),
        ("loading 400%", ("loading", 100.0)),
        ("importing torch", ("importing torch", None)),
    ],
)
def test_a_reason_may_carry_a_percentage(reason: str, split: tuple[str, float | None]) -> None:
    assert split_percent(reason) == split


def test_restarts_are_bounded_in_a_window_and_back_off() -> None:
    budget = RestartBudget(limit=3, window_s=100)
    assert [budget.take(now) for now in (0.0, 1.0, 2.0, 3.0)] == [0.5, 1.0, 2.0, None]
    assert budget.take(100.0) == 2.0
    assert RestartBudget(limit=99).take(0.0) == 0.5
