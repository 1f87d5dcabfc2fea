"""`flagen list`: the specs, how they were recognised, and whether their files are up to date."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from flagen.cli import project
from flagen.cli.build import recognised
from flagen.cli.console import Exit, say, show
from flagen.diagnostics import FlagenError


def overview() -> None:
    """List the specs: family, forms, and the state of their files.

    These are the specs of the folder that you are in, or else those that come with flagen.
    """
    paths = project.all_specs() or project.shipped_specs()
    if not paths:
        say("no specs; start one with `flagen new NAME`")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("spec", "recognised as", "forms", "files"):
        table.add_column(title, no_wrap=title in ("spec", "files"))
    failed = False
    for path in paths:
        row = _row(path)
        failed = failed or row[-1].plain == "bad spec"
        table.add_row(*row)
    show(table)
    raise typer.Exit(Exit.SPEC if failed else Exit.FINE)


def _row(path: Path) -> tuple[Text, ...]:
    from flagen.pipeline import Pipeline

    name = Text(path.stem, "bold")
    pipeline = Pipeline()
    try:
        recurrence = pipeline.recognise(path)
    except FlagenError as error:
        codes = dict.fromkeys(each.code for each in error.diagnostics)
        return name, Text(", ".join(codes)), Text(""), Text("bad spec", "red")
    words = Text(recognised(recurrence))
    try:
        compilation = pipeline(path)
    except FlagenError:
        return name, words, Text("none yet", "dim"), Text("-", "dim")
    forms = Text(", ".join(compilation.derivation.forms))
    return name, words, forms, _files(compilation.files, project.output_of(path))


def _files(files: tuple[object, ...], folder: Path) -> Text:
    from flagen.write import State, compare

    states = {entry.state for entry in compare(files, folder)}  # type: ignore[arg-type]
    if states == {State.SAME}:
        return Text("up to date", "green")
    if states == {State.NEW}:
        return Text("not built", "yellow")
    if State.EDITED in states or State.FOREIGN in states:
        return Text("edited", "red")
    return Text("stale", "yellow")
