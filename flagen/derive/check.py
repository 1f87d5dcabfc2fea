"""The self-check of `derive`: chunk form and adjoint against the spec's step-by-step meaning."""

from __future__ import annotations

import numpy as np

from flagen.analyze.evaluate import value_of
from flagen.analyze.meaning import gradients, run, sample, small_sizes
from flagen.analyze.sequence import Sequence
from flagen.derive.chunks import Array, walk_in_chunks
from flagen.derive.derivation import Derivation, Walk
from flagen.diagnostics import InternalError

CHUNK = 3
"""Tokens in a chunk of the check: it does not divide the 7 checked, so the last is ragged."""


def check(derivation: Derivation) -> None:
    """Raise InternalError unless the walks give the outputs and gradients that the spec means."""
    spec, operands, forward = derivation.recurrence.spec, derivation.operands, derivation.forward
    if operands is None or forward is None:
        return
    rng = np.random.default_rng(0)
    arrays, initial = sample(spec, small_sizes(spec), rng)
    (state,) = initial
    output, final = run(spec, arrays, initial)
    d_output, d_final = rng.standard_normal(output.shape), rng.standard_normal(final[state].shape)
    wanted = gradients(spec, arrays, d_output, {state: d_final}, initial)

    sequence = Sequence.of(spec, arrays)
    inputs = sequence.inputs
    log_decay = value_of(operands.log_decay, inputs, sequence.sizes).over(("H",))
    tensors = {"q": arrays["q"], "k": arrays["k"], "v": arrays["v"], "do": d_output}
    scale = float(inputs["scale"].data)

    def result(walk: Walk, entering: Array) -> tuple[Array, Array]:
        return walk_in_chunks(walk, tensors, log_decay, scale, entering, CHUNK)

    found, left = result(forward, initial[state])
    pairs = [("o", output, found, 1e-9), (state, final[state], left, 1e-9)]
    for walk in derivation.adjoint:
        found, left = result(walk, d_final if walk.reverse else initial[state])
        pairs.append((walk.result.value, wanted[walk.result.value.removeprefix("d")], found, 1e-6))
        if walk.reverse:
            pairs.append((f"d{state}", wanted[state], left, 1e-6))
    for name, a, b, tolerance in pairs:
        if not np.allclose(a, b, rtol=tolerance, atol=tolerance):
            raise InternalError(
                f"the chunk form of {spec.name} gives another `{name}` than its statements"
            )
