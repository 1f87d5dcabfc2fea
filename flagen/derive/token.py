"""The token level: one step after another, which every affine recurrence has.

`S[t], o[t] = step(S[t-1], inputs[t])` forward, and its adjoint from the last token to the first.
What blocks of a state can be computed apart follows from the program: those along an axis that no
sum runs over.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import output_heads, state_heads
from flagen.derive.padding import Held, carried, masked_sums
from flagen.derive.step import Step, step_of
from flagen.derive.step_adjoint import adjoint
from flagen.derive.step_meaning import check_step
from flagen.parse.spec import Spec, Tensor


@dataclass(frozen=True, slots=True)
class TokenLevel:
    """A step and its adjoint, with what a kernel must know about them.

    `blocked` are the axes along which programs work apart. `masked` and `masked_adjoint` are the
    sums that must leave out what is beyond the end of an axis. `heads` are the head axes of the
    output and of the states, or empty.
    """

    step: Step
    adjoint: Step
    blocked: tuple[str, ...]
    masked: frozenset[int]
    masked_update: frozenset[int]
    masked_adjoint: frozenset[int]
    heads: tuple[str, ...]
    state_heads: tuple[str, ...]

    def update(self, spec: Spec) -> Step:
        """The part of the step that computes the states alone."""
        return self.step.of(*(state.name for state in spec.state))


def arguments(spec: Spec) -> tuple[Tensor, ...]:
    """The inputs that a caller gives: all but constants."""
    return tuple(tensor for tensor in spec.inputs if tensor.value is None)


def token_level(spec: Spec) -> TokenLevel:
    """The token level of `spec`, checked against its statements."""
    step = step_of(spec)
    states = {state.name: spec.in_tiles(state.axes) for state in spec.state}
    constants = frozenset(tensor.name for tensor in spec.inputs if tensor.value is not None)
    backward = adjoint(step, states, constants)
    check_step(step, backward, spec)
    summed = {str(node.detail) for node in step.nodes if node.op == "sum"}
    for product in spec.products:  # a tile is read by rows and by columns
        summed |= {*product.factors, *product.parts}
    computed: dict[str, Held] = dict.fromkeys(constants)  # for every element of a tile
    forward = {axis: carried(step, axis, states, computed) for axis in step.order}
    gradients = [f"d{name}" for name in states]
    both = {axis: carried(backward, axis, gradients, forward[axis]) for axis in step.order}
    return TokenLevel(
        step=step,
        adjoint=backward,
        blocked=tuple(axis for axis in step.order if axis not in summed),
        masked=masked_sums(step, forward),
        masked_update=masked_sums(step.of(*states), forward),
        masked_adjoint=masked_sums(backward, both),
        heads=output_heads(spec),
        state_heads=state_heads(spec),
    )
