"""A recurrence in mathematical notation, as text or as LaTeX, for `flagen explain`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import sympy
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from flagen.analyze.recurrence import (
    Contract,
    Delta,
    Level,
    Read,
    Recurrence,
    StateRecurrence,
    axes_of,
    is_feature,
)

Axes = Mapping[str, Iterable[str]]


@dataclass(frozen=True, slots=True)
class Notation:
    """How the parts of a recurrence are written."""

    expression: Callable[[sympy.Expr, dict[str, str]], str]  # with names for some symbols
    state: str
    decayed: str
    previous: str
    inner: str
    outer: str
    pointwise: str
    space: str
    output: str


def text(recurrence: Recurrence) -> tuple[str, ...]:
    """The recurrence and its output as lines of text."""
    return _lines(recurrence, _notation_in_text(recurrence))


def latex(recurrence: Recurrence) -> tuple[str, ...]:
    """The recurrence and its output as lines of LaTeX, for a math environment."""
    return _lines(recurrence, _notation_in_latex(recurrence))


def in_words(recurrence: Recurrence, expression: sympy.Expr) -> str:
    """An expression as a line of text, tokens' values with their time."""
    return _notation_in_text(recurrence).expression(expression, {})


def _notation_in_text(recurrence: Recurrence) -> Notation:
    def expression(value: sympy.Expr, names: dict[str, str]) -> str:
        text: str = _Text(dict(recurrence.axes), names).doprint(value)
        return text

    return Notation(
        expression,
        state="{}[t]",
        decayed="{}'[t]",
        previous="{}[t-1]",
        inner="⟨{}, {}⟩_{}",
        outer="{} ⊗ {}",
        pointwise="{} ⊙ {}",
        space=" ",
        output="{}[t]",
    )


def _notation_in_latex(recurrence: Recurrence) -> Notation:
    def expression(value: sympy.Expr, names: dict[str, str]) -> str:
        text: str = _Latex(dict(recurrence.axes), names).doprint(value)
        return text

    return Notation(
        expression,
        state="{}_{{t}}",
        decayed="\\tilde{{{}}}_{{t}}",
        previous="{}_{{t-1}}",
        inner="\\langle {}, {} \\rangle_{{{}}}",
        outer="{} \\otimes {}",
        pointwise="{} \\odot {}",
        space=" \\, ",
        output="{}_{{t}}",
    )


class _Text(StrPrinter):
    """SymPy's text, with `[t]` after what has a value per token."""

    def __init__(self, axes: Axes, names: dict[str, str]) -> None:
        super().__init__()
        self.axes, self.names = axes, names

    def _print_Symbol(self, expr: sympy.Symbol) -> str:
        name = str(expr.name)
        return self.names.get(name) or (f"{name}[t]" if "T" in self.axes.get(name, ()) else name)


class _Latex(LatexPrinter):
    """SymPy's LaTeX, with the index t, upright long names, and contractions as sums."""

    def __init__(self, axes: Axes, names: dict[str, str]) -> None:
        super().__init__()
        self.axes, self.names = axes, names

    def _print_Symbol(self, expr: sympy.Symbol, style: str = "plain") -> str:
        name = str(expr.name)
        if name in self.names:
            return self.names[name]
        base: str = super()._print_Symbol(expr)
        if base.isalpha() and len(base) > 1:
            base = f"\\mathrm{{{base}}}"
        return f"{{{base}}}_{{t}}" if "T" in self.axes.get(name, ()) else base

    def _print_Contract(self, expr: Contract, exp: str | None = None) -> str:
        body = f"\\sum_{{{expr.axis}}} {self.parenthesize(expr.expression, 50)}"
        return body if exp is None else f"\\left({body}\\right)^{{{exp}}}"


def _lines(recurrence: Recurrence, n: Notation) -> tuple[str, ...]:
    axes = dict(recurrence.axes)
    lines = [line for state in recurrence.states for line in _update(state, axes, n)]
    if recurrence.epilogue is not None:
        names = {str(read.symbol): _read(read, axes, n) for read in recurrence.reads}
        result = n.expression(recurrence.epilogue, names)
    else:
        terms = [_scaled(read.coefficient, _read(read, axes, n), n) for read in recurrence.reads]
        if recurrence.rest != 0:
            terms.append(n.expression(recurrence.rest, {}))
        result = _sum(terms)
    return (*lines, f"{n.output.format(recurrence.output)} = {result}")


def _update(state: StateRecurrence, axes: Axes, n: Notation) -> list[str]:
    """One state's update: a line, or two where the decayed state is read."""
    kept = _kept(state, n)
    new = n.state.format(state.name)
    lines = []
    if kept and state.decay.factor != 1 and any(t.decayed for t in state.transitions):
        whole = n.decayed.format(state.name)
        lines.append(f"{whole} = {kept}")
        kept = whole
    terms = [kept] if kept else []
    if state.delta is not None and state.writes:
        whole = n.decayed.format(state.name) if lines else n.previous.format(state.name)
        return [*lines, f"{new} = {_sum([*terms, _corrected(state, state.delta, whole, n)])}"]
    for t in state.transitions:
        before = n.decayed if t.decayed and lines else n.previous
        seen = before.format(t.state)
        read = n.inner.format(n.expression(t.read, {}), seen, t.axis) if t.axis else seen
        negative = t.write.could_extract_minus_sign()
        write = _factor(-t.write if negative else t.write, n)
        product = n.outer.format(write, read) if t.axis else n.pointwise.format(write, read)
        terms.append(f"-{product}" if negative else product)
    for w in state.writes:
        terms.append(_write(w.key, w.value, axes, n))
    return [*lines, f"{new} = {_sum(terms)}"]


def _corrected(state: StateRecurrence, delta: Delta, seen: str, n: Notation) -> str:
    """The write of a delta rule: the key by the value without what the state says already."""
    read = n.inner.format(n.expression(delta.read, {}), seen, delta.axis)
    error = f"({n.expression(delta.value, {})} - {read})"
    key = _factor(delta.key, n)
    return n.outer.format(*((key, error) if delta.axis == state.axes[0] else (error, key)))


def _kept(state: StateRecurrence, n: Notation) -> str:
    """The state before the step with its decay; empty where nothing is kept."""
    factor, previous = state.decay.factor, n.previous.format(state.name)
    if factor == 0:
        return ""
    if state.decay.level in (Level.NONE, Level.CONSTANT, Level.SCALAR):
        return _scaled(factor, previous, n)
    return n.pointwise.format(_factor(factor, n), previous)


def _write(key: sympy.Expr, value: sympy.Expr, axes: Axes, n: Notation) -> str:
    if value == 1:
        return n.expression(key, {})
    negative = (key * value).could_extract_minus_sign() and not key.is_Add
    if negative:
        value = -value
    varies = any(is_feature(axis) for axis in axes_of(value, axes))
    join = n.outer if varies else n.pointwise
    product = join.format(_factor(key, n), _factor(value, n))
    return f"-{product}" if negative else product


def _read(read: Read, axes: Axes, n: Notation) -> str:
    state = (n.state if read.updated else n.previous).format(read.state)
    if not read.axis:
        return state
    return n.inner.format(n.expression(read.query, {}), state, read.axis)


def _scaled(factor: sympy.Expr, body: str, n: Notation) -> str:
    if factor == 1:
        return body
    if factor == -1:
        return f"-{body}"
    return f"{_factor(factor, n)}{n.space}{body}"


def _factor(value: sympy.Expr, n: Notation) -> str:
    said = n.expression(value, {})
    return f"({said})" if value.is_Add else said


def _sum(terms: list[str]) -> str:
    said = " + ".join(terms) or "0"
    return said.replace("+ -", "- ")
