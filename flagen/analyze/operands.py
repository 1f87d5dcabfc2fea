"""From a state's affine form to operands: decay, writes and transitions.

The conventions make equal things look equal, which the tie test needs: a key or a write holds only
factors that vary over its own axis, and no number; all other factors go to the value or the read.
"""

from __future__ import annotations

from collections.abc import Iterable

import sympy

from flagen.analyze.bounds import Interval
from flagen.analyze.decay import decay_of, separate
from flagen.analyze.linear import Affine, Atom, Axes, expanded
from flagen.analyze.recurrence import Decay, Transition, Write, feature_axes

_ONE = sympy.S.One


def operands(
    name: str, state: tuple[str, ...], form: Affine, axes: Axes, domains: dict[str, Interval]
) -> tuple[Decay, tuple[Transition, ...], tuple[Write, ...]]:
    """The decay, the transitions and the writes of the state `name` with the axes `state`."""
    own = [c for atom, c in form.terms if atom and atom.state == name and not atom.axis]
    decay = decay_of(sympy.Add(*own), state, axes, domains)
    others = [(a, c) for a, c in form.terms if a and (a.axis or a.state != name)]
    transitions = [_transition(name, state, decay, atom, c, axes) for atom, c in others]
    merged = _merged_transitions(transitions)
    side = 1 if merged and all(t.axis == state[-1] for t in merged) else 0
    return decay, merged, _writes(form.constant, state, side, axes)


def _transition(
    name: str, state: tuple[str, ...], decay: Decay, atom: Atom, coefficient: sympy.Expr, axes: Axes
) -> Transition:
    """One read in the update. The decay is divided out where the read saw the decayed state."""
    parts = separate(coefficient, state, axes)
    if parts is None or not atom.axis or atom.state != name:
        return Transition(atom.state, coefficient, atom.query, atom.axis, decayed=False)
    decays = separate(decay.factor, state, axes)
    side = atom.axis
    query, write = atom.query, parts.pop(side)
    # The read sums over its axis, so that part of the decay is in the query, the rest outside.
    read = {side: query, **parts}
    decayed = decays is not None and decay.factor not in (0, 1)
    if decays is not None and decayed:
        without = {axis: _divided(read[axis], part) for axis, part in decays.items()}
        decayed = all(part is not None for part in without.values())
        if decayed:
            read = {axis: part for axis, part in without.items() if part is not None}
    number, write = write.as_coeff_Mul()
    across = sympy.Mul(*(part for axis, part in read.items() if axis not in (side, "")))
    return Transition(name, write * across, number * read[side] * read[""], side, decayed)


def _divided(product: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr | None:
    """Product / divisor, or None if the division does not make it simpler."""
    if divisor == 1:
        return product
    quotient = product / divisor
    return quotient if sympy.count_ops(quotient) < sympy.count_ops(product) else None


def _merged_transitions(transitions: list[Transition]) -> tuple[Transition, ...]:
    """As few transitions as possible: equal writes add their reads, equal reads their writes."""
    found = []
    kinds = dict.fromkeys((t.state, t.axis, t.decayed) for t in transitions)
    for kind in kinds:
        same = [t for t in transitions if (t.state, t.axis, t.decayed) == kind]
        by_write = _summed((t.write, t.read) for t in same)
        by_read = _summed((read, write) for write, read in by_write)
        state, axis, decayed = kind
        found += [Transition(state, write, read, axis, decayed) for read, write in by_read]
    return tuple(found)


def _writes(
    injection: sympy.Expr, state: tuple[str, ...], side: int, axes: Axes
) -> tuple[Write, ...]:
    """The state-free part as outer products, or as one write of everything if it is none.

    `side` is the axis of `state` whose factors stand alone: the one that transitions act along.
    """
    if injection == 0:
        return ()
    if len(state) < 2:
        return (Write(injection, _ONE),)
    pairs: list[tuple[sympy.Expr, sympy.Expr]] = []
    for addend in _addends(injection, axes):
        parts = separate(addend, state, axes)
        if parts is None:
            return (Write(injection, _ONE),)
        number, alone = parts[state[side]].as_coeff_Mul()
        pairs.append((alone, number * parts[""] * parts[state[1 - side]]))
    by_first = _summed(pairs)
    by_second = _summed((second, first) for first, second in by_first)
    found = [(first, second) for second, first in by_second]
    return tuple(Write(*pair) if side == 0 else Write(*reversed(pair)) for pair in found)


def _addends(injection: sympy.Expr, axes: Axes) -> Iterable[sympy.Expr]:
    """The terms that are to be outer products: the sum as written, or expanded where it must be."""
    for addend in sympy.Add.make_args(injection):
        mixed = any(len(feature_axes(f, axes)) > 1 for f in sympy.Mul.make_args(addend))
        yield from sympy.Add.make_args(expanded(addend)) if mixed else (addend,)


def _summed(
    pairs: Iterable[tuple[sympy.Expr, sympy.Expr]],
) -> list[tuple[sympy.Expr, sympy.Expr]]:
    """The sum of the products of `pairs`, with every first factor once, up to its sign."""
    sums: dict[sympy.Expr, sympy.Expr] = {}
    for first, second in pairs:
        if -first in sums:
            first, second = -first, -second
        sums[first] = sums.get(first, sympy.S.Zero) + second
    return [(first, second) for first, second in sums.items() if second != 0]
