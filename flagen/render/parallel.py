"""What `module/parallel.py.jinja` may print: the T x T form from kernels to the public function."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import Level
from flagen.derive.derivation import Operands, Walks
from flagen.diagnostics import InternalError
from flagen.plan.kernel_plan import KernelPlan
from flagen.render.chunk import argument_checks, joined
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest
from flagen.render.passes import Body, stage_imports
from flagen.render.pointwise import pointwise_text
from flagen.render.reference import equations, signature_of, summary
from flagen.render.walks import gate_axes, gate_parts, operand_names


@dataclass(frozen=True, slots=True)
class ParallelContext:
    """What the template may print. `plain` is that of `Walks`."""

    name: str
    plain: bool
    imports: Block
    kernels: Block
    tiles: Block
    host: Block
    summary: str
    formula: Block
    parameters: Block
    call: str
    argument_docs: Block
    result_doc: str
    check_arguments: Block
    first: str
    reference: str
    references: str
    body: Block


@dataclass(frozen=True, slots=True)
class ParallelHostContext:
    """What the templates of the host side may print."""

    name: str
    digest: str
    by_channel: bool
    parameters: Block
    operands: str
    dtypes: str
    gradients: str
    gradient_types: str
    make_gate_results: Block
    gate_results: str
    gate_gradients: str
    pairs: str
    kept: bool
    empty_gradients: str
    positions: str


def parallel_context(plan: KernelPlan, kernels: Block, tiles: Block) -> ParallelContext:
    """The lines of the T x T form."""
    derivation, walks = plan.derivation, plan.derivation.walks
    if walks is None:
        raise InternalError("a T x T form is rendered for a recurrence that has none")
    spec, signature = derivation.recurrence.spec, signature_of(derivation)
    prologue, epilogue = (
        pointwise_text(stage) if stage else None
        for stage in (walks.stages.prologue, walks.stages.epilogue)
    )
    stages = [stage for stage in (prologue, epilogue) if stage]
    reference = f"naive_{'chunk_' if walks.plain else ''}{spec.name}"
    attention = [f"naive_attention_{spec.name}"] if walks.plain else []
    body = Body(spec, walks, prologue, epilogue).lines_without_states(signature.first)
    output = f"{signature.output}{'.flip(1)' if spec.reverse else ''}"
    return ParallelContext(
        name=spec.name,
        plain=walks.plain,
        imports=Block(tuple(stage_imports(stages))),
        kernels=joined([stage.kernels for stage in stages], kernels),
        tiles=tiles,
        host=joined([stage.host for stage in stages], _host(plan, walks.passes[0].operands)),
        summary=summary(spec),
        formula=_formula(walks) if walks.plain else Block.of("\n".join(equations(spec))),
        parameters=Block(tuple([*signature.parameters(), *signature.scale_parameter()])),
        call=signature.call(),
        argument_docs=Block(tuple([*signature.tensor_docs(), *signature.scale_doc()])),
        result_doc=signature.result_doc(),
        check_arguments=Block(tuple(argument_checks(walks, signature, states=False))),
        first=signature.first,
        reference=reference,
        references=", ".join([*attention, reference]),
        body=Block((*body, f"return {output}, {'attention' if walks.plain else None}")),
    )


def _formula(walks: Walks) -> Block:
    factor = "decay^(i - j) " if walks.passes[0].operands.level is Level.CONSTANT else ""
    return Block.of(
        f"    o = A v with A[i, j] = scale {factor}(q[i] k[j]) for j <= i, and 0 elsewhere"
    )


def _host(plan: KernelPlan, operands: Operands) -> Block:
    """The functions on canonical operands: `_parallel`, and what it launches."""
    spec, names = plan.derivation.recurrence.spec, operand_names(operands)
    made = gate_parts(operands, "blocks")
    gradients = dict.fromkeys(names, "_gate((p,), m, g, cu_seqlens, BT)")
    for gate, axis in gate_axes(operands):
        a = axis.lower()
        made.append(f"m{a} = _pairs({gate}, {'NV' if axis == 'K' else 'NK'}, cu_seqlens, BT)")
        gradients[gate] = f"_gate((r{a}, w{a}, s{a}), m{a}, {gate}, cu_seqlens, BT)"
    if operands.bonus is not None:
        gradients["u"] = "du.sum((0, 1))"
        made.append("du = torch.zeros(NV, blocks, H, K, dtype=torch.float32, device=u.device)")
    context = ParallelHostContext(
        name=spec.name,
        digest=spec_digest(spec),
        by_channel=operands.by_channel,
        parameters=Block(tuple(f"{name}: torch.Tensor," for name in names)),
        operands=", ".join(names),
        dtypes=f"({', '.join(f'{name}.dtype' for name in names)})",
        gradients=", ".join(f"d{name}" for name in names),
        gradient_types=", ".join(["torch.Tensor"] * len(names)),
        make_gate_results=Block(tuple(made)),
        gate_results="".join(f"{line.split()[0]}, " for line in made),
        gate_gradients=", ".join(gradients[name] for name in names[3:]),
        pairs=f"m{'k' if operands.summed else 'v'}.shape[1]",
        kept=operands.kept,
        empty_gradients=", ".join(f"{name}.new_empty({name}.shape)" for name in names),
        positions=", ".join(map(str, range(len(names)))),
    )
    gated = "_gated" if operands.gated else ""
    return Block.of(fill(f"host/parallel{gated}.py.jinja", context))
