"""Values that are affine in the states: a sum of coefficients times states and reads of states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import sympy

from flagen.analyze.recurrence import Contract, axes_of

Axes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Atom:
    """A state, or a read of it, `⟨query, S⟩_axis`.

    `axis` is "" and `query` 1 for the state itself; `axes` are those of the state that are left.
    `updated` tells S[t], which only outputs see, from S[t-1].
    """

    state: str
    axes: tuple[str, ...]
    axis: str
    query: sympy.Expr
    updated: bool


@dataclass(frozen=True, slots=True)
class Affine:
    """`sum coefficient * atom`; the atom None stands for 1."""

    terms: tuple[tuple[Atom | None, sympy.Expr], ...]

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The states and reads that the value depends on."""
        return tuple(atom for atom, _ in self.terms if atom is not None)

    @property
    def constant(self) -> sympy.Expr:
        """The part that touches no state."""
        return dict(self.terms).get(None, sympy.S.Zero)

    def map(self, function: Callable[[sympy.Expr], sympy.Expr]) -> Affine:
        """Every coefficient replaced by `function` of it."""
        return collect((atom, function(value)) for atom, value in self.terms)


def collect(terms: Iterable[tuple[Atom | None, sympy.Expr]]) -> Affine:
    """The sum of `terms`, with one coefficient per atom and without zeros."""
    sums: dict[Atom | None, sympy.Expr] = {}
    for atom, coefficient in terms:
        before = sums.get(atom, sympy.S.Zero)
        sums[atom] = before + coefficient
        # Expanding tells a hidden zero; the kept form stays factored, as the author wrote it.
        if before != 0 and expanded(sums[atom]) == 0:
            sums[atom] = sympy.S.Zero
    return Affine(tuple((atom, value) for atom, value in sums.items() if value != 0))


def constant(value: sympy.Expr) -> Affine:
    """A value that touches no state."""
    return collect([(None, value)])


def expanded(expression: sympy.Expr) -> sympy.Expr:
    """`expression` multiplied out, or as it is if that has very many terms."""
    return sympy.expand(expression) if _terms(expression) <= _MANY else expression


def factored(expression: sympy.Expr) -> sympy.Expr:
    """`expression` as a product, if it is a sum that factors, and not a very long one."""
    long = not isinstance(expression, sympy.Add) or _terms(expression) > _MANY
    return expression if long else sympy.factor(expression)


_MANY = 64


def _terms(expression: sympy.Expr) -> int:
    """How many terms `expression` has when it is multiplied out, from _MANY on only roughly."""
    counts = (_terms(part) for part in expression.args)
    if isinstance(expression, sympy.Add):
        return sum(counts)
    if isinstance(expression, sympy.Mul):
        return prod(counts)
    if isinstance(expression, sympy.Pow) and expression.exp.is_Integer:
        base = _terms(expression.base)
        return base if base == 1 else base ** min(abs(int(expression.exp)), _MANY)
    return max(counts, default=1)


def factors(expression: sympy.Expr) -> tuple[sympy.Expr, ...]:
    """The factors of a product; exp(a + b), (a b)**n and a b + a c are taken apart too."""
    found: list[sympy.Expr] = []
    for factor in sympy.Mul.make_args(expression):
        if isinstance(factor, sympy.exp):
            found += map(sympy.exp, sympy.Add.make_args(expanded(factor.args[0])))
        elif isinstance(factor, sympy.Pow) and isinstance(factor.base, sympy.Mul):
            found += [sympy.Pow(base, factor.exp) for base in factor.base.args]
        elif isinstance(factor, sympy.Add):
            found += sympy.Mul.make_args(sympy.factor_terms(factor))
        else:
            found.append(factor)
    return tuple(found)


def pull_out(expression: sympy.Expr, axis: str, axes: Axes) -> tuple[sympy.Expr, sympy.Expr]:
    """`expression` as a product of what does not vary over `axis` and what does."""
    parts = factors(expression)
    inside = [part for part in parts if axis in axes_of(part, axes)]
    outside = [part for part in parts if axis not in axes_of(part, axes)]
    return sympy.Mul(*outside), sympy.Mul(*inside)


def contract(expression: sympy.Expr, axis: str, axes: Axes) -> sympy.Expr:
    """The sum of a state-free expression over `axis`, with what does not vary taken out."""
    outside, inside = pull_out(expression, axis, axes)
    return outside * Contract(inside, axis)
