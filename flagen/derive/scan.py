"""Family "elementwise scan".

    h[t] = exp(g[t]) h[t-1] + x[t]        o[t] = h[t]

Each step is a map h -> a h + u of numbers; such maps compose to maps of the same kind, so a scan
over pairs (a, u) with a = exp(g) is exact however strong the decay: no logarithms are summed, and
nothing is divided. With y[t] = exp(g[t]) ∂L/∂h[t], what reaches the step before, the adjoint is a
scan of the same kind from the last token to the first:

    dx[t] = do[t] + y[t+1]      y[t] = exp(g[t]) dx[t]      dg[t] = dx[t] (exp(g[t]) h[t-1])

The product exp(g) h[t-1] is taken as it is, and not as o[t] - x[t], of which a strong decay leaves
no digits. A read before the update, o[t] = h[t-1], is not shifted either: its gradient joins after
the decay,

    dx[t] = y[t+1]      y[t] = exp(g[t]) dx[t] + do[t]

Each read is a scan of its own. Injection and log decay are expressions of the inputs, and so is the
output, with what is read: pointwise stages make them (`stages`). A quotient of two such sums, as in
RWKV-4, needs no running maximum: float32 holds weights from e^-87 to e^88, sums keep their relative
digits at any size, and the quotient's slopes divide before they multiply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sympy

from flagen.analyze.evaluate import value_of
from flagen.analyze.meaning import run, sample, small_sizes
from flagen.analyze.named import Named
from flagen.analyze.recurrence import (
    Family,
    Read,
    Recurrence,
    StateRecurrence,
    output_heads,
)
from flagen.analyze.sequence import Sequence
from flagen.derive.differences import differences
from flagen.derive.stages import Stages, Wanted, stages_of
from flagen.derive.step import output_axes
from flagen.derive.token import TokenLevel
from flagen.diagnostics import InternalError

Array = npt.NDArray[np.float64]

_Pair = tuple[str, Array, Array]  # a name, what it should be, and what the chunk form makes


@dataclass(frozen=True, slots=True)
class ScanRead:
    """One scan: what a read sees of a state, from its canonical operands.

    `axes` are those of the state, with the heads of the output first. `before`: the read sees
    h[t-1]. `result` stands for what is read in `Scan.output`.
    """

    result: sympy.Symbol
    state: str
    injection: sympy.Expr
    log_decay: sympy.Expr
    axes: tuple[str, ...]
    before: bool


@dataclass(frozen=True, slots=True)
class Scan:
    """The scans, one per read, and `output`, an expression over inputs and what they read."""

    reads: tuple[ScanRead, ...]
    output: sympy.Expr
    stages: Stages

    @property
    def before(self) -> bool:
        """Whether any read sees a state before the update."""
        return any(read.before for read in self.reads)


def scan_of(recurrence: Recurrence, token: TokenLevel) -> Scan | str | None:
    """The operands; why there are no chunk forms, in words; None where a read is a sum."""
    if recurrence.family is not Family.SCAN or any(read.axis for read in recurrence.reads):
        return None
    read = {each.state for each in recurrence.reads}
    heads, ranks = output_heads(recurrence.spec), {len(state.axes) for state in recurrence.states}
    for state in recurrence.states:
        if state.name not in read:
            return f"`{state.name}` is never read"
        if len(ranks) > 1 or not (heads or state.axes):
            return f"`{state.name}` has the axes [{', '.join(state.axes)}]: scans take one for all"
    output = recurrence.epilogue
    if output is None:
        terms = (each.coefficient * each.symbol for each in recurrence.reads)
        output = sympy.Add(*terms, recurrence.rest)
    states = {state.name: state for state in recurrence.states}
    reads = tuple(_read(states[each.state], each, heads) for each in recurrence.reads)
    wanted = tuple(
        (
            Wanted("x", each.injection, ("T", *each.axes)),
            Wanted("g", each.log_decay, ("T", *each.axes)),
        )
        for each in reads
    )
    results = {str(each.result): ("T", *each.axes) for each in reads}
    features = output_axes(token.step, recurrence.output)
    stages = stages_of(recurrence, wanted, results, output, features)
    return stages if isinstance(stages, str) else Scan(reads, output, stages)


def _read(state: StateRecurrence, read: Read, heads: tuple[str, ...]) -> ScanRead:
    return ScanRead(
        result=read.symbol,
        state=state.name,
        injection=sympy.Add(*(write.key * write.value for write in state.writes)),
        log_decay=sympy.Add(*(log for _, log in state.decay.parts)),
        axes=(*heads, *state.axes),
        before=not read.updated,
    )


def scan_in_tiles(
    x: Array, g: Array, state: Array, size: int, segment: int, before: bool = False
) -> tuple[Array, Array, list[Array]]:
    """The states that are read, [T, ...], the last one, and those before tiles of `size` tokens.

    Segments of `segment` tokens, a multiple of `size`, enter with what the sums before them say.
    """
    o, saved, b_h = np.zeros_like(x), [], state
    for start in range(0, len(x), segment):
        b_h = _entering(x, np.exp(g), state, range(0, start, size), size)
        for tile in range(start, min(start + segment, len(x)), size):
            saved.append(b_h)
            for t in range(tile, min(tile + size, start + segment, len(x))):
                b_e, b_h = b_h, np.exp(g[t]) * b_h + x[t]
                o[t] = b_e if before else b_h
    return o, b_h, saved


def adjoint_in_tiles(
    x: Array,
    g: Array,
    do: Array,
    d_final: Array,
    saved: list[Array],
    size: int,
    segment: int,
    before: bool = False,
) -> tuple[Array, Array, Array]:
    """dx, dg and the initial state's gradient; tiles and segments from the last to the first."""
    dx, dg, a, T = np.zeros_like(x), np.zeros_like(g), np.exp(g), len(x)
    y = d_final
    for start in reversed(range(0, T, segment)):
        end = min(start + segment, T)
        # in reverse, y -> a (y + do) or a y + do: the same kind of map
        u = do if before else a * do
        y = _entering(u[end:][::-1], a[end:][::-1], d_final, range(0, T - end, size), size)
        for tile in reversed(range(start, end, size)):
            last = min(tile + size, end)
            b_h, decayed = saved[tile // size], np.zeros_like(x[tile:last])
            for t in range(tile, last):
                decayed[t - tile] = a[t] * b_h
                b_h = decayed[t - tile] + x[t]
            for t in reversed(range(tile, last)):
                dx[t] = y if before else do[t] + y
                dg[t] = dx[t] * decayed[t - tile]
                y = a[t] * dx[t] + (do[t] if before else 0)
    return dx, dg, y


def _entering(x: Array, a: Array, state: Array, tiles: range, size: int) -> Array:
    """The state after all `tiles`, each taken as one map h -> A h + U that is composed first."""
    for tile in tiles:
        A, U = np.ones_like(state), np.zeros_like(state)
        for t in range(tile, min(tile + size, len(x))):
            A, U = A * a[t], a[t] * U + x[t]
        state = A * state + U
    return state


def check_scan(
    recurrence: Recurrence, token: TokenLevel, scan: Scan, size: int = 2, segment: int = 4
) -> None:
    """Raise InternalError unless tiles, segments and adjoint give what the statements mean.

    Neither `size` nor `segment` divides the 7 tokens of the check.
    """
    name = recurrence.spec.name
    with np.errstate(all="ignore"):
        for what, expected, found in _pairs(recurrence, token, scan, size, segment):
            finite = np.isfinite(expected)
            if not np.allclose(expected[finite], found[finite], rtol=1e-6, atol=1e-6):
                raise InternalError(
                    f"the scan of {name} gives another `{what}` than its statements"
                )


def _pairs(
    recurrence: Recurrence, token: TokenLevel, scan: Scan, size: int, segment: int
) -> Iterator[_Pair]:
    spec = recurrence.spec
    rng = np.random.default_rng(0)
    arrays, initial = sample(spec, small_sizes(spec), rng)
    output, final = run(spec, arrays, initial)
    sequence, reads = Sequence.of(spec, arrays), {}

    def value(expression: sympy.Expr, axes: tuple[str, ...]) -> Array:
        named = value_of(expression, sequence.inputs, sequence.sizes)
        shape = [sequence.sizes[axis] for axis in axes]
        array: Array = np.broadcast_to(named.over(axes), shape).copy()
        return array

    for read in scan.reads:
        name, axes, state = read.state, ("T", *read.axes), initial[read.state]
        x, g = value(read.injection, axes), value(read.log_decay, axes)
        shape, do = x.shape, rng.standard_normal(x.shape)
        group = x[0].size // state.size  # heads of the output that share a state
        start = np.repeat(state.reshape(-1, shape[-1]), group, 0).reshape(shape[1:])
        o, last, saved = scan_in_tiles(x, g, start, size, segment, read.before)
        yield name, final[name], last.reshape(-1, shape[-1])[::group].reshape(state.shape)
        reads[str(read.result)] = Named(axes, o)
        given = (do, rng.standard_normal(start.shape), saved)
        for what, wanted, found in _slopes(x, g, start, given, size, segment, read.before):
            yield f"d{name}" if what == "dh" else what, wanted, found
    axes = ("T", *output_heads(spec), *output_axes(token.step, recurrence.output))
    made = value_of(scan.output, sequence.inputs | reads, sequence.sizes).over(axes)
    yield recurrence.output, output, np.broadcast_to(made, output.shape)


def _slopes(
    x: Array,
    g: Array,
    start: Array,
    given: tuple[Array, Array, list[Array]],
    size: int,
    segment: int,
    before: bool,
) -> Iterator[_Pair]:
    """The gradients of a scan by central differences, and by the adjoint."""
    do, d_last, saved = given

    def loss(x: Array, g: Array, start: Array) -> float:
        o, last, _ = scan_in_tiles(x, g, start, size, segment, before)
        return float(np.sum(o * do) + np.sum(last * d_last))

    dx, dg, dh = adjoint_in_tiles(x, g, do, d_last, saved, size, segment, before)
    yield "dx", differences(x, lambda x: loss(x, g, start)), dx
    yield "dg", differences(g, lambda g: loss(x, g, start)), dg
    yield "dh", differences(start, lambda start: loss(x, g, start)), dh
