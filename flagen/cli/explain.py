"""`flagen explain`: how a spec was understood, or what an error code means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from flagen.cli import project
from flagen.cli.console import say, usage

EXAMPLES = """\b
Examples:
  flagen explain retention
  flagen explain my.yaml --shape T=16384,K=64
  flagen explain FG112
"""


def explain(
    subject: Annotated[str, typer.Argument(metavar="SPEC|CODE", hidden=True)],
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="B,T,H,K,V", help="Sizes to count for, e.g. 4,2048,16,128,128 or T=8192."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="bfloat16, float16 or float32.")
    ] = "bfloat16",
    latex: Annotated[bool, typer.Option("--latex", help="The recurrence in LaTeX.")] = False,
) -> None:
    """Say how a spec was understood, or what an error means.

    For a spec: its family and why, the forms it has, their mathematics, and the least time that a
    GPU can take. For a code such as FG112: what the error means and how to fix it.
    """
    if re.fullmatch(r"[Ff][Gg]\d+", subject) and not Path(subject).exists():
        _code(subject.upper())
        return
    from flagen.floor import SIZES, read_shape

    if dtype not in SIZES:
        raise usage(f"--dtype is {', '.join(SIZES)}; not {dtype}")
    try:
        sizes = read_shape(shape)
    except ValueError as error:
        raise usage(f"--shape: {error}") from None
    from flagen.explain import explain as explained

    _show(explained(project.find_spec(subject), sizes, dtype, latex))


def _code(code: str) -> None:
    from flagen.codes import CODES
    from flagen.explain import explain_code

    if code not in CODES:
        raise usage(f"there is no error {code}", f"codes run from {min(CODES)} to {max(CODES)}")
    _show(explain_code(code))


def _show(text: str) -> None:
    """Text whose unindented lines are titles."""
    for line in text.rstrip("\n").split("\n"):
        say((line, "" if line.startswith(" ") else "bold"))
