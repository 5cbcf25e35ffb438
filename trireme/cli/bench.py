"""`trireme bench`: hands its flags on to the benchmark program, which is loaded only then."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def bench(args: Sequence[str]) -> None:
    """Run the benchmark program with these flags; ends the process with its exit code."""
    try:
        from benchmarks.__main__ import run
    except ModuleNotFoundError as error:
        typer.echo(
            f"trireme bench: the package {error.name} is missing: pip install 'trireme[bench]'",
            err=True,
        )
        raise typer.Exit(2) from error
    run(args, "trireme bench")
