"""The mistakes that analysis can find, each as a diagnostic in the words of the spec."""

from __future__ import annotations

from collections.abc import Iterable

from flagen.analyze.linear import Affine, Atom
from flagen.diagnostics import Diagnostic, Span
from flagen.parse.expression import unparse
from flagen.parse.spec import Apply

_AFFINE = "an update must be affine in the states: S[t] = A[t] S[t-1] + U[t]"


class Mistake(Exception):
    """Stops the statement that is being executed; the next one goes on."""

    def __init__(self, diagnostic: Diagnostic | None) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic


def poisoned() -> Mistake:
    """A value could not be made because of a mistake that is reported already."""
    return Mistake(None)


def quadratic(expression: Apply, left: Affine, right: Affine) -> Mistake:
    """A product of two state expressions, FG201."""
    pairs = sorted(
        (_order(a, b) for a in left.atoms for b in right.atoms),
        key=lambda pair: tuple(map(atom_words, pair)),
    )
    a, b = pairs[0]
    states = _names((a.state, b.state))
    return _mistake(
        "FG201",
        f"`{unparse(expression)}` is quadratic in the state: "
        f"it multiplies {_names((atom_words(a), atom_words(b)), unique=False)}",
        expression.span,
        _AFFINE,
        fix=f"replace one factor by an input, or form the product of reads of {states} in the "
        "output",
    )


def nonlinear(expression: Apply, value: Affine) -> Mistake:
    """A nonlinear function of a running state in an update, FG202."""
    what = _names(atom.state for atom in value.atoms)
    if expression.op == "/":
        problem = f"`{unparse(expression)}` has the running state {what} in a denominator"
        fix = "normalise in the output: divide one read by another there"
    elif expression.op == "**":
        problem = f"`{unparse(expression)}` is a power of the running state {what}"
        fix = "take the power in the output, of a read"
    elif expression.op == "softmax":
        problem = f"`{unparse(expression)}` is a softmax of the running state {what}"
        fix = "an update may read the state linearly only: leave the softmax out"
    else:
        problem = f"`{unparse(expression)}` is a nonlinear function of the running state {what}"
        fix = f"apply `{expression.op}` to inputs only, or to a read in the output"
    return _mistake(
        "FG202",
        problem,
        expression.span,
        _AFFINE,
        "no other recurrence has a parallel form",
        fix=fix,
    )


def frozen(expression: Apply) -> Mistake:
    """`frozen(S)`, FG203."""
    state = f"`prev({', '.join(map(unparse, expression.args))})`"
    return _mistake(
        "FG203",
        f"`{unparse(expression)}` asks for the state at the start of its chunk",
        expression.span,
        "updates from a frozen state (test-time training, as in TTT and Titans) are a family of "
        "their own, which is not generated yet",
        fix=f"use {state}, the state before the step, in an update that is affine in it",
    )


def cut(expression: Apply, reason: str) -> Mistake:
    """An output that needs a second pass over the sequence, FG204."""
    return _mistake(
        "FG204",
        f"`{unparse(expression)}` {reason}",
        expression.span,
        "that cuts the recurrence into two passes (as in GSA and ABC), which is not generated yet",
        "an output may combine reads pointwise and sum them over an axis",
        fix="write one spec per pass: the first one's output, with what comes in between, is an "
        "input of the second",
    )


def softmax(expression: Apply) -> Mistake:
    """A softmax of inputs, FG208."""
    return _mistake(
        "FG208",
        f"`{unparse(expression)}` is not generated inside a recurrence yet",
        expression.span,
        fix="apply the softmax to the input before the call",
    )


def kron(expression: Apply) -> Mistake:
    """A `kron` of a state or a read, FG209."""
    return _mistake(
        "FG209",
        f"`{unparse(expression)}` takes a state, or a read of one",
        expression.span,
        "`kron` pairs the features of inputs",
        fix="contract a `kron` of inputs with a state, as in `dot(kron(q, q, F), S)`",
    )


def bilinear(expression: Apply, atom: Atom) -> Mistake:
    """A read in an update that contracts both axes of a state, FG205."""
    return _mistake(
        "FG205",
        f"`{unparse(expression)}` contracts both axes of `{atom.state}`: "
        f"`{atom_words(atom)}` is contracted again",
        expression.span,
        "a read in an update contracts one axis and is a vector",
        fix=f"keep `{atom_words(atom)}` a vector in the update; an output may sum it",
    )


def whole(expression: Apply, state: str) -> Mistake:
    """A matrix state in the output other than through a read, FG206."""
    return _mistake(
        "FG206",
        f"`{unparse(expression)}` uses `{state}` as a whole",
        expression.span,
        "a nonlinear output sees a state with two axes through reads, which contract one of them",
        fix=f"read it first: `dot(q, {state})`",
    )


def no_number(expression: Apply) -> Mistake:
    """A division by what is zero, FG207."""
    return _mistake(
        "FG207",
        f"`{unparse(expression)}` has no value: it divides by zero or takes a logarithm of it",
        expression.span,
        "the divisor or argument is zero for all inputs",
        fix="check the signs: equal terms cancel in it",
    )


def _mistake(code: str, message: str, span: Span, *notes: str, fix: str) -> Mistake:
    return Mistake(Diagnostic(code, message, span, notes, fix))


def atom_words(atom: Atom) -> str:
    """A state or a read of one in the words of the spec, e.g. `S` or `dot(k, S)`."""
    return f"dot({atom.query}, {atom.state})" if atom.axis else atom.state


def _order(a: Atom, b: Atom) -> tuple[Atom, Atom]:
    return (a, b) if atom_words(a) <= atom_words(b) else (b, a)


def _names(names: Iterable[str], unique: bool = True) -> str:
    listed = sorted(set(names)) if unique else list(names)
    return " and ".join(f"`{name}`" for name in listed)
