"""Interval arithmetic: what the declared domains of the inputs tell about an expression."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product

import sympy

from flagen.analyze.functions import expm1, log1p, relu, sigmoid, softplus

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


# Functions that grow everywhere: the bounds of the result are those of the argument, mapped.
_MONOTONE: dict[type, Callable[[float], float]] = {
    sympy.exp: _exp,
    expm1: lambda x: _exp(x) - 1,
    sympy.log: lambda x: -math.inf if x <= 0 else math.log(x),
    log1p: lambda x: -math.inf if x <= -1 else math.log1p(x),
    sympy.tanh: math.tanh,
    sigmoid: lambda x: 0.0 if x < -700 else 1 / (1 + math.exp(-x)),
    softplus: lambda x: x if x > 30 else math.log1p(math.exp(x)),
    relu: lambda x: max(x, 0.0),
}


def bounds(expression: sympy.Expr, domains: Mapping[str, Interval]) -> Interval:
    """An interval that encloses `expression` for all inputs within their domains."""
    if isinstance(expression, sympy.Number | sympy.NumberSymbol):
        value = float(expression)
        return value, value
    if isinstance(expression, sympy.Symbol):
        return domains.get(expression.name, UNKNOWN)
    parts = [bounds(part, domains) for part in expression.args if isinstance(part, sympy.Expr)]
    if isinstance(expression, sympy.Add):
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    if isinstance(expression, sympy.Mul):
        result = parts[0]
        for part in parts[1:]:
            corners = [_times(a, b) for a, b in product(result, part)]
            result = min(corners), max(corners)
        return result
    if isinstance(expression, sympy.Pow):
        low, high = parts[1]
        if low == high:
            return _power(parts[0], low)
        if parts[0][0] > 0:
            logs = [_times(math.log(b), e) for b, e in product(parts[0], parts[1])]
            return _exp(min(logs)), _exp(max(logs))
    if isinstance(expression, sympy.Max):
        return max(low for low, _ in parts), max(high for _, high in parts)
    if isinstance(expression, sympy.Min):
        return min(low for low, _ in parts), min(high for _, high in parts)
    if isinstance(expression, sympy.Abs):
        low, high = parts[0]
        return max(low, -high, 0.0), max(-low, high)
    if grow := _MONOTONE.get(type(expression)):
        return grow(parts[0][0]), grow(parts[0][1])
    return UNKNOWN


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _power(base: Interval, exponent: float) -> Interval:
    low, high = base
    even = exponent % 2 == 0
    if low < 0 and not (even and exponent > 0):
        return (0.0, math.inf) if even else UNKNOWN
    if low < 0:
        low, high = (0.0 if high >= 0 else -high), max(-low, high)
    ends = [_raised(low, exponent), _raised(high, exponent)]
    return min(ends), max(ends)


def _raised(base: float, exponent: float) -> float:
    if base == 0:
        return math.inf if exponent < 0 else 0.0 if exponent > 0 else 1.0
    return _exp(exponent * math.log(base)) if base < math.inf else _raised(0.0, -exponent)
