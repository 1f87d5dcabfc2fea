"""What a spec means, step by step in float64, and whether its normal form means the same.

`run` interprets the spec's own statements and knows nothing of the normal form; `run_normal_form`
evaluates the normal form and knows nothing of the statements. Arrays are those of one sequence,
in the axis order of the spec: [T, H, K] and so on. A state is [H, K, V].
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import numpy as np
import sympy

from flagen.analyze.evaluate import evaluate, value_of
from flagen.analyze.named import Array, Named, pointwise, total
from flagen.analyze.recurrence import Recurrence, is_feature, state_heads
from flagen.analyze.sequence import Arrays, Sequence, walk
from flagen.diagnostics import InternalError
from flagen.parse.spec import Spec


def run(
    spec: Spec, arrays: Arrays, initial: Arrays | None = None
) -> tuple[Array, dict[str, Array]]:
    """The output and the final states of `spec`, from its statements alone.

    `arrays` has the inputs; constants with a `value` and `scale` are computed where it lacks them.
    """

    def step(inputs: dict[str, Named], states: dict[str, Named]) -> tuple[Named, dict[str, Named]]:
        values = inputs | states
        for statement in spec.update:
            values[statement.target] = evaluate(statement.value, values, states, sequence.sizes)
        after = {name: values[name] for name in states}
        for statement in spec.output:
            values[statement.target] = evaluate(statement.value, values, states, sequence.sizes)
        return values[spec.output[-1].target], after

    sequence = Sequence.of(spec, arrays)
    return walk(sequence, sequence.start(initial), step)


def run_normal_form(
    recurrence: Recurrence, arrays: Arrays, initial: Arrays | None = None
) -> tuple[Array, dict[str, Array]]:
    """The same as `run`, from the normal form and the canonical operands of the family."""

    def step(inputs: dict[str, Named], states: dict[str, Named]) -> tuple[Named, dict[str, Named]]:
        def value(expression: sympy.Expr) -> Named:
            return value_of(expression, inputs, sequence.sizes)

        def read(query: sympy.Expr, state: Named, axis: str) -> Named:
            product = pointwise(operator.mul, value(query), state)
            return total(product, axis, sequence.sizes[axis]) if axis else product

        after = {}
        for state in recurrence.states:
            decay, before = state.decay, states[state.name]
            logs = [log for _, log in decay.parts] or [decay.log]
            factor = decay.factor if decay.log is None else sympy.exp(sympy.Add(*logs))
            decayed = pointwise(operator.mul, value(factor), before)
            terms = [decayed]
            if delta := state.delta:
                seen = read(delta.read, decayed if delta.decayed else before, delta.axis)
                update = pointwise(operator.sub, value(delta.value), seen)
                terms.append(pointwise(operator.mul, value(delta.key), update))
            else:
                for t in state.transitions:
                    seen = read(t.read, decayed if t.decayed else states[t.state], t.axis)
                    terms.append(pointwise(operator.mul, value(t.write), seen))
                for w in state.writes:
                    terms.append(pointwise(operator.mul, value(w.key), value(w.value)))
            after[state.name] = pointwise(lambda *parts: sum(parts), *terms)

        reads = {
            r.symbol.name: read(r.query, (after if r.updated else states)[r.state], r.axis)
            for r in recurrence.reads
        }
        output = recurrence.epilogue
        if output is None:
            output = recurrence.rest + sympy.Add(
                *(r.coefficient * r.symbol for r in recurrence.reads)
            )
        return value_of(output, inputs | reads, sequence.sizes), after

    sequence = Sequence.of(recurrence.spec, arrays)
    return walk(sequence, sequence.start(initial), step)


def gradients(
    spec: Spec,
    arrays: Arrays,
    d_output: Array,
    d_final: Arrays,
    initial: Arrays | None = None,
    epsilon: float = 1e-6,
) -> dict[str, Array]:
    """Gradients of sum(o * do) + sum(S_T * dS_T) by central differences, for small shapes.

    By the inputs that have no `value`, and by the initial states, under the states' names.
    """

    def loss() -> float:
        output, final = run(spec, varied, start)
        return float(
            np.sum(output * d_output) + sum(np.sum(final[n] * d_final[n]) for n in d_final)
        )

    varied = {name: np.array(array, dtype=np.float64) for name, array in arrays.items()}
    start = Sequence.of(spec, arrays).start(initial)
    constants = {tensor.name for tensor in spec.inputs if tensor.value is not None} | {"scale"}
    result = {}
    for name, array in [*varied.items(), *start.items()]:
        if name in constants:
            continue
        gradient = result[name] = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + epsilon
            above = loss()
            array[index] = kept - epsilon
            gradient[index] = (above - loss()) / (2 * epsilon)
            array[index] = kept
    return result


def sample(
    spec: Spec, sizes: Mapping[str, int], rng: np.random.Generator
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Random inputs within their domains, and random initial states."""

    def draw(axes: tuple[str, ...], low: float | None, high: float | None) -> Array:
        normal = rng.standard_normal([sizes[axis] for axis in axes])
        if low is not None and high is not None:
            return low + (high - low) * rng.random(normal.shape)
        if low is not None:
            return low + np.exp(normal)
        return 0.7 * normal if high is None else high - np.exp(normal)

    arrays = {
        tensor.name: draw(tensor.axes, *(tensor.domain or (None, None)))
        for tensor in spec.inputs
        if tensor.value is None
    }
    heads = state_heads(spec)
    return arrays, {s.name: draw((*heads, *s.axes), None, None) for s in spec.state}


def small_sizes(spec: Spec) -> dict[str, int]:
    """Sizes that differ from axis to axis, so that a mix-up of axes shows."""
    sizes = {"T": 7, "G": 1, "H": 2, "HV": 4, "HQ": 4}
    axes = [axis for tensor in spec.inputs for axis in tensor.axes]
    features = filter(is_feature, dict.fromkeys(axes))
    return spec.sized(sizes | {axis: 3 + n for n, axis in enumerate(features)})


def check(recurrence: Recurrence) -> None:
    """Raise InternalError unless the normal form means what the spec means."""
    spec = recurrence.spec
    rng = np.random.default_rng(0)
    arrays, initial = sample(spec, small_sizes(spec), rng)
    with np.errstate(all="ignore"):
        wanted = run(spec, arrays, initial)
        if not all(np.isfinite(array).all() for array in (wanted[0], *wanted[1].values())):
            # A root or logarithm of an input without a domain.
            arrays = {name: np.abs(array) for name, array in arrays.items()}
            wanted = run(spec, arrays, initial)
        found = run_normal_form(recurrence, arrays, initial)
    pairs = [(recurrence.output, wanted[0], found[0])]
    pairs += [(name, array, found[1][name]) for name, array in wanted[1].items()]
    for name, a, b in pairs:
        finite = np.isfinite(a)
        size = np.max(np.abs(a), where=finite, initial=1.0)
        if a.shape != b.shape or not (np.abs(a - b) <= 1e-9 * size)[finite].all():
            raise InternalError(
                f"the normal form of {spec.name} gives another `{name}` than its statements"
            )
