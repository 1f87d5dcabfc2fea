"""What all commands share: where text goes, how errors look, and which exit code they give.

Results go to stdout, diagnostics to stderr. Colours appear on a terminal only, and not with
NO_COLOR.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.core import TyperGroup

from flagen.diagnostics import FlagenError, InternalError, render_rich


class Exit(IntEnum):
    """Exit codes; of several, a command ends with the highest."""

    FINE = 0
    CHECK = 1  # stale or edited files, a failed check
    SPEC = 2  # a bad spec, or wrong usage
    INTERNAL = 3


def say(*pieces: str | tuple[str, str]) -> None:
    """A line of results. A piece is text, or text with a `rich` style."""
    _console().print(Text.assemble(*pieces))


def warn(*pieces: str | tuple[str, str]) -> None:
    """A line of diagnostics."""
    _console(stderr=True).print(Text.assemble(*pieces))


def show(renderable: Any) -> None:
    """A table, as wide as the terminal, or as it needs where there is none."""
    console = _console()
    console.print(renderable, width=None if console.is_terminal else 1000)


def progress() -> Progress:
    """A bar with the time that has passed and an estimate of the rest, on stderr while it runs."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        console=_console(stderr=True),
        transient=True,
    )


def report(error: FlagenError | InternalError | OSError) -> Exit:
    """Print an error on stderr; the exit code that it stands for."""
    if isinstance(error, FlagenError):
        for diagnostic in error.diagnostics:
            rendered = render_rich(diagnostic, error.path, error.text)
            _console(stderr=True).print(rendered, end="\n\n")
        return Exit.SPEC
    if isinstance(error, InternalError):
        return _internal(str(error))
    place = f"{error.filename}: " if error.filename else ""
    warn(("error", "bold red"), (f": {place}{error.strerror or error}", "bold"))
    return Exit.SPEC


def usage(message: str, help: str | None = None) -> typer.Exit:
    """Print what is wrong with the command line; raise the result."""
    warn(("error", "bold red"), (f": {message}", "bold"))
    if help:
        warn(("  = ", "blue"), ("help: ", "green"), help)
    return typer.Exit(Exit.SPEC)


def _internal(message: str) -> Exit:
    warn(("internal error", "bold red"), (f": {message}", "bold"))
    warn(
        ("  = ", "blue"),
        ("help: ", "green"),
        "please report this, with what FLAGEN_DEBUG=1 and `flagen env` print",
    )
    return Exit.INTERNAL


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("FLAGEN_DEBUG", "0") not in ("", "0")


class Commands(TyperGroup):
    """The commands in the order in which they were added; errors end them without a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: D102
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:  # noqa: D102
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (FlagenError, InternalError, OSError) as error:
            if debugging():
                raise
            raise typer.Exit(report(error)) from error
        except Exception as error:
            if debugging() or _is_click(error):
                raise
            what = f"{type(error).__name__}: {error}; this is a mistake in flagen"
            raise typer.Exit(_internal(what)) from error


def _is_click(error: Exception) -> bool:
    """Whether an exception is one of click's own, which typer may carry within itself."""
    modules = {base.__module__ for base in type(error).__mro__}
    return any("click" in module or module.startswith("typer") for module in modules)


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)
