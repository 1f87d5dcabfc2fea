"""Times the generated operators beside their references and peers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from bench import cases, tables
from bench.records import Results

if TYPE_CHECKING:
    from bench.runner import Task
    from bench.session import Session

console = Console(highlight=False)
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False
)

Op = Annotated[list[str] | None, typer.Option("--op", help="An operator; all without it.")]
Form = Annotated[list[str] | None, typer.Option("--form", help="A form, sdpa, naive or compiled.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for results.", envvar="OUT")]
Peers = Annotated[bool, typer.Option(help="Measure flash-linear-attention if it is installed.")]
Extra = Annotated[
    list[str] | None,
    typer.Option("--peer", help="Another peer, NAME=module:function; takes inputs by name."),
]
Reference = Annotated[
    list[Path] | None,
    typer.Option("--reference", exists=True, help="A peer's measured numbers to stand beside."),
]
Resume = Annotated[bool, typer.Option(help="Go on with the newest run of this code in --out.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16 or float32.")]
Commit = Annotated[str, typer.Option(help="Commit to name, where there is no git.")]
Limit = Annotated[float, typer.Option(help="Seconds that a peer's first call may take.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer shapes; within five minutes.")]
RESULTS = cases.ROOT / "bench" / "results"
QUICK_SECONDS = 225
"""No measurement of a quick run begins later; the last may take some more."""


def _need_gpu() -> None:
    """Ends the program where nothing can be timed."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        reason = f"no {error.name}: pip install -e '.[bench]'"
    else:
        if torch.cuda.is_available() and torch.version.cuda:
            return
        reason = "no NVIDIA GPU that torch can use: torch.cuda.is_available() is False"
    console.print(f"Nothing was measured: {escape(reason)}.")
    console.print("What works here: plot and report, on measured results, such as those in")
    console.print(f"  {RESULTS}")
    console.print("and `python bench/demo.py`, which compares every form with float64 on a CPU.")
    raise typer.Exit(2)


def _operators(asked: list[str] | None) -> list[str]:
    found = cases.operators()
    if unknown := [op for op in asked or [] if op not in found]:
        _stop(f"no operator {', '.join(unknown)} in generated/; there are: {', '.join(found)}")
    return asked or list(found)


def _stop(message: str) -> None:
    console.print(f"[red]{escape(message)}[/]")
    raise typer.Exit(2)


@app.command()
def ops(
    op: Op = None,
    form: Form = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="BxTxHxD, instead of the usual shapes.")
    ] = None,
    quick: Quick = False,
    out: Out = RESULTS,
    peers: Peers = True,
    peer: Extra = None,
    reference: Reference = None,
    decode: Annotated[bool, typer.Option(help="Also time decoding steps.")] = True,
    resume: Resume = False,
    dtype: Dtype = "bfloat16",
    commit: Commit = "",
    first_call_limit: Limit = 60,
) -> None:
    """Forward and backward over T and over batch shapes: time and memory."""
    _need_gpu()
    from bench.contenders import contenders
    from bench.runner import plan
    from bench.session import Session

    try:
        shapes = [cases.Shape.parse(text) for text in shape or []]
    except ValueError as error:
        _stop(str(error))
    usual = cases.QUICK_SWEEP + cases.QUICK_BATCHES if quick else cases.SWEEP + cases.BATCHES
    for name in _operators(op):
        tasks: list[Task] = []
        try:
            found, notes = contenders(name, form or (), peers=peers, extra=peer or (), quick=quick)
            tasks += plan(found, shapes or usual)
            if decode and not shapes:
                stepping, _ = contenders(name, form or (), peers=peers, decode=True)
                tasks += plan(stepping, cases.DECODE, "decode")
        except ValueError as error:
            _stop(str(error))
        tasks.sort(key=lambda task: task.contender.slow_start)  # those have to wait for decoding
        limit = min(first_call_limit, 45) if quick else first_call_limit
        budget = QUICK_SECONDS if quick else None
        how = Session(name, out, reference or [], resume, dtype, commit, limit, budget)
        _measure(how, tasks, notes)


@app.command()
def decode(
    op: Op = None,
    out: Out = RESULTS,
    peers: Peers = True,
    peer: Extra = None,
    reference: Reference = None,
    resume: Resume = False,
    dtype: Dtype = "bfloat16",
    commit: Commit = "",
    first_call_limit: Limit = 60,
) -> None:
    """One step of the recurrent form, state in and out, over batch sizes."""
    _need_gpu()
    from bench.contenders import contenders
    from bench.runner import plan
    from bench.session import Session

    for name in _operators(op):
        found, notes = contenders(name, peers=peers, extra=peer or (), decode=True)
        tasks = plan(found, cases.DECODE, "decode")
        how = Session(name, out, reference or [], resume, dtype, commit, first_call_limit, None)
        _measure(replace(how, file=f"{name}-decode"), tasks, notes)


def _measure(how: Session, tasks: list[Task], notes: list[str]) -> None:
    """A session, and its exit code."""
    try:
        results = how.run(tasks, notes, console)
    except ValueError as error:
        _stop(str(error))
        raise
    if not results.complete:
        raise typer.Exit(130)
    if any(r.status == "wrong" and r.source == "flagen" for r in results.records):
        raise typer.Exit(1)


@app.command()
def check(
    op: Op = None, form: Form = None, peers: Peers = False, dtype: Dtype = "bfloat16"
) -> None:
    """Only the comparison with float64 that every timing stands behind."""
    _need_gpu()
    import torch

    from bench import gate
    from bench.contenders import contenders

    good = True
    for name in _operators(op):
        heads = dict.fromkeys(cases.shorter(s, gate.SMALL_T) for s in cases.BATCHES)
        for contender in contenders(name, form or (), peers=peers)[0]:
            if contender.per_shape:
                continue
            for shape in heads:
                verdict = gate.small(contender, shape, getattr(torch, dtype), "cuda")
                good &= not verdict.wrong
                errors = "  ".join(f"{n} {e:.1e}" for n, e in verdict.errors.items())
                style = "red" if verdict.wrong else "none"
                console.print(f"{name:12} {contender.name:16} {shape!s:16} {errors}", style=style)
    raise typer.Exit(not good)


File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .json or .jsonl file.")]


def _load(file: Path) -> Results:
    try:
        return Results.load(file)
    except (ValueError, KeyError) as error:
        _stop(f"{file}: {error}")
        raise


@app.command()
def plot(file: File, out: Annotated[Path | None, typer.Option("--out")] = None) -> None:
    """Time and memory over T, as .svg and .png, from a result."""
    from bench import plots

    for written in plots.write(_load(file), (out or file.parent) / file.stem):
        console.print(written, soft_wrap=True)


@app.command()
def report(file: File, out: Annotated[Path | None, typer.Option("--out")] = None) -> None:
    """One HTML page that needs no other file, from a result."""
    from bench import report as html

    page = (out or file.parent) / f"{file.stem}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html.page(_load(file)), encoding="utf-8")
    console.print(page, soft_wrap=True)


@app.command()
def show(file: File) -> None:
    """The tables of a result."""
    tables.show(console, _load(file))


def main(arguments: list[str] | None = None, program: str = "python -m bench") -> Any:
    """Runs the command line."""
    return app(args=arguments if arguments is not None else sys.argv[1:], prog_name=program)


if __name__ == "__main__":
    main()
