"""A step program and its adjoint in float64 NumPy, along one sequence, and their self-check.

What the token-level kernels compute, before any kernel exists: `walk_forward` against the spec's
own step-by-step meaning, `walk_backward` against differences of it along random directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flagen.analyze.functions import POINTWISE
from flagen.analyze.meaning import run, sample, small_sizes
from flagen.analyze.named import Array, Named, joined, parted, pointwise, scalar, total
from flagen.analyze.recurrence import is_feature, output_heads, state_heads
from flagen.analyze.sequence import Arrays, Sequence, walk
from flagen.derive.step import Step
from flagen.diagnostics import InternalError
from flagen.parse.spec import Spec

_OPERATORS: dict[str, Any] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
    "neg": np.negative,
    "sign": np.sign,
}


def evaluate_step(
    step: Step, inputs: Mapping[str, Named], sizes: Mapping[str, int]
) -> dict[str, Named]:
    """The results of `step`, each over at least the axes that the program says."""
    values: list[Named] = []
    for node in step.nodes:
        operands = [values[arg] for arg in node.args]
        match node.op:
            case "input":
                values.append(inputs[str(node.detail)])
            case "number":
                values.append(scalar(float(node.detail)))
            case "size":
                values.append(scalar(sizes[str(node.detail)]))
            case "sum":
                axis = str(node.detail)
                values.append(total(operands[0], axis, sizes[axis]))
            case "along":
                (given,) = set(step.nodes[node.args[0]].axes) - set(node.axes)
                axes = (str(node.detail) if a == given else a for a in operands[0].axes)
                values.append(Named(tuple(axes), operands[0].data))
            case "expand":
                data = np.ones([sizes[axis] for axis in node.axes])
                values.append(pointwise(np.multiply, operands[0], Named(node.axes, data)))
            case op:
                function = _OPERATORS[op] if op in _OPERATORS else POINTWISE[op][1]
                values.append(pointwise(function, *operands))
    return {name: values[node] for name, node in step.results}


def walk_forward(
    step: Step, spec: Spec, arrays: Arrays, initial: Arrays | None = None
) -> tuple[Array, dict[str, Array]]:
    """The output and the final states, as `meaning.run` gives them."""
    sequence = Sequence.of(spec, arrays)
    output = spec.output[-1].target

    def one(inputs: dict[str, Named], states: dict[str, Named]) -> tuple[Named, dict[str, Named]]:
        tiles = {name: in_tiles(named) for name, named in states.items()}
        results = evaluate_step(step, inputs | tiles, sequence.sizes)
        return results[output], {name: in_memory(results[name]) for name in states}

    def in_tiles(named: Named) -> Named:
        for product in spec.products:
            named = parted(named, product.name, sequence.sizes)
        return named

    def in_memory(named: Named) -> Named:
        for product in spec.products:
            named = joined(named, product.name)
        return named

    return walk(sequence, sequence.start(initial), one)


def walk_backward(
    step: Step,
    backward: Step,
    spec: Spec,
    arrays: Arrays,
    d_output: Array,
    d_final: Arrays,
    initial: Arrays | None = None,
) -> dict[str, Array]:
    """The gradients by inputs and initial states of sum(o * do) + sum(S_T * dS_T)."""
    sequence = Sequence.of(spec, arrays)
    sizes, output = sequence.sizes, spec.output[-1].target
    heads, features = output_heads(spec), tuple(sorted(step.axes(output)))
    states = _states(sequence, sequence.start(initial), heads)
    before = []
    for t in range(sizes["T"]):
        before.append(states)
        inputs = {name: named.at("T", t) for name, named in sequence.inputs.items()}
        states = {
            n: v for n, v in evaluate_step(step, inputs | states, sizes).items() if n in states
        }
    carried = {f"d{n}": v for n, v in _states(sequence, d_final, heads, first=True).items()}
    given = {t.name: t.axes for t in spec.inputs if t.value is None}
    found = {name: np.zeros([sizes[axis] for axis in axes]) for name, axes in given.items()}
    for t in reversed(range(sizes["T"])):
        inputs = {name: named.at("T", t) for name, named in sequence.inputs.items()}
        inputs |= before[t] | carried | {f"d{output}": Named((*heads, *features), d_output[t])}
        results = evaluate_step(backward, inputs, sizes)
        carried = {name: results[name] for name in carried}
        for name, axes in given.items():
            if f"d{name}" in results:
                at = t if "T" in axes else slice(None)
                rest = tuple(axis for axis in axes if axis != "T")
                found[name][at] += _folded(results[f"d{name}"], rest, heads, sizes)
    for state in spec.state:
        axes = (*state_heads(spec), *spec.in_tiles(state.axes))
        gradient = _folded(carried[f"d{state.name}"], axes, heads, sizes)
        found[state.name] = gradient.reshape(np.shape(d_final[state.name]))
    return found


def _states(
    sequence: Sequence, arrays: Arrays, heads: tuple[str, ...], first: bool = False
) -> dict[str, Named]:
    """States with the output's heads: copied to all of a group, or given to its first alone."""
    coarse, sizes = state_heads(sequence.spec), sequence.sizes
    fine = sizes[heads[0]] if heads else 1
    group = fine // (sizes[coarse[0]] if coarse else 1)
    found = {}
    for state in sequence.spec.state:
        data = arrays[state.name] if coarse else arrays[state.name][None]
        data = np.repeat(data, group, 0)
        if first:
            data = data * (np.arange(fine) % group == 0).reshape(-1, *[1] * len(state.axes))
        named = Named((*heads, *state.axes), data if heads else data[0])
        for product in sequence.spec.products:
            named = parted(named, product.name, sizes)
        found[state.name] = named
    return found


def _folded(
    named: Named, axes: tuple[str, ...], heads: tuple[str, ...], sizes: Mapping[str, int]
) -> Array:
    """A value over the output's heads as one over `axes`: summed over what serves one head."""
    features = tuple(filter(is_feature, axes))
    shape = [sizes[axis] for axis in (*heads, *features)]
    data = np.broadcast_to(named.over((*heads, *features)), shape)
    coarse = [sizes[axis] for axis in axes if not is_feature(axis)]
    if heads:
        data = data.reshape(*(coarse or [1]), -1, *shape[1:]).sum(1)
        data = data if coarse else data[0]
    return data


def check_step(step: Step, backward: Step, spec: Spec) -> None:
    """Raise InternalError unless the programs mean what the statements mean."""
    rng = np.random.default_rng(0)
    sizes = {**small_sizes(spec), "T": 4}
    arrays, initial = sample(spec, sizes, rng)
    with np.errstate(all="ignore"):
        wanted = run(spec, arrays, initial)
        if not all(np.isfinite(array).all() for array in (wanted[0], *wanted[1].values())):
            arrays = {name: np.abs(array) for name, array in arrays.items()}
            wanted = run(spec, arrays, initial)
        found = walk_forward(step, spec, arrays, initial)
        d_output = rng.standard_normal(wanted[0].shape)
        d_final = {name: rng.standard_normal(array.shape) for name, array in wanted[1].items()}
        gradients = walk_backward(step, backward, spec, arrays, d_output, d_final, initial)
        pairs = [(spec.output[-1].target, wanted[0], found[0], 1e-9)]
        pairs += [(name, array, found[1][name], 1e-9) for name, array in wanted[1].items()]
        for name, gradient in gradients.items():
            direction = rng.standard_normal(gradient.shape)
            slope = _slope(spec, arrays, initial, d_output, d_final, name, direction)
            size = 1 + np.linalg.norm(gradient) * np.linalg.norm(direction)
            mine = np.sum(gradient * direction)
            pairs.append((f"d{name}", np.asarray(slope / size), np.asarray(mine / size), 1e-5))
    for name, a, b, tolerance in pairs:
        finite = np.isfinite(a)
        if a.shape != b.shape or not np.allclose(a[finite], b[finite], tolerance, tolerance):
            raise InternalError(
                f"the step of {spec.name} gives another `{name}` than its statements"
            )


def _slope(
    spec: Spec,
    arrays: Arrays,
    initial: Arrays,
    d_output: Array,
    d_final: Arrays,
    name: str,
    direction: Array,
    epsilon: float = 1e-5,
) -> float:
    """The derivative of the loss along a direction of one tensor, by central differences."""
    losses = []
    given = initial[name] if name in initial else arrays[name]
    for sign in (1, -1):
        moved = {name: given + sign * epsilon * direction}
        start = {n: moved.get(n, a) for n, a in initial.items()}
        output, final = run(spec, {n: moved.get(n, a) for n, a in arrays.items()}, start)
        loss = np.sum(output * d_output) + sum(np.sum(final[n] * d_final[n]) for n in d_final)
        losses.append(float(loss))
    return (losses[0] - losses[1]) / (2 * epsilon)
