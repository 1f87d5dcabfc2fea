"""One sequence: its inputs by name, with one head axis, and the walk along it step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flagen.analyze.evaluate import evaluate
from flagen.analyze.named import Array, Named, scalar
from flagen.analyze.recurrence import is_feature, output_heads, state_heads
from flagen.parse.spec import Spec

Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Sequence:
    """The inputs of one sequence, with one head axis, and the sizes of all axes."""

    spec: Spec
    sizes: dict[str, int]
    inputs: dict[str, Named]

    @staticmethod
    def of(spec: Spec, arrays: Arrays) -> Sequence:
        """Check the shapes, compute the constants and give all inputs the output's heads."""
        sizes: dict[str, int] = {}
        for tensor in spec.inputs:
            if tensor.name in arrays:
                shape = np.shape(arrays[tensor.name])
                if len(shape) != len(tensor.axes):
                    raise ValueError(
                        f"{tensor.name} has the shape {shape}, expected {list(tensor.axes)}"
                    )
                for axis, size in zip(tensor.axes, shape, strict=True):
                    if sizes.setdefault(axis, size) != size:
                        raise ValueError(
                            f"{tensor.name} has {size} along {axis}, other inputs {sizes[axis]}"
                        )
        sizes = spec.sized(sizes)
        numbers = {axis: scalar(size) for axis, size in sizes.items()}
        indices = {a.lower(): Named((a,), np.arange(n, dtype=float)) for a, n in sizes.items()}
        inputs = {}
        for tensor in spec.inputs:
            if tensor.name in arrays:
                named = Named(tensor.axes, np.asarray(arrays[tensor.name], dtype=np.float64))
            elif tensor.value is not None:
                named = evaluate(tensor.value, indices | numbers, {}, sizes)
            else:
                raise ValueError(f"{tensor.name} is missing")
            inputs[tensor.name] = _one_head_axis(named, output_heads(spec), sizes)
        scale = scalar(float(arrays["scale"])) if "scale" in arrays else None
        scale = scale or evaluate(spec.scale, numbers, {}, sizes)
        return Sequence(spec, sizes, numbers | {"scale": scale} | inputs)

    def start(self, initial: Arrays | None) -> dict[str, Array]:
        """The initial states, zero where none is given."""
        heads = state_heads(self.spec)
        shapes = {s.name: [self.sizes[a] for a in (*heads, *s.axes)] for s in self.spec.state}
        states = {name: np.zeros(shape) for name, shape in shapes.items()}
        for name, array in (initial or {}).items():
            if np.shape(array) != states[name].shape:
                expected = states[name].shape
                raise ValueError(f"{name} has the shape {np.shape(array)}, expected {expected}")
            states[name] = np.array(array, dtype=np.float64)
        return states


Step = Callable[[dict[str, Named], dict[str, Named]], tuple[Named, dict[str, Named]]]


def walk(sequence: Sequence, start: Arrays, step: Step) -> tuple[Array, dict[str, Array]]:
    """The outputs of all steps, stacked, and the final states."""
    spec, sizes = sequence.spec, sequence.sizes
    coarse, fine = state_heads(spec), output_heads(spec)
    axes = {state.name: (*(coarse and fine), *state.axes) for state in spec.state}
    states = {}
    for state in spec.state:
        given = Named((*coarse, *state.axes), start[state.name])
        states[state.name] = _full(_one_head_axis(given, fine, sizes), axes[state.name], sizes)
    outputs: list[Array] = []
    for t in range(sizes["T"]):
        inputs = {name: named.at("T", t) for name, named in sequence.inputs.items()}
        output, after = step(inputs, states)
        states = {name: _full(named, axes[name], sizes) for name, named in after.items()}
        features = tuple(sorted(filter(is_feature, output.axes)))
        outputs.append(_full(output, (*fine, *features), sizes).data)
    final = {name: state.data.copy() for name, state in states.items()}
    if coarse:  # heads of one group computed the same state
        group = sizes[fine[0]] // sizes[coarse[0]]
        final = {name: data[::group] for name, data in final.items()}
    return np.stack(outputs), final


def _full(named: Named, axes: tuple[str, ...], sizes: Mapping[str, int]) -> Named:
    shape = [sizes[axis] for axis in axes]
    return Named(axes, np.broadcast_to(named.over(axes), shape))


def _one_head_axis(named: Named, heads: tuple[str, ...], sizes: Mapping[str, int]) -> Named:
    """Grouped heads: head h of an input with fewer heads serves a group of the states' heads."""
    for place, axis in enumerate(named.axes):
        if axis != "T" and not is_feature(axis) and axis not in heads:
            data = np.repeat(named.data, sizes[heads[0]] // sizes[axis], place)
            return Named((*named.axes[:place], *heads, *named.axes[place + 1 :]), data)
    return named
