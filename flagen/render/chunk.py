"""What `module/chunk.py.jinja` may print: the host side of the chunk forms."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.derive.derivation import Operands
from flagen.diagnostics import InternalError
from flagen.plan.kernel_plan import KernelPlan
from flagen.render.environment import Block
from flagen.render.reference import equations, signature_of, summary
from flagen.render.signature import Signature
from flagen.render.walks import operand_names, walks_text


@dataclass(frozen=True, slots=True)
class ChunkContext:
    """What the template may print."""

    name: str
    kernels: Block
    tiles: Block
    host: Block
    summary: str
    equations: Block
    parameters: Block
    run_parameters: Block
    call: str
    argument_docs: Block
    result_docs: Block
    check_arguments: Block
    first: str
    reference: str
    reference_cu_seqlens: str
    prologue: Block
    run_chunk: Block
    epilogue: Block


def chunk_context(plan: KernelPlan, kernels: Block, tiles: Block) -> ChunkContext:
    """The lines of the chunk forms."""
    derivation = plan.derivation
    operands = derivation.operands
    if operands is None:
        raise InternalError("a chunk form is rendered for a recurrence that has none")
    spec, signature = derivation.recurrence.spec, signature_of(derivation)
    scale = ["scale: float | None,"] * signature.has_scale
    names = operand_names(operands)
    return ChunkContext(
        name=spec.name,
        kernels=kernels,
        tiles=tiles,
        host=walks_text(plan, operands),
        summary=summary(spec),
        equations=Block.of("\n".join(equations(spec))),
        parameters=Block(tuple([*signature.parameters(), *signature.scale_parameter()])),
        run_parameters=Block(tuple([*signature.parameters(), *scale])),
        call=signature.call(),
        argument_docs=Block(tuple(signature.docs())),
        result_docs=Block.of(
            f"{signature.output}, [{signature.output_shape()}] in the dtype of {signature.like.name}, and"
            f" the final state,\n[N, {', '.join(signature.state_axes(spec.state[0]))}] in float32, or None."
        ),
        check_arguments=Block.of("\n".join(_checks(operands, signature))),
        first=signature.first,
        reference=f"naive_{'chunk_' if operands.plain else ''}{spec.name}",
        reference_cu_seqlens="cu_seqlens" if operands.plain else "cu_seqlens=cu_seqlens",
        prologue=Block.of("\n".join(_prologue(operands, names))),
        run_chunk=Block.of(_run_chunk(names)),
        epilogue=Block.of("return o, ht if output_final_state else None"),
    )


def _checks(operands: Operands, signature: Signature) -> list[str]:
    if operands.plain:
        return check_arguments("K, V").split("\n")
    alike = ", ".join(f'("{x}", {x})' for x in map(str, (operands.query, operands.key, operands.value)))
    return [*signature.checks(), f"check_alike(op, ({alike}))"]


def _prologue(operands: Operands, names: list[str]) -> list[str]:
    """Statements that bind the canonical names."""
    expressions = [operands.query, operands.key, operands.value]
    expressions += [operands.log_decay] * operands.gated
    expressions += [operands.bonus] * (operands.bonus is not None)
    given = list(map(str, expressions))
    lines = [] if given == names else [f"{', '.join(names)} = {', '.join(given)}"]
    return lines


def _run_chunk(names: list[str]) -> str:
    return (
        f"o, ht, *_ = _chunk({', '.join(names)}, initial_state, cu_seqlens, scale, "
        f"output_final_state, L)"
    )


def check_arguments(state: str | None) -> str:
    """Statements that bind the sizes and check the arguments; `state`: a state's axes, if any."""
    lines = [
        "q, k, v = autocast(q, k, v)",
        'qk, vv = ("B", "T", "H", "K"), ("B", "T", "H", "V")',
        'sizes = check_shapes(op, (("q", q, qk), ("k", k, qk), ("v", v, vv)))',
        'check_alike(op, (("q", q), ("k", k), ("v", v)))',
    ]
    if state:
        lines += [
            'B, T, H, K, V = (sizes[axis] for axis in ("B", "T", "H", "K", "V"))',
            "N = B if cu_seqlens is None else check_cu_seqlens(op, cu_seqlens, B, q.device)",
            "if initial_state is not None:",
            f'    check_state(op, "initial_state", initial_state, (N, H, {state}), q.device)',
            "scale = K**-0.5 if scale is None else float(scale)",
        ]
    else:
        lines += [
            "if cu_seqlens is not None:",
            '    check_cu_seqlens(op, cu_seqlens, sizes["B"], q.device)',
            'scale = sizes["K"] ** -0.5 if scale is None else float(scale)',
        ]
    return "\n".join(lines)
