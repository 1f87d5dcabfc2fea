"""What each stage made of a spec, one text file per stage: `flagen build --dump-stages`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from flagen.load import Node, Source
from flagen.parse.expression import unparse
from flagen.parse.spec import Apply, Number, Symbol
from flagen.pipeline import STAGES
from flagen.render import GeneratedFile
from flagen.write import replace

# Places, and what the stage before made, which has a file of its own.
_LEFT_OUT = {"span", "forms_span", "source", "spec", "recurrence", "derivation"}


def dump(folder: Path, stage: str, result: Any) -> None:
    """Write what `stage` made into `folder`. Raises OSError."""
    replace(folder / f"{STAGES.index(stage) + 1}_{stage}.txt", describe(result) + "\n")


def describe(value: Any) -> str:
    """A stage's result as text."""
    return "\n".join(_lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Source):
        yield from _tree(value.root, 0)
    elif isinstance(value, GeneratedFile):
        yield f"==> {value.path}"
        yield value.text.rstrip("\n")
    elif isinstance(value, Number | Symbol | Apply):
        yield unparse(value)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__
        for field in fields(value):
            if field.name not in _LEFT_OUT:
                yield from _labelled(field.name, getattr(value, field.name))
    elif isinstance(value, tuple) and not all(map(_is_word, value)):
        for item in value:
            yield from _item(item)
    elif isinstance(value, tuple):
        yield ", ".join(map(str, value)) or "-"
    else:
        yield str(value.value if isinstance(value, Enum) else value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str | int | float) or value is None


def _labelled(name: str, value: Any) -> Iterator[str]:
    lines = list(_lines(value))
    if len(lines) == 1 and not (isinstance(value, tuple) and not all(map(_is_word, value))):
        yield f"  {name}: {lines[0]}"
    else:
        yield f"  {name}:"
        yield from (f"    {line}" for line in lines)


def _item(value: Any) -> Iterator[str]:
    if isinstance(value, GeneratedFile):
        yield from _lines(value)
        return
    if isinstance(value, tuple):
        yield "- " + ": ".join(str(part) for part in value)
        return
    first, *others = _lines(value)
    yield f"- {first}"
    yield from (f"  {line}" for line in others)


def _tree(node: Node, depth: int) -> Iterator[str]:
    """A YAML tree, each node with its line and column."""
    indent = "  " * depth
    if node.kind == "scalar":
        yield f"{indent}{node.value!r}"
    for key, value in node.pairs:
        place = f"{key.span.line}:{key.span.column}"
        if value.kind == "scalar":
            yield f"{indent}{key.value} ({place}): {value.value!r}"
        else:
            yield f"{indent}{key.value} ({place}): {value.kind}"
            yield from _tree(value, depth + 1)
    for item in node.items:
        yield from _tree(item, depth)
