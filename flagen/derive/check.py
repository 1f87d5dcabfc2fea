"""The self-check of `derive`: chunk form and adjoint against the spec's own step-by-step meaning."""

from __future__ import annotations

import numpy as np

from flagen.analyze.meaning import gradients, run, sample, small_sizes
from flagen.derive.chunks import Array, walk_in_chunks
from flagen.derive.derivation import Derivation
from flagen.diagnostics import InternalError

CHUNK = 3
"""Tokens in a chunk of the check: it divides no length used, so the last chunk is ragged."""


def check(derivation: Derivation) -> None:
    """Raise InternalError unless the walks give the outputs and gradients that the spec means."""
    spec = derivation.recurrence.spec
    rng = np.random.default_rng(0)
    sizes = small_sizes(spec)
    arrays, initial = sample(spec, sizes, rng)
    (state,) = initial
    scale = float(sizes["K"]) ** -0.5
    arrays["scale"] = np.asarray(scale)
    output, final = run(spec, arrays, initial)
    d_output, d_final = rng.standard_normal(output.shape), rng.standard_normal(final[state].shape)
    wanted = gradients(spec, arrays, d_output, {state: d_final}, initial)

    log_decay = _log_decay(derivation, sizes)
    tensors = {"q": arrays["q"], "k": arrays["k"], "v": arrays["v"], "do": d_output}

    def walk_of(walk, entering: Array) -> tuple[Array, Array]:  # type: ignore[no-untyped-def]
        return walk_in_chunks(walk, tensors, log_decay, scale, entering, CHUNK)

    found, left = walk_of(derivation.forward, initial[state])
    pairs = [("o", output, found, 1e-9), (state, final[state], left, 1e-9)]
    for walk in derivation.adjoint:
        found, left = walk_of(walk, d_final if walk.reverse else initial[state])
        pairs.append((walk.result.value, wanted[walk.result.value[1:]], found, 1e-6))
        if walk.reverse:
            pairs.append((f"d{state}", wanted[state], left, 1e-6))
    for name, a, b, tolerance in pairs:
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance):
            raise InternalError(f"the chunk form of {spec.name} gives another `{name}` than its statements")


def _log_decay(derivation: Derivation, sizes: dict[str, int]) -> Array:
    """The constant log decay per head, [H], evaluated as the spec gives it."""
    from flagen.analyze.meaning import Sequence

    spec = derivation.recurrence.spec
    constants = [tensor for tensor in spec.inputs if tensor.value is not None]
    if derivation.operands.log_decay == 0 or not constants:
        return np.zeros(sizes["H"])
    shapes = {t.name: np.zeros([sizes[a] for a in t.axes]) for t in spec.inputs if t.value is None}
    sequence = Sequence.of(spec, shapes)
    import sympy

    names = sorted(str(s) for s in derivation.operands.log_decay.free_symbols)
    function = sympy.lambdify([sympy.Symbol(n, real=True) for n in names], derivation.operands.log_decay, "numpy")
    return np.broadcast_to(np.asarray(function(*(sequence.inputs[n].data for n in names)), dtype=float), (sizes["H"],))
