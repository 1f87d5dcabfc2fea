"""What numbers in an expression come to: no later stage computes a huge or undefined one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from flagen.diagnostics import Diagnostic, quote
from flagen.parse.draft import Draft
from flagen.parse.expression import MAX_EXPONENT, unparse
from flagen.parse.spec import Apply, Expression, Number

Value = Fraction | float | None  # None: depends on more than numbers
MAX_BITS = 4096

_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "log": math.log,
    "log1p": math.log1p,
    "expm1": math.expm1,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "abs": abs,
    "tanh": math.tanh,
    "square": lambda x: x * x,
}


class _Bad(Exception):
    """A part of an expression has no usable value."""


def check_numbers(draft: Draft) -> Iterator[Diagnostic]:
    """FG116: numbers that are too large, or are none."""
    expressions = [tensor.value for tensor in draft.tensors] + [draft.scale]
    for expression in expressions + [line.value for line in draft.lines]:
        if expression is not None:
            problems: list[Diagnostic] = []
            _fold(expression, problems)
            yield from problems


def _fold(expression: Expression, problems: list[Diagnostic]) -> Value:
    if isinstance(expression, Number):
        return Fraction(expression.numerator, expression.denominator)
    if not isinstance(expression, Apply):
        return None
    values = [_fold(each, problems) for each in expression.args]
    try:
        return _apply(expression.op, values)
    except _Bad as error:
        problem = str(error)
    except OverflowError:
        problem = "is too large a number"
    except ZeroDivisionError:
        problem = "divides by zero"
    except ValueError:
        problem = "is not a real number"
    message = f"{quote(unparse(expression))} {problem}"
    problems.append(Diagnostic("FG116", message, expression.span))
    return None


def _apply(op: str, values: list[Value]) -> Value:
    last = values[-1] if values else None
    if op == "**" and last is not None and not -MAX_EXPONENT <= last <= MAX_EXPONENT:
        raise _Bad(f"has an exponent larger than {MAX_EXPONENT}")
    if op == "/" and last == 0:
        raise ZeroDivisionError
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    if op in _FUNCTIONS and len(known) == 1:
        return _FUNCTIONS[op](float(known[0]))
    match op, known:
        case "neg", [a]:
            return -a
        case "+", [a, b]:
            return _bounded(a + b)
        case "-", [a, b]:
            return _bounded(a - b)
        case "*", [a, b]:
            return _bounded(a * b)
        case "/", [a, b]:
            return _bounded(a / b)
        case "**", [a, b]:
            return _power(a, b)
    return None


def _power(base: Fraction | float, exponent: Fraction | float) -> Fraction | float:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        return _bounded(base**exponent.numerator)
    if base < 0:
        raise ValueError
    return _bounded(float(base) ** float(exponent))


def _bounded(value: Fraction | float) -> Fraction | float:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise _Bad("has too many digits")
    elif not math.isfinite(value):
        raise OverflowError
    return value
