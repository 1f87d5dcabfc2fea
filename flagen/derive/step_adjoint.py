"""The adjoint of a step: reverse mode over its program.

With L a function of all outputs and final states, dS = ∂L/∂S[t] and do = ∂L/∂o[t], the adjoint of
`S[t], o[t] = step(S[t-1], inputs)` gives ∂L/∂S[t-1] and the gradients of the inputs, each as the
sum of what its uses contribute: for y = f(a, b), da += ∂f/∂a dy, summed over the axes that a lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import cache, partial, reduce

import sympy

from flagen.analyze.functions import POINTWISE, log1p, sigmoid, softplus
from flagen.derive.step import Step, StepBuilder, pruned


def adjoint(step: Step, states: Mapping[str, tuple[str, ...]], constants: frozenset[str]) -> Step:
    """The program from inputs, states S, their gradients dS and the output's to all gradients.

    Inputs `dS` and results `dS` are the gradients by the state after and before the step. `scale`
    and `constants` have no gradient.
    """
    builder = StepBuilder.of(step)
    gradients: dict[int, int] = {}

    def give(node: int, over: tuple[str, ...], value: int) -> None:
        """Add to the gradient of an operand of a node over the axes `over`."""
        for axis in over:
            if axis not in builder.axes(node):
                value = builder.sum(value, axis)
        if node in gradients:
            value = builder.apply("+", gradients[node], value)
        gradients[node] = value

    for name, result in step.results:
        axes = states.get(name, builder.axes(result))
        give(result, builder.axes(result), builder.input(f"d{name}", axes))
    for place in reversed(range(len(step.nodes))):
        node = step.nodes[place]
        if place not in gradients or not node.args:
            continue
        for operand, value in _operands(builder, step, place, gradients[place]):
            if builder.value(operand) is None:
                give(operand, node.axes, value)
    results = []
    for place, node in enumerate(step.nodes):
        name = str(node.detail)
        if node.op == "input" and name not in constants and name != "scale":
            value = gradients.get(place, builder.number(0))
            results.append((f"d{name}", builder.expand(value, node.axes)))
    whole = Step(tuple(builder.nodes), (), (), step.order)
    return pruned(whole, results)


def _operands(builder: StepBuilder, step: Step, place: int, d: int) -> list[tuple[int, int]]:
    """What the operands of a node get for its gradient `d`, not yet summed over other axes."""
    node = step.nodes[place]
    apply = builder.apply
    match node.op, node.args:
        case "+", (a, b):
            return [(a, d), (b, d)]
        case "-", (a, b):
            return [(a, d), (b, apply("neg", d))]
        case "*", (a, b):
            return [(a, apply("*", d, b)), (b, apply("*", d, a))]
        case "/", (a, b):
            to_a = apply("/", d, b)
            return [(a, to_a), (b, apply("neg", apply("*", to_a, place)))]
        case "neg", (a,):
            return [(a, apply("neg", d))]
        case (("sum" | "expand"), (a,)):
            return [(a, d)]
    found = []
    for which, operand in enumerate(node.args):
        if builder.value(operand) is None:
            slope = _from_sympy(builder, derivative(node.op, which), node.args)
            found.append((operand, apply("*", d, slope)))
    return found


_X = sympy.symbols("x0 x1", real=True)


@cache
def derivative(op: str, which: int) -> sympy.Expr:
    """∂op/∂x_which as an expression of x0 and x1."""
    count = 2 if op in ("max", "min", "**") else 1
    made = _X[0] ** _X[1] if op == "**" else POINTWISE[op][0](*_X[:count])
    return sympy.diff(made, _X[which])


_FUNCTIONS: dict[type, str] = {
    sympy.exp: "exp",
    sympy.log: "log",
    sympy.tanh: "tanh",
    sympy.Abs: "abs",
    sympy.sign: "sign",
    log1p: "log1p",
    sigmoid: "sigmoid",
    softplus: "softplus",
}


def _from_sympy(builder: StepBuilder, expression: sympy.Expr, args: tuple[int, ...]) -> int:
    """The node of an expression over x0 and x1, which stand for `args`."""

    def node(part: sympy.Expr) -> int:
        if isinstance(part, sympy.Rational):
            return builder.number(Fraction(int(part.p), int(part.q)))
        if part in _X:
            return args[0 if part == _X[0] else 1]
        if isinstance(part, sympy.Heaviside):  # 1/2 at 0
            sign = builder.apply("sign", node(part.args[0]))
            return builder.apply("*", builder.number(Fraction(1, 2)), builder.apply("+", sign, one))
        if isinstance(part, sympy.Piecewise):  # of relu: 1 where x > 0
            return builder.apply("max", builder.apply("sign", args[0]), builder.number(0))
        if isinstance(part, sympy.Pow) and isinstance(part.exp, sympy.Rational):
            return builder.power(node(part.base), Fraction(int(part.exp.p), int(part.exp.q)))
        operands = [node(each) for each in part.args]
        if isinstance(part, sympy.Add | sympy.Mul):
            op = "+" if isinstance(part, sympy.Add) else "*"
            combined: int = reduce(partial(builder.apply, op), operands)
            return combined
        op = "**" if isinstance(part, sympy.Pow) else _FUNCTIONS[type(part)]
        return builder.apply(op, *operands)

    one = builder.number(1)
    return node(expression)
