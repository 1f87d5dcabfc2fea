"""What `module/chunk.py.jinja` may print: the chunk forms between kernels and public functions."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.derive.derivation import Walks
from flagen.derive.stages import Stages
from flagen.diagnostics import InternalError
from flagen.plan.kernel_plan import KernelPlan
from flagen.render.environment import Block
from flagen.render.passes import Body, helper_imports, stage_imports
from flagen.render.pointwise import pointwise_text
from flagen.render.reference import equations, signature_of, summary
from flagen.render.signature import Signature
from flagen.render.walks import walks_text


@dataclass(frozen=True, slots=True)
class ChunkContext:
    """What the template may print."""

    name: str
    fused: bool
    imports: Block
    kernels: Block
    tiles: Block
    host: Block
    summary: str
    equations: Block
    parameters: Block
    run_parameters: Block
    state_type: str
    call: str
    argument_docs: Block
    result_docs: Block
    check_arguments: Block
    first: str
    reference: str
    reference_cu_seqlens: str
    body: Block


def chunk_context(plan: KernelPlan, kernels: Block, tiles: Block) -> ChunkContext:
    """The lines of the chunk forms."""
    derivation, walks = plan.derivation, plan.derivation.walks
    if walks is None:
        raise InternalError("a chunk form is rendered for a recurrence that has none")
    spec, signature = derivation.recurrence.spec, signature_of(derivation)
    scale = ["scale: float | None,"] * signature.has_scale
    prologue, epilogue = (
        pointwise_text(stage) if stage else None
        for stage in (walks.stages.prologue, walks.stages.epilogue)
    )
    stages = [stage for stage in (prologue, epilogue) if stage]
    host = walks_text(plan, walks.passes[0].operands, walks.key is not None)
    return ChunkContext(
        name=spec.name,
        fused=not walks.passes[0].operands.kept,
        imports=Block((*stage_imports(stages), *helper_imports(kernels))),
        kernels=joined([stage.kernels for stage in stages], kernels),
        tiles=tiles,
        host=joined([stage.host for stage in stages], host),
        summary=summary(spec),
        equations=Block.of("\n".join(equations(spec))),
        parameters=Block(tuple([*signature.parameters(), *signature.scale_parameter()])),
        run_parameters=Block(tuple([*signature.parameters(), *scale])),
        state_type=signature.state_type,
        call=signature.call(),
        argument_docs=Block(tuple(signature.docs())),
        result_docs=Block(tuple(_result_docs(signature))),
        check_arguments=Block(tuple(argument_checks(walks, signature, states=True))),
        first=signature.first,
        reference=f"naive_{'chunk_' if walks.plain else ''}{spec.name}",
        reference_cu_seqlens="cu_seqlens" if walks.plain else "cu_seqlens=cu_seqlens",
        body=Block(tuple(Body(spec, walks, prologue, epilogue).lines(signature.first))),
    )


def joined(texts: list[Block], last: Block) -> Block:
    """Texts with two blank lines between them."""
    lines: list[str] = []
    for text in texts:
        lines += [*text.lines, "", ""]
    return Block((*lines, *last.lines))


def _result_docs(signature: Signature) -> list[str]:
    states = [f"[N, {', '.join(signature.state_axes(state))}]" for state in signature.spec.state]
    output = (
        f"{signature.output}, [{signature.output_shape()}] in the dtype of {signature.like.name}"
    )
    if len(states) == 1:
        return [f"{output}, and the final state,", f"{states[0]} in float32, or None."]
    return [f"{output}, and the final states,", f"({', '.join(states)}) in float32, or None."]


def argument_checks(walks: Walks, signature: Signature, states: bool) -> list[str]:
    """Statements that check the arguments, with or without states, and bind what the body needs."""
    if walks.plain:
        return check_arguments("K, V" if states else None).split("\n")
    return [*signature.checks(states), *alike(walks.stages, signature)]


def alike(stages: Stages, signature: Signature) -> list[str]:
    """The statement that checks that operands have one dtype, if there are several."""
    gates = (*signature.gates, *(name for each in stages.arguments for name in each[3:]))
    operands = [name for name in stages.inputs if name in signature.names]
    names = dict.fromkeys([*(name for name in operands if name not in gates), signature.like.name])
    pairs = ", ".join(f'("{name}", {name})' for name in names)
    return [f"check_alike(op, ({pairs}))"] if len(names) > 1 else []


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
