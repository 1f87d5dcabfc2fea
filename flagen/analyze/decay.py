"""The decay: the coefficient of a state in its own update, taken apart by axes, as a logarithm."""

from __future__ import annotations

import sympy

from flagen.analyze.bounds import UNKNOWN, Interval, bounds
from flagen.analyze.functions import log1p, sigmoid, softplus
from flagen.analyze.linear import Axes, factored, factors
from flagen.analyze.recurrence import Decay, Level, axes_of, feature_axes


def separate(
    expression: sympy.Expr, state: tuple[str, ...], axes: Axes
) -> dict[str, sympy.Expr] | None:
    """`expression` as a product of parts over one axis of `state` each, and one over none ("").

    None if it does not factor: then it truly varies over both axes, as in 1 - alpha * beta.
    """
    parts = {"": sympy.S.One, **dict.fromkeys(state, sympy.S.One)}
    for factor in factors(expression):
        over = sorted(feature_axes(factor, axes))
        if len(over) > 1:
            return None
        parts[over[0] if over else ""] *= factor
    return parts


def decay_of(
    factor: sympy.Expr, state: tuple[str, ...], axes: Axes, domains: dict[str, Interval]
) -> Decay:
    """The decay whose value is `factor`.

    The logarithm is taken of each factor by itself, so that exp(g) gives back g, and only where
    the domains prove that the factor is not negative.
    """
    factor = _positive(factored(factor), domains)
    separated = separate(factor, state, axes)
    level = Level.DENSE if separated is None else _level(factor, separated, state, axes)
    logs = [(axis, logarithm(part, domains)) for axis, part in (separated or {"": factor}).items()]
    parts = tuple((axis, log) for axis, log in logs if log is not None and log != 0)
    if any(log is None for _, log in logs):
        return Decay(level, factor, None, (), UNKNOWN)
    log = sympy.Add(*(log for _, log in parts))
    kept = () if separated is None else parts
    return Decay(level, factor, log, kept, bounds(log, domains))


def _positive(product: sympy.Expr, domains: dict[str, Interval]) -> sympy.Expr:
    """`product` with signs turned where they cancel: (a - 1)(b - 1) = (1 - a)(1 - b)."""
    parts = factors(product)
    negative = [part for part in parts if bounds(part, domains)[1] <= 0]
    if not negative or len(negative) % 2:
        return product
    return sympy.Mul(*(-part if part in negative else part for part in parts))


def _level(
    factor: sympy.Expr, parts: dict[str, sympy.Expr], state: tuple[str, ...], axes: Axes
) -> Level:
    over = [axis for axis in state if parts[axis] != 1]
    if len(over) == 2:
        return Level.BOTH
    if over:
        return Level.KEY if over[0] == state[0] else Level.VALUE
    if factor == 1:
        return Level.NONE
    return Level.SCALAR if "T" in axes_of(factor, axes) else Level.CONSTANT


def logarithm(product: sympy.Expr, domains: dict[str, Interval]) -> sympy.Expr | None:
    """log(product), or None where a factor may be negative or is zero."""
    logs = []
    for factor in factors(product):
        if isinstance(factor, sympy.exp):
            logs.append(factor.args[0])
        elif isinstance(factor, sigmoid):  # log(sigmoid(x)) = -softplus(-x) does not underflow
            logs.append(-softplus(-factor.args[0]))
        elif isinstance(1 - factor, sigmoid):
            logs.append(-softplus((1 - factor).args[0]))
        elif factor == 0 or bounds(factor, domains)[0] < 0:
            return None
        elif isinstance(factor, sympy.Pow) and bounds(factor.base, domains)[0] >= 0:
            logs.append(factor.exp * sympy.log(factor.base))
        elif isinstance(factor, sympy.Add) and factor.args[0] == 1:  # 1 - alpha for a small alpha
            logs.append(log1p(factor - 1))
        else:
            logs.append(sympy.log(factor))
    return sympy.Add(*logs)
