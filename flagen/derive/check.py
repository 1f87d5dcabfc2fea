"""The self-check of `derive`: the chunk form against the spec's step-by-step meaning, and the
adjoint against central differences of the chunk form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from flagen.analyze.evaluate import value_of
from flagen.analyze.meaning import run, sample, small_sizes
from flagen.analyze.recurrence import Level
from flagen.analyze.sequence import Sequence
from flagen.derive.chunks import Array, Chunks, Walked, gate_gradient, walk_in_chunks
from flagen.derive.derivation import Derivation, Operands, Role
from flagen.diagnostics import InternalError

CHUNK = 3
"""Tokens in a chunk of the check: it does not divide the 7 checked, so the last is ragged."""


def check(derivation: Derivation) -> None:
    """Raise InternalError unless the walks give the outputs and gradients that the spec means."""
    operands, forward = derivation.operands, derivation.forward
    if operands is None or forward is None:
        return
    spec = derivation.recurrence.spec
    rng = np.random.default_rng(0)
    arrays, initial = sample(spec, small_sizes(spec), rng)
    output, final = run(spec, arrays, initial)
    (state,) = initial
    tensors, chunks = _canonical(derivation, operands, Sequence.of(spec, arrays))
    walked = walk_in_chunks(forward, tensors, chunks, initial[state])
    pairs = [("o", output, walked.result + walked.own), (state, final[state], walked.state)]
    tensors[Role.DO], d_final = rng.standard_normal(output.shape), rng.standard_normal(walked.state.shape)
    pairs += _gradients(derivation, operands, tensors, chunks, initial[state], d_final)
    for name, expected, found in pairs:
        if not np.allclose(expected, found, rtol=1e-6, atol=1e-6):
            raise InternalError(
                f"the chunk form of {spec.name} gives another `{name}` than its statements"
            )


def _canonical(
    derivation: Derivation, operands: Operands, sequence: Sequence
) -> tuple[dict[Role, Array], Chunks]:
    """The operands' values: [T, H, ·], the log decay and the bonus as the state has its axes."""
    (state,) = derivation.recurrence.states
    first, second = state.axes

    def value(expression: object, axes: tuple[str, ...]) -> Array:
        named = value_of(expression, sequence.inputs, sequence.sizes)
        shape = [sequence.sizes[axis] for axis in axes]
        return np.broadcast_to(named.over(axes), shape).copy()

    tensors = {
        Role.Q: value(operands.query, ("T", "H", first)),
        Role.K: value(operands.key, ("T", "H", first)),
        Role.V: value(operands.value, ("T", "H", second)),
    }
    if operands.level is Level.KEY:
        log_decay = value(operands.log_decay, ("T", "H", first))[..., None]
    else:
        log_decay = value(operands.log_decay, ("T", "H"))[..., None, None]
    bonus = None if operands.bonus is None else value(operands.bonus, ("H", first))[..., None]
    scale = float(sequence.inputs["scale"].data)
    return tensors, Chunks(log_decay, bonus, operands.inclusive, scale, CHUNK)


def _gradients(
    derivation: Derivation,
    operands: Operands,
    tensors: dict[Role, Array],
    chunks: Chunks,
    initial: Array,
    d_final: Array,
) -> Iterator[tuple[str, Array, Array]]:
    """Name, gradient by central differences, and gradient by the adjoint."""
    forward = derivation.forward
    assert forward is not None

    def loss(tensors: dict[Role, Array], chunks: Chunks, initial: Array) -> float:
        walked = walk_in_chunks(forward, tensors, chunks, initial)
        d_output = np.sum((walked.result + walked.own) * tensors[Role.DO])
        return float(d_output + np.sum(walked.state * d_final))

    walked: dict[Role, Walked] = {}
    for walk in derivation.adjoint:
        entering = d_final if walk.reverse else initial
        found = walked[walk.result] = walk_in_chunks(walk, tensors, chunks, entering)
        of = Role(walk.result.value.removeprefix("d"))
        wanted = _differences(tensors[of], lambda x, of=of: loss(tensors | {of: x}, chunks, initial))
        yield walk.result.value, wanted, found.result + found.own
    wanted = _differences(initial, lambda x: loss(tensors, chunks, x))
    yield "the initial state's gradient", wanted, walked[Role.DV].state
    if operands.gated:
        axes = (-1,) if operands.level is Level.KEY else (-1, -2)
        once = walk_in_chunks(forward, tensors, chunks, initial)
        anchors = {t: np.sum(once.ends[t] * s, axes) for t, s in walked[Role.DV].ends.items()}
        read, wrote = tensors[Role.Q] * walked[Role.DQ].result, tensors[Role.K] * walked[Role.DK].result
        if operands.level is Level.SCALAR:
            read, wrote = read.sum(-1), wrote.sum(-1)
        wanted = _differences(
            chunks.log_decay, lambda x: loss(tensors, replace(chunks, log_decay=x), initial)
        )
        yield "dg", wanted.reshape(read.shape), gate_gradient(read, wrote, anchors, chunks)
    if chunks.bonus is not None:
        wanted = _differences(chunks.bonus, lambda x: loss(tensors, replace(chunks, bonus=x), initial))
        own = np.sum(tensors[Role.DO] * tensors[Role.V], -1, keepdims=True) * chunks.scale
        found = np.sum(own * tensors[Role.Q] * tensors[Role.K], 0)
        yield "du", wanted[..., 0], found


def _differences(array: Array, loss: Callable[[Array], float], epsilon: float = 1e-5) -> Array:
    """The gradient of `loss` by central differences."""
    varied, result = array.copy(), np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = varied[index]
        varied[index] = kept + epsilon
        above = loss(varied)
        varied[index] = kept - epsilon
        result[index] = (above - loss(varied)) / (2 * epsilon)
        varied[index] = kept
    return result
