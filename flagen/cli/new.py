"""`flagen new`: a commented spec that builds as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from flagen.cli import project
from flagen.cli.console import Exit, report, say, usage

EXAMPLES = """\b
Examples:
  flagen new mine                       linear attention, to start from
  flagen new mine --from retention      a copy of another spec
"""

TEMPLATE = """\
# A spec says what one token does to a state and what is read from it; flagen derives the rest.
# flagen explain {path} says how it was understood, flagen build {path} makes it.
name: {name}
doc: Linear attention with one decay per head

# What a call takes: axes in memory order, the batch is implicit. T is time, H heads; K and V are
# the sizes of a key and of a value.
inputs:
  q: [T, H, K]
  k: [T, H, K]
  v: [T, H, V]

# Logarithms of factors of the state. With `value` it is a constant: h is the head's index.
decay:
  g: {{axes: [H], value: "log(1 - 2**(-5 - h))"}}

# One such array per sequence and head, in float32.
state:
  S: [K, V]

# What a token does, in this order: `outer(k, v)` is k times v, `dot(q, S)` sums over the axis that
# both have.
update: S = exp(g) * S + outer(k, v)
output: o = scale * dot(q, S)       # scale is K**-0.5 unless the call says otherwise

# Every form that the mathematics allows is made. To make some of them, or to be told why one cannot
# be: forms: [chunk, fused_chunk, fused_recurrent, parallel]
"""


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)],
    origin: Annotated[
        str | None, typer.Option("--from", metavar="SPEC", help="The spec to start from.")
    ] = None,
) -> None:
    """Write NAME.yaml, a commented spec that builds as it is.

    It goes to specs/ if there is such a folder, and else to the current one. An existing file is
    left alone.
    """
    folder = Path("specs") if Path("specs").is_dir() else Path()
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise usage(
            f"`{name}` cannot be an operator's name",
            "lower-case letters, digits and `_`, a letter first, 64 at most",
        )
    text = _copy(origin, name) if origin else TEMPLATE.format(name=name, path=path)
    _check(text, path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise usage(f"{path} exists already", "choose another name, or delete the file") from None
    say("wrote ", (str(path), "bold"))
    say(("next: ", "dim"), f"flagen build {path}")


def _copy(origin: str, name: str) -> str:
    """The text of another spec, comments included, under a new name."""
    from flagen.load import load

    source = load(project.find_spec(origin))
    lines = source.text.split("\n")
    for key, value in source.root.pairs:
        if key.value == "name" and value.span.line == key.span.line:
            at, start = value.span.line - 1, value.span.column - 1
            line = lines[at]
            lines[at] = line[:start] + name + line[start + value.span.length :]
            return "\n".join(lines)
    raise usage(f"{origin} has no `name`", "`flagen explain` says what else it lacks")


def _check(text: str, path: Path) -> None:
    """Refuse what would not build, such as a name that is a keyword."""
    from flagen.diagnostics import FlagenError
    from flagen.load import load_text
    from flagen.parse import parse

    try:
        parse(load_text(text, str(path)))
    except FlagenError as error:
        raise typer.Exit(max(Exit.SPEC, report(error))) from None
