"""SymPy expressions of the normal form as nodes of a step program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial, reduce
from types import MappingProxyType

import sympy

from flagen.analyze.functions import expm1, log1p, relu, sigmoid, silu, softplus
from flagen.analyze.recurrence import Contract, Kron
from flagen.derive.step import StepBuilder
from flagen.parse.spec import Product

_FUNCTIONS: dict[type, str] = {
    sympy.exp: "exp",
    sympy.log: "log",
    sympy.tanh: "tanh",
    sympy.Abs: "abs",
    sympy.sign: "sign",
    sympy.Max: "max",
    sympy.Min: "min",
    expm1: "expm1",
    log1p: "log1p",
    relu: "relu",
    sigmoid: "sigmoid",
    silu: "silu",
    softplus: "softplus",
}


def node_of(
    builder: StepBuilder,
    expression: sympy.Expr,
    leaf: Callable[[sympy.Symbol], int],
    products: Mapping[str, Product] = MappingProxyType({}),
) -> int:
    """The node of `expression`; `leaf` gives those of its symbols.

    Terms and factors stand in the order in which SymPy prints them; what has a negative power is a
    divisor. Raises KeyError for a function that steps do not have.
    """

    def node(part: sympy.Expr) -> int:
        match part:
            case sympy.Symbol():
                return leaf(part)
            case sympy.Rational():
                return builder.number(Fraction(int(part.p), int(part.q)))
            case sympy.Number() | sympy.NumberSymbol():
                return builder.number(Fraction(float(part)))
            case Contract():
                total = node(part.expression)
                for axis in products[part.axis].parts if part.axis in products else (part.axis,):
                    total = builder.sum(total, axis)
                return total
            case Kron():
                left, right = map(node, part.vectors)
                return builder.kron(left, right, products[part.axis])
            case sympy.Add():
                return joined("+", part.as_ordered_terms())
            case sympy.Mul():
                return product(part)
            case sympy.Pow() if isinstance(part.exp, sympy.Rational):
                return builder.power(node(part.base), Fraction(int(part.exp.p), int(part.exp.q)))
            case sympy.Pow():
                return builder.apply("**", node(part.base), node(part.exp))
            case sympy.Heaviside():  # 1/2 at 0
                return node(sympy.Mul(sympy.S.Half, 1 + sympy.sign(part.args[0]), evaluate=False))
            case sympy.Piecewise():  # of relu: 1 where x > 0, and 0 elsewhere
                (one, where), (zero, _) = part.args
                assert (one, zero, where.func, where.rhs) == (1, 0, sympy.StrictGreaterThan, 0)
                return builder.apply("max", node(sympy.sign(where.lhs)), builder.number(0))
        op = _FUNCTIONS[part.func]
        args = [node(each) for each in part.args]
        return joined_nodes(op, args) if op in ("max", "min") else builder.apply(op, *args)

    def product(part: sympy.Mul) -> int:
        factors = part.as_ordered_factors()
        below = [each for each in factors if _is_divisor(each)]
        above = [each for each in factors if not _is_divisor(each)]
        made = joined("*", above)
        return (
            builder.apply("/", made, joined("*", [1 / each for each in below])) if below else made
        )

    def joined(op: str, parts: list[sympy.Expr]) -> int:
        return joined_nodes(op, [node(each) for each in parts] or [builder.number(1)])

    def joined_nodes(op: str, nodes: list[int]) -> int:
        return reduce(partial(builder.apply, op), nodes)

    return node(expression)


def _is_divisor(factor: sympy.Expr) -> bool:
    return (
        isinstance(factor, sympy.Pow)
        and factor.exp.is_Integer
        and factor.exp.is_negative
        and not factor.base.is_number
    )


def exact(expression: sympy.Expr) -> sympy.Expr:
    """`expression` without sums that cancel and logarithms that overflow, where it has some.

    1 - exp(x) = -expm1(x),  1 - sigmoid(x) = sigmoid(-x),  log(1 + exp(x)) = softplus(x),
    log(1 + x) = log1p(x).
    """
    rewritten = expression.replace(lambda part: isinstance(part, sympy.Add), _without_cancelling)
    result: sympy.Expr = rewritten.replace(
        lambda part: isinstance(part, sympy.log) and _one_more(part.args[0]), _log_of_one_more
    )
    return result


def _without_cancelling(total: sympy.Add) -> sympy.Expr:
    number, terms = total.as_coeff_Add()
    for term in sympy.Add.make_args(terms) if number != 0 else ():
        factor, function = term.as_coeff_Mul()
        if factor == -number and isinstance(function, sympy.exp):
            return terms - term + factor * expm1(function.args[0])
        if factor == -number and isinstance(function, sigmoid):
            return terms - term + number * sigmoid(-function.args[0])
    return total


def _one_more(total: sympy.Expr) -> bool:
    return isinstance(total, sympy.Add) and total.as_coeff_Add()[0] == 1


def _log_of_one_more(logarithm: sympy.Expr) -> sympy.Expr:
    rest = logarithm.args[0] - 1
    return softplus(rest.args[0]) if isinstance(rest, sympy.exp) else log1p(rest)
