"""Family "elementwise scan".

    h[t] = exp(g[t]) h[t-1] + x[t]        o[t] = h[t]

Each step is a map h -> a h + u of numbers; such maps compose to maps of the same kind, so a scan
over pairs (a, u) with a = exp(g) is exact however strong the decay: no logarithms are summed, and
nothing is divided. With y[t] = exp(g[t]) ∂L/∂h[t], what reaches the step before, the adjoint is a
scan of the same kind from the last token to the first:

    dx[t] = do[t] + y[t+1]      y[t] = exp(g[t]) dx[t]      dg[t] = dx[t] (exp(g[t]) h[t-1])

The product exp(g) h[t-1] is taken as it is, and not as o[t] - x[t], of which a strong decay leaves
no digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagen.analyze.meaning import gradients, run, sample, small_sizes
from flagen.analyze.recurrence import Family, Recurrence
from flagen.diagnostics import InternalError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scan:
    """The canonical operands of a scan, inputs by name, and the axes of its state, heads first."""

    injection: str
    log_decay: str
    axes: tuple[str, ...]


def scan_of(recurrence: Recurrence) -> Scan | str | None:
    """The operands; why there are no chunk forms yet, in the spec's words; None: no single scan."""
    if recurrence.family is not Family.SCAN or len(recurrence.states) != 1:
        return None
    (state,) = recurrence.states
    name, injection, log = state.name, sum(w.key * w.value for w in state.writes), state.decay.log
    axes = {t.name: t.axes for t in recurrence.spec.inputs if t.value is None}
    for what, operand in (("injection", injection), ("log decay", log)):
        if str(operand) not in axes:
            return f"the {what} of `{name}` is `{operand}`, and not an input"
    first, second = axes[str(injection)], axes[str(log)]
    if first != second or first[:1] != ("T",) or first[-1:] != state.axes:
        return (
            f"`{injection}` has the axes [{', '.join(first)}] and `{log}` [{', '.join(second)}],"
            f" and not both time, heads and those of `{name}`"
        )
    reads = recurrence.reads
    plain = recurrence.epilogue is None and recurrence.rest == 0 and len(reads) == 1
    if not plain or not reads[0].updated or reads[0].coefficient * reads[0].query != 1:
        return f"`{recurrence.output}` is not `{name}` as it is after the update"
    return Scan(str(injection), str(log), first[1:])


def scan_in_tiles(
    x: Array, g: Array, state: Array, size: int, segment: int
) -> tuple[Array, Array, list[Array]]:
    """The states, [T, ...], the last one, and those before tiles of `size` tokens.

    Segments of `segment` tokens, a multiple of `size`, enter with what the sums before them say.
    """
    h, saved = np.zeros_like(x), []
    for start in range(0, len(x), segment):
        b_h = _entering(x, np.exp(g), state, range(0, start, size), size)
        for tile in range(start, min(start + segment, len(x)), size):
            saved.append(b_h)
            for t in range(tile, min(tile + size, start + segment, len(x))):
                h[t] = b_h = np.exp(g[t]) * b_h + x[t]
    return h, (h[-1] if len(x) else state), saved


def adjoint_in_tiles(
    x: Array, g: Array, do: Array, d_final: Array, saved: list[Array], size: int, segment: int
) -> tuple[Array, Array, Array]:
    """dx, dg and the initial state's gradient; tiles and segments from the last to the first."""
    dx, dg, a, T = np.zeros_like(x), np.zeros_like(g), np.exp(g), len(x)
    y = d_final
    for start in reversed(range(0, T, segment)):
        end = min(start + segment, T)
        # in reverse, y -> a (y + do): the same kind of map, with the injection a do
        y = _entering((a * do)[end:][::-1], a[end:][::-1], d_final, range(0, T - end, size), size)
        for tile in reversed(range(start, end, size)):
            last = min(tile + size, end)
            b_h, decayed = saved[tile // size], np.zeros_like(x[tile:last])
            for t in range(tile, last):
                decayed[t - tile] = a[t] * b_h
                b_h = decayed[t - tile] + x[t]
            for t in reversed(range(tile, last)):
                dx[t] = do[t] + y
                dg[t] = dx[t] * decayed[t - tile]
                y = a[t] * dx[t]
    return dx, dg, y


def _entering(x: Array, a: Array, state: Array, tiles: range, size: int) -> Array:
    """The state after all `tiles`, each taken as one map h -> A h + U that is composed first."""
    for tile in tiles:
        A, U = np.ones_like(state), np.zeros_like(state)
        for t in range(tile, min(tile + size, len(x))):
            A, U = A * a[t], a[t] * U + x[t]
        state = A * state + U
    return state


def check_scan(recurrence: Recurrence, scan: Scan, size: int = 2, segment: int = 4) -> None:
    """Raise InternalError unless tiles, segments and adjoint give what the statements mean.

    Neither `size` nor `segment` divides the 7 tokens of the check.
    """
    spec = recurrence.spec
    rng = np.random.default_rng(0)
    arrays, initial = sample(spec, small_sizes(spec), rng)
    (state,) = initial
    output, final = run(spec, arrays, initial)
    d_output, d_final = rng.standard_normal(output.shape), rng.standard_normal(final[state].shape)
    wanted = gradients(spec, arrays, d_output, {state: d_final}, initial)

    x, g = arrays[scan.injection], arrays[scan.log_decay]
    h, last, saved = scan_in_tiles(x, g, initial[state], size, segment)
    dx, dg, dh = adjoint_in_tiles(x, g, d_output, d_final, saved, size, segment)
    pairs = [
        (recurrence.output, output, h),
        (state, final[state], last),
        (f"d{scan.injection}", wanted[scan.injection], dx),
        (f"d{scan.log_decay}", wanted[scan.log_decay], dg),
        (f"d{state}", wanted[state], dh),
    ]
    for name, expected, found in pairs:
        if not np.allclose(expected, found, rtol=1e-6, atol=1e-6):
            raise InternalError(
                f"the scan of {spec.name} gives another `{name}` than its statements"
            )
