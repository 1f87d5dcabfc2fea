"""`flagen verify`: a spec's kernels, freshly compiled, against float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flagen.cli import project
from flagen.cli.console import Exit, say, show, usage

if TYPE_CHECKING:
    from flagen.verify import Result

EXAMPLES = """\b
Examples:
  flagen verify retention
  flagen verify my.yaml && flagen build my.yaml
"""

COLUMNS = 7
"""How many tensors a table has beside each other: 80 characters are enough for them."""


def verify(spec: Annotated[str, typer.Argument(metavar="SPEC", hidden=True)]) -> None:
    """Compare every form of a spec, and every gradient, with float64.

    Runs on the GPU, or in Triton's interpreter where there is none: initial and final states,
    packed sequences, sizes that are no power of two. Exit code 1 if an error is above its bound.
    """
    from flagen.pipeline import Pipeline

    compilation = Pipeline()(project.find_spec(spec))
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise usage(f"verify runs the kernels, and {package} is not installed")
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        # Triton reads the variable when it is imported, which torch may have done.
        command = [sys.executable, "-m", "flagen", "verify", spec]
        done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False)
        raise typer.Exit(done.returncode)
    from flagen.notebook import load_files
    from flagen.render import runtime_file
    from flagen.verify import verify as results

    start = time.perf_counter()
    module = load_files((runtime_file(), *compilation.files), compilation.spec.name)
    found = list(results(module, compilation.spec, device))
    where = torch.cuda.get_device_name() if device.type == "cuda" else "Triton's interpreter"
    say((compilation.spec.name, "bold"), f"  in {where}, relative RMS error against float64")
    for dtype in dict.fromkeys(result.dtype for result in found):
        mine = [result for result in found if result.dtype == dtype]
        tensors = list(dict.fromkeys(result.tensor for result in mine))
        for first in range(0, len(tensors), COLUMNS):
            say()
            part = tensors[first : first + COLUMNS]
            show(_table(dtype, [result for result in mine if result.tensor in part]))
    _conclude(found, device, time.perf_counter() - start)


def _table(dtype: str, results: list[Result]) -> Table:
    """Form by tensor: of all shapes the error that is nearest to its bound, and that bound."""
    tensors = list(dict.fromkeys(result.tensor for result in results))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text(dtype, "bold"))
    for tensor in tensors:
        table.add_column(tensor, justify="right")
    for form in dict.fromkeys(result.form for result in results):
        cells: list[Any] = [form + "\n"]
        for tensor in tensors:
            mine = [each for each in results if (each.form, each.tensor) == (form, tensor)]
            cells.append(_cell(max(mine, key=_closeness)) if mine else Text("-", "dim"))
        table.add_row(*cells)
    return table


def _closeness(result: Result) -> float:
    return result.error / result.bound


def _cell(result: Result) -> Text:
    style = "green" if result.passed else "bold red"
    sign = "<" if result.passed else ">"
    return Text.assemble((f"{result.error:.1e}", style), (f"\n{sign} {result.bound:.0e}", "dim"))


def _conclude(found: list[Result], device: Any, seconds: float) -> None:
    failed = [result for result in found if not result.passed]
    for each in failed:
        say(
            ("failed ", "bold red"),
            f"{each.form} {each.dtype} {each.tensor}, {each.case}: ",
            f"error {each.error:.2e}, bound {each.bound:.2e}",
        )
    shapes = len({result.case for result in found})
    if device.type == "cpu":
        say()
        say(
            (
                "bfloat16 needs a GPU: the interpreter truncates what it stores, and GPUs round",
                "dim",
            )
        )
    if failed:
        say(f"{len(failed)} of {len(found)} comparisons failed")
        raise typer.Exit(Exit.CHECK)
    say(
        f"all {len(found)} comparisons are within their bounds: {shapes} shapes, {seconds:.0f} s",
    )
