"""`flagen bench`: the benchmark in `bench/` of a checkout, with all of its own options.

It is no part of an installed package: it measures the code of a commit, so it needs the checkout.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[1]

SETTINGS: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "allow_interspersed_args": False,
    },
}
"""For `app.command("bench", **SETTINGS)`: every argument, `--help` too, is the benchmark's."""


def bench_command(context: typer.Context) -> None:
    """Time the operators beside their references and peers, on a GPU. `flagen bench --help`."""
    if not (ROOT / "bench" / "__main__.py").exists():
        typer.echo("The benchmark is not part of the package; run it in a checkout of flagen.")
        raise typer.Exit(2)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import_module("bench.__main__").main(context.args, "flagen bench")
