"""The types that `parse` makes: a spec whose names, axes and expressions are checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flagen.diagnostics import Span
from flagen.load import Source


@dataclass(frozen=True, slots=True)
class Number:
    """A literal, kept exact: an `int`, or a decimal as `(numerator, denominator)`."""

    numerator: int
    denominator: int
    span: Span


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name: an input, a state, an intermediate, `scale`, an axis size (`K`) or an index (`h`)."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator (`+ - * / ** neg`) or a function (`exp`, `dot`, …) and its arguments."""

    op: str
    args: tuple[Expression, ...]
    span: Span


Expression = Number | Symbol | Apply


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or decay: its name and axes, without the batch axis, in memory order.

    `value` is set for a constant, computed from axis sizes and indices and never differentiated.
    `domain` holds inclusive bounds, e.g. `(None, 0.0)` for `"<= 0"`.
    """

    name: str
    axes: tuple[str, ...]
    role: str  # "input" | "decay"
    value: Expression | None
    domain: tuple[float | None, float | None] | None
    span: Span


@dataclass(frozen=True, slots=True)
class State:
    """A state and its axes, e.g. `S: [K, V]`; one such array per sequence and head."""

    name: str
    axes: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Product:
    """An axis of pairs, `F: K*L`: element i of K and j of L have the index i L + j.

    In memory it is one axis. In the tiles of kernels it is two, `parts`, as long as the `factors`.
    """

    name: str
    factors: tuple[str, str]

    @property
    def parts(self) -> tuple[str, str]:
        """What its two axes are called in tiles."""
        return parts_of(self.name)


def parts_of(name: str) -> tuple[str, str]:
    """The names of a product's axes in tiles: F1 and F2."""
    return f"{name}1", f"{name}2"


@dataclass(frozen=True, slots=True)
class Statement:
    """`target = value`. `text` is the statement as the user wrote it."""

    target: str
    value: Expression
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Spec:
    """A recurrence as its author wrote it, with every name and axis checked."""

    name: str
    doc: str
    inputs: tuple[Tensor, ...]  # inputs, then decays, in the order of the file
    products: tuple[Product, ...]
    state: tuple[State, ...]
    update: tuple[Statement, ...]
    output: tuple[Statement, ...]
    scale: Expression
    reverse: bool  # the last token comes first; rendering sees to it, all else is in order of time
    forms: tuple[str, ...] | None  # None: every form that the mathematics allows
    forms_span: Span | None
    source: Source

    def sized(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """`sizes` with those of products and of their parts."""
        found = dict(sizes)
        for product in self.products:
            lengths = [sizes[factor] for factor in product.factors]
            found |= zip(product.parts, lengths, strict=True)
            found[product.name] = math.prod(lengths)
        return found

    def in_tiles(self, axes: Iterable[str]) -> tuple[str, ...]:
        """Axes of memory as those of tiles: products taken apart."""
        parts = {product.name: product.parts for product in self.products}
        return tuple(part for axis in axes for part in parts.get(axis, (axis,)))
