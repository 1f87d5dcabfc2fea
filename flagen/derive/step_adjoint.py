"""The adjoint of a step: reverse mode over its program.

With L a function of all outputs and final states, dS = ∂L/∂S[t] and do = ∂L/∂o[t], the adjoint of
`S[t], o[t] = step(S[t-1], inputs)` gives ∂L/∂S[t-1] and the gradients of the inputs, each as the
sum of what its uses contribute: for y = f(a, b), da += ∂f/∂a dy, summed over the axes that a lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import sympy

from flagen.analyze.functions import POINTWISE
from flagen.derive.from_sympy import exact, node_of
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
                axes = builder.axes(operand) if node.op == "along" else node.axes
                give(operand, axes, value)
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
        case "along", (a,):
            (axis,) = set(builder.axes(a)) - set(node.axes)
            return [(a, builder.along(d, str(node.detail), axis))]
    found = []
    for which, operand in enumerate(node.args):
        if builder.value(operand) is None:
            slope = node_of(builder, derivative(node.op, which), _leaf(node.args))
            found.append((operand, apply("*", d, slope)))
    return found


_X = sympy.symbols("x0 x1", real=True)


@cache
def derivative(op: str, which: int) -> sympy.Expr:
    """∂op/∂x_which as an expression of x0 and x1."""
    count = 2 if op in ("max", "min", "**") else 1
    made = _X[0] ** _X[1] if op == "**" else POINTWISE[op][0](*_X[:count])
    return exact(sympy.diff(made, _X[which]))


def _leaf(args: tuple[int, ...]) -> Callable[[sympy.Symbol], int]:
    """The nodes that x0 and x1 stand for."""
    return lambda symbol: args[_X.index(symbol)]
