"""What `flagen explain` says: how a spec was understood, what follows, and what it must cost."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import sympy

from flagen import floor, formulas
from flagen.analyze.recurrence import (
    Family,
    Level,
    Recurrence,
    StateRecurrence,
    axes_of,
    is_feature,
    output_heads,
    state_heads,
)
from flagen.derive.derivation import FORMS, Derivation, Walks
from flagen.derive.outer_product import ADJOINT
from flagen.diagnostics import FlagenError
from flagen.parse.expression import unparse
from flagen.parse.spec import Product
from flagen.pipeline import Pipeline

WIDTH = 88

_WHY = {
    Family.SCAN: "the state is a vector, and its elements never meet each other",
    Family.OUTER_PRODUCT: "the state is scaled by a diagonal and gains outer products; "
    "the update does not read it",
    Family.TIED_DELTA: "the update reads the state along the key that it writes to: "
    "one vector erases and writes",
    Family.LOW_RANK: "the update reads the state along one vector and writes what it read "
    "along another",
    Family.GENERAL: "affine in the state, but no chunk form is known for it",
}
_FORMS = {
    "chunk": "segments of chunks in parallel: training and long prompts",
    "fused_chunk": "one program walks all chunks of a sequence and head: large batches",
    "fused_recurrent": "token by token, the state in registers: decoding",
    "parallel": "all pairs of tokens, no state: short sequences",
}
_FACTORS = (Level.NONE, Level.CONSTANT, Level.SCALAR)


def explain(spec: str | Path, shape: Mapping[str, int], dtype: str, in_latex: bool = False) -> str:
    """The explanation of a spec, as text. Raises FlagenError for a spec that means nothing."""
    pipeline = Pipeline()
    recurrence = pipeline.recognise(spec)
    refusal, derivation = None, None
    try:
        derivation = pipeline.derive(recurrence)
    except FlagenError as error:
        refusal = error
    sections = [
        _title(recurrence),
        ("Recognised", _recognised(recurrence)),
        ("Normal form", _normal_form(recurrence, in_latex)),
        ("Forms", _forms(derivation, refusal)),
        *_chunk_sections(recurrence),
        *_walk_sections(derivation),
        ("Relied on", _obligations(recurrence)),
        (_floor_title(recurrence, shape, dtype), _floor(recurrence, shape, dtype)),
    ]
    return "\n\n".join(_section(title, lines) for title, lines in sections) + "\n"


def explain_code(code: str) -> str:
    """The long text of an error code. Raises KeyError."""
    from flagen.codes import CODES

    found = CODES[code]
    paragraphs = [*found.explanation.split("\n\n"), f"Fix: {found.fix}"]
    filled = [textwrap.fill(paragraph, WIDTH, break_on_hyphens=False) for paragraph in paragraphs]
    return "\n\n".join([f"{code}: {found.title}", *filled]) + "\n"


def _section(title: str, lines: Iterator[str]) -> str:
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def _title(recurrence: Recurrence) -> tuple[str, Iterator[str]]:
    spec = recurrence.spec
    doc = (spec.doc.splitlines() or [""])[0]
    return f"{spec.name}{': ' if doc else ''}{doc}", iter(())


def _labelled(label: str, words: str, column: int = 10) -> Iterator[str]:
    """Words in a column of their own."""
    yield from textwrap.wrap(
        words,
        WIDTH - 2,
        initial_indent=f"{label:<{column}}",
        subsequent_indent=" " * column,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _recognised(recurrence: Recurrence) -> Iterator[str]:
    yield from _labelled("family", recurrence.family.value)
    yield from _labelled("why", _WHY[recurrence.family])
    for family, reason in recurrence.rejected:
        yield from _labelled("not", f"{family}: {reason}")
    several = len(recurrence.states) > 1
    for state in recurrence.states:
        which = f"of `{state.name}`: " if several else ""
        own = f" ({state.family.value})" if several else ""
        yield from _labelled("decay", f"{which}{_decay(recurrence, state)}{own}")


def _decay(recurrence: Recurrence, state: StateRecurrence) -> str:
    """A state's decay in words."""
    decay = state.decay
    if decay.level is Level.NONE:
        return "none: what is written stays"
    words = f"{decay.level.value}, by the factor {formulas.in_words(recurrence, decay.factor)}"
    if decay.log is None:
        return f"{words}, which has no logarithm"
    low, high = decay.bounds
    left = "(-inf" if low == -math.inf else f"[{low:.4g}"
    right = "inf)" if high == math.inf else f"{high:.4g}]"
    return f"{words}; its logarithm lies in {left}, {right}"


def _normal_form(recurrence: Recurrence, in_latex: bool) -> Iterator[str]:
    yield from formulas.latex(recurrence) if in_latex else formulas.text(recurrence)
    for tensor in recurrence.spec.inputs:
        if tensor.value is not None:
            yield f"{tensor.name} = {unparse(tensor.value)}"
    yield f"scale = {unparse(recurrence.spec.scale)} unless the call says otherwise"
    heads = state_heads(recurrence.spec)
    for state in recurrence.states:
        yield f"{state.name}: {_axes(('N', *heads, *state.axes))}, float32"


def _forms(derivation: Derivation | None, refusal: FlagenError | None) -> Iterator[str]:
    if derivation is None:
        yield "none yet:"
        for diagnostic in refusal.diagnostics if refusal else ():
            yield from _labelled(diagnostic.code, diagnostic.message)
        return
    reasons = dict(derivation.refused)
    for form in FORMS:
        made = form in derivation.forms
        words = _FORMS[form] if made else f"no: {reasons.get(form, 'not possible')}"
        yield from _labelled(form, words, 16)
    if "fused_recurrent" in derivation.forms:
        yield f"{'decode':<16}fused_recurrent on states in a pool, updated in place: serving"
    yield f"{'naive':<16}the spec itself, step by step in plain torch: the reference"
    for product in derivation.recurrence.spec.products:
        yield from _labelled("", _pairs(derivation, product), 16)


def _pairs(derivation: Derivation, product: Product) -> str:
    """What a state over pairs of features costs, in words."""
    pairs = " * ".join(product.factors)
    words = (
        f"States over {product.name} have {pairs} rows, and so do the operands of chunks: "
        "that is cheap for some 16 features, and for 128 slow and large"
    )
    return words + "; `parallel` forms no pairs" * (derivation.attention is not None)


def _chunk_sections(recurrence: Recurrence) -> Iterator[tuple[str, Iterator[str]]]:
    """The chunk form and the gradients, for the family that has them written down."""
    if not _is_plain(recurrence):
        return
    (state,) = recurrence.states
    yield f"In chunks of C = {floor.CHUNK} tokens", _chunk_form(recurrence, state)
    yield "Gradients", _gradients(recurrence, state)


def _walk_sections(derivation: Derivation | None) -> Iterator[tuple[str, Iterator[str]]]:
    """The walks, for what is more than one of them between inputs and output."""
    if derivation is not None and derivation.walks and not _is_plain(derivation.recurrence):
        yield "In walks", _walks(derivation.recurrence, derivation.walks)


def _walks(recurrence: Recurrence, walks: Walks) -> Iterator[str]:
    known = tuple((str(one.result), ("T",)) for one in walks.passes)
    recurrence = replace(recurrence, axes=(*recurrence.axes, *known))

    def words(expression: sympy.Expr) -> str:
        return formulas.in_words(recurrence, expression)

    for one in walks.passes:
        operands = one.operands
        pairs = [("q", operands.query), ("k", operands.key), ("v", operands.value)]
        pairs += [("g", operands.log_decay)] * (operands.gated and operands.log_decay != 0)
        pairs += [("gv", operands.log_kept)] * operands.kept
        pairs += [("u", operands.bonus)] * (operands.bonus is not None)
        given = ", ".join(f"{name} = {words(value)}" for name, value in pairs)
        scale = "scale " if one.scaled else ""
        yield from _labelled(f"{one.result}", f"{scale}walk({given}) over `{one.state}`")
    if not walks.passes[0].operands.inclusive:
        yield "Walks read the state before the token's own write."
    yield from _labelled(recurrence.output, words(walks.output))


def _is_plain(recurrence: Recurrence) -> bool:
    """Whether the formulas below are the whole of it: one write, and one read after it."""
    if recurrence.family is not Family.OUTER_PRODUCT or len(recurrence.states) != 1:
        return False
    (state,) = recurrence.states
    if len(state.writes) != 1 or len(recurrence.reads) != 1 or recurrence.rest != 0:
        return False
    (read,) = recurrence.reads
    scalar = not axes_of(read.coefficient, dict(recurrence.axes))
    linear = recurrence.epilogue is None and read.updated and read.axis in state.axes[:1]
    return scalar and linear and state.decay.level in _SUMS


def _operands(recurrence: Recurrence, state: StateRecurrence) -> Iterator[str]:
    """Which expressions the canonical names stand for, where they are not the inputs themselves."""
    (read,), (write,) = recurrence.reads, state.writes
    pairs = [("scale", read.coefficient), ("q", read.query), ("k", write.key), ("v", write.value)]
    if state.decay.log is not None and state.decay.level is not Level.NONE:
        pairs.append(("g", state.decay.log))
    names = [
        f"{name} = {formulas.in_words(recurrence, value)}"
        for name, value in pairs
        if str(value) != name
    ]
    if names:
        yield f"with {', '.join(names)}"


def _chunk_form(recurrence: Recurrence, state: StateRecurrence) -> Iterator[str]:
    yield from _operands(recurrence, state)
    level = state.decay.level
    yield from _SUMS[level]
    yield ""
    yield from _TOKENS[level]
    yield ""
    yield "As matrix products, with rows for tokens:"
    yield from _MATRICES[level]
    if level is not Level.NONE:
        yield ""
        yield "Each exponent is a sum of log-decays, at most 0: nothing overflows."


_SUMS = {
    Level.NONE: ("S_0 is the state that enters the chunk.",),
    Level.CONSTANT: ("G_i = i g, and S_0 is the state that enters the chunk.",),
    Level.SCALAR: ("G_i = g_1 + … + g_i, and S_0 is the state that enters the chunk.",),
    Level.KEY: ("G_i = g_1 + … + g_i, a vector over keys; S_0 is the state that enters.",),
    Level.VALUE: ("G_i = g_1 + … + g_i, a vector over values; S_0 is the state that enters.",),
}
_SCALAR_TOKENS = (
    "o_i = scale ( exp(G_i) ⟨q_i, S_0⟩ + Σ_{j<=i} exp(G_i - G_j) ⟨q_i, k_j⟩ v_j )",
    "S_C = exp(G_C) S_0 + Σ_j exp(G_C - G_j) k_j ⊗ v_j",
)
_SCALAR_MATRICES = (
    "A   = (Q Kᵀ) ⊙ D        D_ij = exp(G_i - G_j) for j <= i, and 0 elsewhere",
    "O   = scale ( A V + (exp(G) ⊙ Q) S_0 )",
    "S_C = exp(G_C) S_0 + (exp(G_C - G) ⊙ K)ᵀ V",
)
_TOKENS = {
    Level.NONE: (
        "o_i = scale ( ⟨q_i, S_0⟩ + Σ_{j<=i} ⟨q_i, k_j⟩ v_j )",
        "S_C = S_0 + Σ_j k_j ⊗ v_j",
    ),
    Level.CONSTANT: _SCALAR_TOKENS,
    Level.SCALAR: _SCALAR_TOKENS,
    Level.KEY: (
        "o_i = scale ( ⟨exp(G_i) ⊙ q_i, S_0⟩ + Σ_{j<=i} ⟨exp(G_i - G_j) ⊙ q_i, k_j⟩ v_j )",
        "S_C = exp(G_C) ⊙ S_0 + Σ_j (exp(G_C - G_j) ⊙ k_j) ⊗ v_j",
    ),
    Level.VALUE: (
        "o_i = scale ( exp(G_i) ⊙ ⟨q_i, S_0⟩ + Σ_{j<=i} ⟨q_i, k_j⟩ exp(G_i - G_j) ⊙ v_j )",
        "S_C = S_0 ⊙ exp(G_C) + Σ_j k_j ⊗ (exp(G_C - G_j) ⊙ v_j)",
    ),
}
_MATRICES = {
    Level.NONE: (
        "A   = lower triangle of Q Kᵀ, diagonal included",
        "O   = scale ( A V + Q S_0 )",
        "S_C = S_0 + Kᵀ V",
    ),
    Level.CONSTANT: _SCALAR_MATRICES,
    Level.SCALAR: _SCALAR_MATRICES,
    Level.KEY: (
        "A_ij = Σ_K Q_iK exp(G_iK - G_jK) K_jK for j <= i: the product of exp(G) ⊙ Q and",
        "       exp(G_C - G) ⊙ K, each row of which is divided by exp(G_C) while that is a float;",
        "       else one product per power s of 2 below C, of tokens that decay to the middle of",
        "       the block of 2 s tokens that they share first: all factors are at most 1",
        "O    = scale ( A V + (exp(G) ⊙ Q) S_0 )",
        "S_C  = exp(G_C) ⊙ S_0 + (exp(G_C - G) ⊙ K)ᵀ V",
    ),
    Level.VALUE: (
        "A   = lower triangle of Q Kᵀ, diagonal included",
        "O   = scale ( Σ_j A_ij exp(G_i - G_j) ⊙ V_j + exp(G) ⊙ (Q S_0) ): one product per power",
        "      s of 2 below C, of tokens that decay to the middle of the block of 2 s tokens that",
        "      they share first",
        "S_C = S_0 ⊙ exp(G_C) + Kᵀ (exp(G_C - G) ⊙ V)",
    ),
}


def _gradients(recurrence: Recurrence, state: StateRecurrence) -> Iterator[str]:
    level = state.decay.level
    later = {Level.NONE: "X[t+1]", Level.CONSTANT: "exp(g) X[t+1]"}.get(
        level, "exp(g[t+1]) X[t+1]" if level in _FACTORS else "exp(g[t+1]) ⊙ X[t+1]"
    )
    yield "With X[t] = ∂L/∂S[t], which is written backwards in time by q and do:"
    yield f"X[t]  = {later} + scale q[t] ⊗ do[t]"
    yield "dq[t] = scale S[t] do[t]      dk[t] = X[t] v[t]      dv[t] = X[t]ᵀ k[t]"
    first = later.replace("t+1", "1")
    yield f"The initial state's gradient is {first}, and that of the final state is X[T+1]."
    yield ""
    yield "Each is the forward with its roles exchanged; with o = walk(q, k, v):"
    for walk in ADJOINT:
        roles = ", ".join(role.value for role in (walk.query, walk.key, walk.value))
        time = "backward in time" if walk.reverse else "forward in time"
        side = ", on the transposed state" if walk.transposed else ""
        yield f"{walk.result.value} = walk({roles})    {time}{side}"
    if level in _FACTORS:
        yield "Only the states that segments enter with are kept; others are made again."
    else:
        yield "The states that chunks enter with are kept, or after recompute_states() made again."
    if any(t.role == "decay" and t.value is None for t in recurrence.spec.inputs):
        yield from _decay_gradient(level)


def _decay_gradient(level: Level) -> Iterator[str]:
    """The gate's gradient, as a sum and as it is summed up."""
    terms = {
        Level.SCALAR: ("⟨q_i, dq_i⟩ - ⟨k_i, dk_i⟩", "⟨S_T, dS_T⟩"),
        Level.KEY: ("q_i ⊙ dq_i - k_i ⊙ dk_i", "Σ_V S_T ⊙ dS_T"),
        Level.VALUE: ("o_i ⊙ do_i - v_i ⊙ dv_i", "Σ_K S_T ⊙ dS_T"),
    }
    if level in terms:
        tokens, last = terms[level]
        yield f"dg[t] = Σ_{{i>=t}} ( {tokens} ) + {last}:"
        yield "        what pairs j < t <= i add to the loss, in sums by which of i and j the chunk"
        yield "        of t holds, since the difference of two large ones would have no digits"


def _obligations(recurrence: Recurrence) -> Iterator[str]:
    yield from recurrence.obligations or ("nothing about the inputs",)


def _floor_title(recurrence: Recurrence, shape: Mapping[str, int], dtype: str) -> str:
    used = {axis for tensor in recurrence.spec.inputs for axis in tensor.axes}
    order = ["B", *sorted(used, key=lambda axis: (axis != "T", is_feature(axis), axis))]
    sizes = " ".join(f"{axis}{floor.size_of(axis, shape)}" for axis in order)
    return f"The least it can cost: {sizes}, {dtype}, on an H200"


def _floor(recurrence: Recurrence, shape: Mapping[str, int], dtype: str) -> Iterator[str]:
    inputs = Counter(t.axes for t in recurrence.spec.inputs if t.value is None)
    macs = _macs(recurrence, shape)
    forward, backward = floor.passes(inputs, _output_axes(recurrence), dtype, shape, macs)
    rate = floor.BYTES_PER_SECOND / 1e12
    products = f"at {floor.FLOPS[dtype] / 1e12:.0f} TFLOP/s" if dtype in floor.FLOPS else ""
    bytes_at = f"at {rate:.2f} TB/s"
    yield f"{'':<20}{'bytes':>9}{bytes_at:>16}{'operations':>14}{products:>18}".rstrip()
    for name, cost in (("forward", forward), ("forward + backward", forward + backward)):
        seconds = cost.matrix_seconds(dtype)
        yield (
            f"{name:<20}{_bytes(cost.bytes):>9}{_time(cost.memory_seconds):>16}"
            f"{'not counted' if cost.macs is None else _flop(2 * cost.macs):>14}"
            f"{'' if seconds is None else _time(seconds):>18}"
        ).rstrip()
    yield "Each input is read once, each output written once; both rates are measured ones."
    if macs is None:
        yield "Operations are counted for families that have kernels."
    else:
        chunk = f"chunk of {floor.CHUNK} tokens"
        yield f"Operations: C² (K + V) + 2 C K V multiply-adds per head and {chunk};"
        yield "the backward is three such walks."


def _macs(recurrence: Recurrence, shape: Mapping[str, int]) -> int | None:
    """The multiply-adds of the forward, of one walk per write and state."""
    if recurrence.family is not Family.OUTER_PRODUCT:
        return None
    heads = math.prod(floor.size_of(axis, shape) for axis in state_heads(recurrence.spec))
    matrices = [state for state in recurrence.states if len(state.axes) == 2]
    total = 0
    axes = {axis for tensor in recurrence.spec.inputs for axis in tensor.axes}
    sizes = recurrence.spec.sized({axis: floor.size_of(axis, shape) for axis in axes})
    for state in matrices:
        key, value = (sizes[axis] for axis in state.axes)
        total += max(1, len(state.writes)) * floor.walk_macs(heads, key, value, shape)
    return total


def _output_axes(recurrence: Recurrence) -> tuple[str, ...]:
    axes = dict(recurrence.axes)
    found = {axis for read in recurrence.reads for axis in axes[str(read.symbol)]}
    features = sorted(filter(is_feature, found))
    return ("T", *output_heads(recurrence.spec), *features)


def _axes(axes: tuple[str, ...]) -> str:
    return f"[{', '.join(axes)}]"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _flop(count: int) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.1f} GFLOP"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"
