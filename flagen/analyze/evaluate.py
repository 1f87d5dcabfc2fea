"""The value of one expression on named arrays: of the spec's own, and of the normal form."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy

from flagen.analyze.functions import NUMPY_OF, POINTWISE
from flagen.analyze.named import Named, kron, pointwise, scalar, total
from flagen.analyze.recurrence import Contract, Kron, is_feature
from flagen.parse.spec import Apply, Expression, Number, Symbol

_OPERATORS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "outer": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "neg": operator.neg,
}


def evaluate(
    expression: Expression,
    values: Mapping[str, Named],
    before: Mapping[str, Named],
    sizes: Mapping[str, int],
) -> Named:
    """The value of a spec's expression at one step. `before` has the states before the step."""
    match expression:
        case Number(numerator, denominator):
            return scalar(numerator / denominator)
        case Symbol(name):
            return values[name]
        case Apply("prev", (Symbol(name),)):
            return before[name]
    assert isinstance(expression, Apply)
    op = expression.op
    if op in ("sum", "mean"):
        operand, axis = evaluate(expression.args[0], values, before, sizes), expression.args[1]
        assert isinstance(axis, Symbol)
        summed = total(operand, axis.name, sizes[axis.name])
        return summed if op == "sum" else Named(summed.axes, summed.data / sizes[axis.name])
    if op == "kron":
        left, right = (evaluate(each, values, before, sizes) for each in expression.args[:2])
        assert isinstance(expression.args[2], Symbol)
        factors = tuple(next(filter(is_feature, each.axes)) for each in (left, right))
        return kron(left, right, (factors[0], factors[1]), expression.args[2].name, sizes)
    args = [evaluate(argument, values, before, sizes) for argument in expression.args]
    if op == "dot":
        product = pointwise(operator.mul, *args)
        for axis_name in filter(is_feature, set(args[0].axes) & set(args[1].axes)):
            product = total(product, axis_name, sizes[axis_name])
        return product
    return pointwise(_OPERATORS[op] if op in _OPERATORS else POINTWISE[op][1], *args)


def value_of(
    expression: sympy.Expr, values: Mapping[str, Named], sizes: Mapping[str, int]
) -> Named:
    """The value of an expression of the normal form at one step."""
    if isinstance(expression, sympy.Number | sympy.NumberSymbol):
        return scalar(float(expression))
    if isinstance(expression, sympy.Symbol):
        return values[expression.name]
    if isinstance(expression, Contract):
        inner = value_of(expression.expression, values, sizes)
        return total(inner, expression.axis, sizes[expression.axis])
    if isinstance(expression, Kron):
        left, right = (value_of(each, values, sizes) for each in expression.vectors)
        return kron(left, right, expression.factors, expression.axis, sizes)
    operands = [value_of(part, values, sizes) for part in expression.args]
    return pointwise(NUMPY_OF[expression.func], *operands)
