"""The `trireme` command: reads flags, nothing else. Never imports torch or a tier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import httpx
import typer
from rich.console import Console

from protocol import __version__
from trireme.cli.bench import bench
from trireme.cli.chat import ChatSettings, chat
from trireme.cli.drain import drain
from trireme.cli.fleet_api import FleetError, complain, operator_clients
from trireme.cli.key import make_key
from trireme.cli.launch import become
from trireme.cli.status import show_status
from trireme.cli.up import up
from trireme.cli.up_settings import UpSettings
from trireme.cli.usage import UsageQuery, show_usage
from trireme.cli.why import show_route
from trireme.service.settings import EXIT_BAD_ARGUMENTS

app = typer.Typer(
    name="trireme",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        Console(highlight=False).print(f"trireme {__version__}")
        raise typer.Exit


@app.callback()
def all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="tell it and stop"),
    ] = False,
) -> None:
    """Serve language models with an OpenAI-compatible API."""


@contextlib.contextmanager
def _operators(addresses: str, token: str) -> Iterator[tuple[httpx.Client, ...]]:
    """Clients of the tiers at `a,b`; an address that is none ends the command."""
    with contextlib.ExitStack() as stack:
        try:
            clients = stack.enter_context(operator_clients(addresses, token))
        except FleetError as error:
            complain(error)
            raise typer.Exit(EXIT_BAD_ARGUMENTS) from error
        yield clients


@app.command("up")
def up_command(
    worker_args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- WORKER FLAGS]", help="further flags for the workers, after --"),
    ] = None,
    model_path: Annotated[
        str | None, typer.Option(help="model folder or hub id (default: the embedded demo model)")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="how many workers")] = 1,
    model_names: Annotated[
        str | None, typer.Option(help="names that clients use, a,b (default: the folder's)")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="the workers' engine: paged, sim, …")] = None,
    host: Annotated[str, typer.Option(help="address on which the gateway listens")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the gateway; 0 takes a free one")
    ] = 8000,
    controller_port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the controller, on loopback")
    ] = 21001,
    worker_port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the first worker, on loopback")
    ] = 21002,
    api_keys: Annotated[
        str,
        typer.Option(
            envvar="TRIREME_GATEWAY_API_KEYS", show_envvar=True, help="keys that clients need, a,b"
        ),
    ] = "",
    ssl: Annotated[
        bool, typer.Option("--ssl", help="HTTPS at the gateway: SSL_KEYFILE, SSL_CERTFILE")
    ] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="of all tiers")
    ] = "info",
    log_dir: Annotated[
        Path | None, typer.Option(help="folder for the tiers' logs (default: .trireme/<port>)")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show what the tiers write")
    ] = False,
) -> None:
    """Start controller, workers and gateway on this machine; Ctrl-C stops them all.

    Flags of the worker that are not listed here go after `--`:
    trireme up --model-path ./my-model -- --dtype bfloat16 --max-model-len 4096
    """
    settings = UpSettings(
        model_path=model_path,
        workers=workers,
        model_names=model_names,
        engine=engine,
        host=host,
        port=port,
        controller_port=controller_port,
        worker_port=worker_port,
        api_keys=api_keys,
        ssl=ssl,
        log_level=log_level,
        log_dir=log_dir,
        verbose=verbose,
        worker_args=tuple(worker_args or ()),
    )
    raise typer.Exit(up(settings, Console()))


@app.command("status")
def status_command(
    controller_address: Annotated[
        str, typer.Option(help="base URLs of controllers, a,b; the first that answers")
    ] = "http://127.0.0.1:21001",
    cluster_token: Annotated[
        str, typer.Option(envvar="TRIREME_CLUSTER_TOKEN", help="secret shared by the tiers")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again each second")] = False,
) -> None:
    """Show the workers that a controller knows: models, state, load."""
    with _operators(controller_address, cluster_token) as clients:
        raise typer.Exit(show_status(clients, Console(), as_json=as_json, watch=watch))


@app.command("drain")
def drain_command(
    worker: Annotated[
        str, typer.Argument(help="its address, its instance id or the beginning of that")
    ],
    now: Annotated[
        bool, typer.Option("--now", help="running requests go on elsewhere at once")
    ] = False,
    grace_s: Annotated[
        float | None,
        typer.Option(min=0, help="seconds that running requests get (default: as the worker has)"),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(min=0, help="seconds to wait until the worker is gone")
    ] = 150.0,
    controller_address: Annotated[
        str, typer.Option(help="base URLs of controllers, a,b; the first that answers")
    ] = "http://127.0.0.1:21001",
    cluster_token: Annotated[
        str, typer.Option(envvar="TRIREME_CLUSTER_TOKEN", help="secret shared by the tiers")
    ] = "",
) -> None:
    """Have a worker finish what it has, or hand it over, and stop. No request is lost."""
    if now and grace_s is not None:
        raise typer.BadParameter("--now is --grace-s 0: give one of them")
    with _operators(controller_address, cluster_token) as clients:
        code = drain(
            clients,
            cluster_token,
            worker,
            Console(),
            grace_s=0.0 if now else grace_s,
            timeout_s=timeout_s,
        )
    raise typer.Exit(code)


@app.command("why")
def why_command(
    request_id: Annotated[str, typer.Argument(help="the answer's x-request-id")],
    gateway_address: Annotated[
        str, typer.Option(help="base URLs of gateways, a,b; the one that answered knows it")
    ] = "http://127.0.0.1:8000",
    cluster_token: Annotated[
        str, typer.Option(envvar="TRIREME_CLUSTER_TOKEN", help="secret shared by the tiers")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead")] = False,
) -> None:
    """Show why a request went to its worker, and what came of each attempt."""
    with _operators(gateway_address, cluster_token) as clients:
        raise typer.Exit(show_route(clients, request_id, Console(), as_json=as_json))


@app.command("key")
def key_command(
    name: Annotated[str, typer.Argument(help="what the key is called in the usage ledger")],
    models: Annotated[str, typer.Option(help="the only models it may use, a,b (all)")] = "",
    limit_requests: Annotated[
        int | None, typer.Option(min=0, help="requests a minute; 0 is no limit")
    ] = None,
    limit_tokens: Annotated[
        int | None, typer.Option(min=0, help="tokens a minute; 0 is no limit")
    ] = None,
) -> None:
    """Make an API key: the key on stderr, its entry for the gateway's keys file on stdout.

    trireme key alice >> keys.toml
    """
    raise typer.Exit(make_key(name, models, limit_requests, limit_tokens))


@app.command("usage")
def usage_command(
    db: Annotated[
        Path | None, typer.Option(help="the gateways' ledger (default: the user's own)")
    ] = None,
    since: Annotated[str, typer.Option(help="from then on: 2026-01-31, or 24h, 7d ago")] = "",
    until: Annotated[str, typer.Option(help="before then: 2026-01-31, or 24h, 7d ago")] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="what the sums are taken by, of key, model, day, route (default: key,model)"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list instead")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead")] = False,
) -> None:
    """Show the requests and tokens of each key and model. Days are those of UTC."""
    names = ",".join(by if by is not None else ["key,model"]).split(",")
    groups = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    form = "json" if as_json else "csv" if as_csv else "table"
    raise typer.Exit(show_usage(UsageQuery(db, since, until, groups), Console(), form))


@app.command("chat")
def chat_command(
    base_url: Annotated[str, typer.Option(help="the API's base URL")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str | None, typer.Option(help="which model (default: the first)")] = None,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    api_key: Annotated[
        str, typer.Option(envvar=["TRIREME_API_KEY", "OPENAI_API_KEY"], help="key for the gateway")
    ] = "",
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is the likeliest answer")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer, in tokens")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", "-k", help="do not check the server's certificate")
    ] = False,
) -> None:
    """Talk to a model in the terminal, or answer the lines of a pipe. /help lists its commands."""
    settings = ChatSettings(
        base_url=base_url,
        model=model,
        system=system,
        api_key=api_key,
        temperature=temperature,
        max_tokens=max_tokens,
        verify=not insecure,
    )
    raise typer.Exit(chat(settings))


@app.command(
    "bench",
    help="Measure tokens a second and latencies; `trireme bench --help` lists its flags.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def bench_command(context: typer.Context) -> None:
    bench(context.args)


def _add_launcher(tier: str) -> None:
    """`trireme <tier> …` becomes `python -m <tier> …`, flags, exit codes and all."""

    @app.command(
        tier,
        help=f"Run a {tier}; `trireme {tier} --help` lists its flags.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        add_help_option=False,
    )
    def launch(context: typer.Context) -> None:
        become(tier, context.args)


for _tier in ("controller", "worker", "gateway"):
    _add_launcher(_tier)


def main() -> None:
    """Run the command; ends the process with its exit code."""
    app()
