"""What the elements of a tile hold beyond an axis's size, and which sums have to leave them out.

Tiles are powers of two; loads put 0 where a tensor ends. A sum over an axis is right as it is where
its operand is 0 there, as `k * S` is. It is not where the operand is another number, as in `exp(g)`
for g = 0, or none at all, as in `1 / k`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from flagen.derive.step import Node, Step

FINITE = "finite"
"""Some finite number that is not known."""
Held = float | str | None
"""What an element holds beyond the end: a number, FINITE, or None for anything, NaN included."""

# Exact in floating point, whatever the implementation.
_AT_ZERO = {
    "exp": 1.0,
    "expm1": 0.0,
    "log1p": 0.0,
    "sqrt": 0.0,
    "abs": 0.0,
    "tanh": 0.0,
    "relu": 0.0,
    "sigmoid": 0.5,
    "sign": 0.0,
}
_BOUNDED = ("sigmoid", "tanh", "sign", "abs", "relu", "softplus")


def held(step: Step, axis: str, leaves: Mapping[str, Held]) -> list[Held]:
    """What each node holds beyond the end of `axis`; inputs hold 0 but those in `leaves`."""
    # a node that goes along another axis holds what its operand does beyond the end of that one
    linked = any(node.op == "along" for node in step.nodes)
    found: dict[str, list[Held]] = {each: [] for each in (step.order if linked else (axis,))}
    for node in step.nodes:
        for each, values in found.items():
            known = leaves if each == axis else dict.fromkeys(leaves)
            values.append(_held(step, node, each, known, found))
    return found[axis]


def _held(
    step: Step, node: Node, axis: str, leaves: Mapping[str, Held], found: dict[str, list[Held]]
) -> Held:
    """What one node holds beyond the end of `axis`, from what those before it do."""
    if node.op == "number":
        return float(node.detail)
    if axis not in node.axes:
        return FINITE  # the same as within
    if node.op == "input":
        return leaves.get(str(node.detail), 0.0)
    if node.op == "along" and node.detail == axis:
        (place,) = node.args
        (given,) = {*step.nodes[place].axes} - {*node.axes}
        return found[given][place]
    varies = [axis in step.nodes[arg].axes for arg in node.args]
    return _result(node.op, [found[axis][arg] for arg in node.args], varies)


def _result(op: str, args: list[Held], varies: list[bool]) -> Held:
    if None in args:
        return None
    first, last = args[0], args[-1]
    known = [arg for arg in args if isinstance(arg, float)]
    if op == "*" and 0.0 in known:
        return 0.0
    if op == "/" and first == 0.0 and not varies[1]:
        return 0.0
    if op in ("sum", "expand", "along"):
        return FINITE if op == "sum" and first != 0.0 else first
    if len(known) == len(args):
        match op, known:
            case "+", [a, b]:
                return a + b
            case "-", [a, b]:
                return a - b
            case "*", [a, b]:
                return a * b
            case "neg", [a]:
                return -a
            case "max", [a, b]:
                return max(a, b)
            case "min", [a, b]:
                return min(a, b)
        if known == [0.0] and op in _AT_ZERO:
            return _AT_ZERO[op]
        if op == "exp" and math.fabs(known[0]) < 80:
            return FINITE
    if op in ("+", "-", "*", "neg", "max", "min", *_BOUNDED):
        return FINITE
    return FINITE if op == "/" and not varies[-1] and last is not None else None


def carried(
    step: Step, axis: str, names: Iterable[str], others: Mapping[str, Held]
) -> dict[str, Held]:
    """`others`, and what the inputs `names`, results of the step before, hold beyond the end.

    That is 0 where a step makes 0 of it again, and anything otherwise.
    """
    leaves: dict[str, Held] = {**others, **dict.fromkeys(names, 0.0)}
    while True:
        values = held(step, axis, leaves)
        lost = [
            name
            for name, node in step.results
            if leaves.get(name) == 0.0 and axis in step.nodes[node].axes and values[node] != 0.0
        ]
        if not lost:
            return leaves
        leaves |= dict.fromkeys(lost)


def masked_sums(step: Step, leaves: Mapping[str, Mapping[str, Held]]) -> frozenset[int]:
    """The sums of `step` whose operand is not 0 beyond the end; `leaves` per axis, as in `held`."""
    found = set()
    for axis in step.order:
        values = held(step, axis, leaves.get(axis, {}))
        for place, node in enumerate(step.nodes):
            if node.op == "sum" and node.detail == axis and values[node.args[0]] != 0.0:
                found.add(place)
    return frozenset(found)
