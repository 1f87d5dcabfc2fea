"""load: a path to a spec becomes its text and a tree of YAML nodes that know their place."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Node:
    """A YAML value with its place.

    `value` is a `str`, `int`, `float`, `bool` or `None` for a scalar, a tuple of `Node` for a
    sequence, and a tuple of `(key Node, value Node)` pairs for a mapping.
    """

    kind: str  # "scalar" | "sequence" | "mapping"
    value: object
    span: Span


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a spec and its YAML tree. `path` is as the user gave it."""

    path: str
    text: str
    root: Node
