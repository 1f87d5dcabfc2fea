"""The command line: each command parses arguments, calls the compiler and prints.

Commands import the compiler when they run, so that `flagen --help` is quick.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import flagen
from flagen import bench
from flagen.cli import about, build, explain, new, overview, tune, verify, warmup
from flagen.cli.console import Commands

__all__ = ["app"]

app = typer.Typer(
    name="flagen",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(epilog=new.EXAMPLES)(new.new)
app.command(epilog=build.EXAMPLES)(build.build)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=explain.EXAMPLES)(explain.explain)
app.command(
    "bench", short_help="Time operators beside their references and peers.", **bench.SETTINGS
)(bench.bench_command)
app.command(epilog=warmup.EXAMPLES)(warmup.warmup)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command("list")(overview.overview)
app.command()(about.schema)
app.command()(about.env)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"flagen {flagen.__version__}")
        raise typer.Exit


@app.callback(epilog="Start with `flagen new my`, then `flagen build my.yaml`.")
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From the mathematics of a linear-attention layer to Triton kernels with autograd."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show ⊗ gets `?`, and no traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
