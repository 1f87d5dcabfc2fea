"""How templates are read and filled: the only module that knows Jinja.

Control flow is a Python comment (`#% if …`), so that templates stay readable as Triton. A `Block`
that stands alone on its line takes that line's indentation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

PACKAGED = Path(__file__).parents[1] / "_templates"
CHECKOUT = Path(__file__).parents[2] / "templates"


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of code that replace a placeholder; none of them is indented yet."""

    lines: tuple[str, ...]

    @staticmethod
    def of(text: str) -> Block:
        """The lines of `text`, without blank ones at either end."""
        return Block(tuple(text.strip("\n").split("\n")) if text.strip() else ())


_BLOCK = re.compile(r"^( *)\x01(.*?)\x02\n", re.MULTILINE | re.DOTALL)


def fill(template: str, context: Any) -> str:
    """The template's text with the fields of `context`, a dataclass, in place of placeholders."""
    values = {field.name: getattr(context, field.name) for field in fields(context)}
    text = _environment().get_template(template).render(values)
    text = _BLOCK.sub(_indented, text)
    if "\x01" in text:
        raise ValueError(f"{template}: a block must stand alone on its line")
    return text


def _indented(match: re.Match[str]) -> str:
    indent, body = match.groups()
    lines = body.split("\n") if body else []
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)


def _finalize(value: object) -> str:
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises, with the name
    if isinstance(value, Block):
        return "\x01" + "\n".join(value.lines) + "\x02"
    if isinstance(value, str | int):
        return str(value)
    raise TypeError(f"a template may print str, int and Block, not {type(value).__name__}")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([PACKAGED, CHECKOUT]),
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        line_statement_prefix="#%",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
