"""The self-check of `derive`: walks against the spec's own meaning, adjoints against slopes.

Outputs and final states are compared with those of the statements, step by step, and the adjoint of
every walk with central differences. The stages around the walks were checked where they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from flagen.analyze.evaluate import value_of
from flagen.analyze.meaning import run, sample, small_sizes
from flagen.analyze.named import Named
from flagen.analyze.recurrence import Level, output_heads
from flagen.analyze.sequence import Sequence
from flagen.derive.chunks import Array, Chunks, Walked, gate_gradient, walk_in_chunks
from flagen.derive.derivation import Derivation, Operands, Pass, Role, Walks
from flagen.derive.differences import differences
from flagen.derive.step import output_axes
from flagen.diagnostics import InternalError

CHUNK = 3
"""Tokens in a chunk of the check: it does not divide the 7 checked, so the last is ragged."""

_Pair = tuple[str, Array, Array]  # a name, what it should be, and what the chunk form makes


def check(derivation: Derivation) -> None:
    """Raise InternalError unless the walks give the outputs and gradients that the spec means."""
    if derivation.walks is None:
        return
    spec = derivation.recurrence.spec
    with np.errstate(all="ignore"):
        for name, expected, found in _pairs(derivation, derivation.walks):
            finite = np.isfinite(expected)
            if not np.allclose(expected[finite], found[finite], rtol=1e-6, atol=1e-6):
                raise InternalError(
                    f"the chunk form of {spec.name} gives another `{name}` than its statements"
                )


def _pairs(derivation: Derivation, walks: Walks) -> Iterator[_Pair]:
    spec = derivation.recurrence.spec
    rng = np.random.default_rng(0)
    arrays, initial = sample(spec, small_sizes(spec), rng)
    output, final = run(spec, arrays, initial)
    if not np.isfinite(output).all():  # a root or logarithm of an input without a domain
        arrays = {name: np.abs(array) for name, array in arrays.items()}
        output, final = run(spec, arrays, initial)
    sequence, heads = Sequence.of(spec, arrays), output_heads(spec)
    states = {state.name: state.axes for state in spec.state}
    reads, ends = {}, {name: np.zeros_like(array) for name, array in final.items()}
    for one in walks.passes:
        tensors, chunks = _canonical(one, sequence, heads)
        start = _of_walk(one, states[one.state], initial[one.state], tensors[Role.K].shape[1])
        entering = start if one.initial else np.zeros_like(start)
        walked = walk_in_chunks(walks.forward, tensors, chunks, entering)
        axes = ("T", *heads, *filter(None, one.axes[1:]))
        shape = [sequence.sizes[axis] for axis in axes]
        reads[str(one.result)] = Named(axes, (walked.result + walked.own).reshape(shape))
        if one.final:
            ends[one.state] += _of_spec(one, states[one.state], walked.state, final[one.state])
        tensors[Role.DO] = rng.standard_normal(walked.result.shape)
        d_final = rng.standard_normal(start.shape)
        yield from _gradients(walks, one.operands, tensors, chunks, start, d_final)
    axes = ("T", *heads, *output_axes(derivation.token.step, derivation.recurrence.output))
    found = value_of(walks.output, sequence.inputs | reads, sequence.sizes).over(axes)
    yield "o", output, np.broadcast_to(found, output.shape)
    for name, array in final.items():
        yield name, array, ends[name]


def _of_walk(one: Pass, axes: tuple[str, ...], state: Array, heads: int) -> Array:
    """A state as the walk has it: [H, K, V], all heads, and axes of size 1."""
    x = state.reshape(-1, *state.shape[state.ndim - len(axes) :])
    x = np.repeat(x, heads // x.shape[0], 0)
    if len(axes) < 2:
        return x.reshape(len(x), -1, 1) if one.axes[0] else x.reshape(len(x), 1, -1)
    return x if one.axes == axes else np.swapaxes(x, 1, 2)


def _of_spec(one: Pass, axes: tuple[str, ...], state: Array, like: Array) -> Array:
    """The state of a walk as the spec has it."""
    x = np.swapaxes(state, 1, 2) if one.axes == axes[::-1] else state
    heads = like.size // x[0].size
    return x[:: x.shape[0] // heads].reshape(like.shape)


def _canonical(
    one: Pass, sequence: Sequence, heads: tuple[str, ...]
) -> tuple[dict[Role, Array], Chunks]:
    """The operands' values: [T, H, ·], the log decay and the bonus as the state has its axes."""
    operands, (first, second) = one.operands, one.axes

    def value(expression: object, axes: tuple[str, ...]) -> Array:
        """Over `axes`, with one head where there is none, and the axis "" of size 1."""
        named = value_of(expression, sequence.inputs, sequence.sizes)
        known = tuple(filter(None, axes))
        shape = [sequence.sizes[axis] for axis in known]
        array = np.broadcast_to(named.over(known), shape).copy()
        array = array if heads else np.expand_dims(array, known.index("T") + 1)
        return array if known == axes else array[..., None]

    tensors = {
        Role.Q: value(operands.query, ("T", *heads, first)),
        Role.K: value(operands.key, ("T", *heads, first)),
        Role.V: value(operands.value, ("T", *heads, second)),
    }
    if operands.summed:
        log_decay = value(operands.log_decay, ("T", *heads, first))[..., None]
    else:
        log_decay = value(operands.log_decay, ("T", *heads))[..., None, None]
    log_kept = np.zeros_like(log_decay[..., :1, :])
    if operands.kept:
        log_kept = value(operands.log_kept, ("T", *heads, second))[..., None, :]
    bonus = None
    if operands.bonus is not None:
        bonus = value(operands.bonus, (*heads, first))[..., None]
    scale = float(sequence.inputs["scale"].data) if one.scaled else 1.0
    return tensors, Chunks(log_decay, log_kept, bonus, operands.inclusive, scale, CHUNK)


def _gradients(
    walks: Walks,
    operands: Operands,
    tensors: dict[Role, Array],
    chunks: Chunks,
    initial: Array,
    d_final: Array,
) -> Iterator[_Pair]:
    """The gradients of one walk by central differences, and by the adjoint."""

    def loss(tensors: dict[Role, Array], chunks: Chunks, initial: Array) -> float:
        walked = walk_in_chunks(walks.forward, tensors, chunks, initial)
        d_output = np.sum((walked.result + walked.own) * tensors[Role.DO])
        return float(d_output + np.sum(walked.state * d_final))

    def of_tensor(role: Role) -> Callable[[Array], float]:
        return lambda x: loss(tensors | {role: x}, chunks, initial)

    walked: dict[Role, Walked] = {}
    for walk in walks.adjoint:
        entering = d_final if walk.reverse else initial
        found = walked[walk.result] = walk_in_chunks(walk, tensors, chunks, entering)
        of = Role(walk.result.value.removeprefix("d"))
        wanted = differences(tensors[of], of_tensor(of))
        yield walk.result.value, wanted, found.result + found.own
    wanted = differences(initial, lambda x: loss(tensors, chunks, x))
    yield "the initial state's gradient", wanted, walked[Role.DV].state
    if operands.gated:
        once = walk_in_chunks(walks.forward, tensors, chunks, initial)
        around = {t: once.ends[t] * s for t, s in walked[Role.DV].ends.items()}
    if operands.summed or operands.level is Level.SCALAR:
        anchors = {t: np.sum(x, -1) for t, x in around.items()}
        reads, writes = (_apart(walked[d], tensors[x]) for d, x in _SUMMED)
        if operands.level is Level.SCALAR:
            anchors = {t: np.sum(x, -1) for t, x in anchors.items()}
            reads, writes = reads.sum(-1), writes.sum(-1)
        wanted = differences(
            chunks.log_decay, lambda x: loss(tensors, replace(chunks, log_decay=x), initial)
        )
        yield "dg", wanted.reshape(reads.shape[1:]), gate_gradient(reads, writes, anchors, chunks)
    if operands.kept:
        anchors = {t: np.sum(x, -2) for t, x in around.items()}
        reads, writes = _apart(once, tensors[Role.DO]), _apart(walked[Role.DV], tensors[Role.V])
        wanted = differences(
            chunks.log_kept, lambda x: loss(tensors, replace(chunks, log_kept=x), initial)
        )
        yield "dgv", wanted.reshape(reads.shape[1:]), gate_gradient(reads, writes, anchors, chunks)
    if chunks.bonus is not None:
        wanted = differences(
            chunks.bonus, lambda x: loss(tensors, replace(chunks, bonus=x), initial)
        )
        own = np.sum(tensors[Role.DO] * tensors[Role.V], -1, keepdims=True) * chunks.scale
        found = np.sum(own * tensors[Role.Q] * tensors[Role.K], 0)
        yield "du", wanted[..., 0], found


_SUMMED = ((Role.DQ, Role.Q), (Role.DK, Role.K))


def _apart(walked: Walked, x: Array) -> Array:
    """The product of x and its gradient, from the entering state and from the chunk's tokens."""
    return np.stack([x * walked.from_state, x * (walked.result - walked.from_state)])
