"""The module of the T x T form as sums over pairs of tokens: kernels, launches, public function."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import output_heads
from flagen.derive.attention import X
from flagen.derive.derivation import Attention
from flagen.diagnostics import InternalError
from flagen.parse.spec import Spec
from flagen.plan.kernel_plan import KernelPlan, ModulePlan
from flagen.render.chunk import alike, joined
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest
from flagen.render.passes import in_order_of_time, prepared, stage_imports
from flagen.render.pointwise import PointwiseText, pointwise_text
from flagen.render.reference import equations, signature_of, summary
from flagen.render.step_text import StepText


@dataclass(frozen=True, slots=True)
class AttentionKernelContext:
    """What the kernel templates may print; without weights their lines are empty."""

    name: str
    scores: Block
    slopes: Block
    load_dn: Block
    add_weights: Block
    store_weights: Block


@dataclass(frozen=True, slots=True)
class AttentionContext:
    """What `module/attention.py.jinja` may print."""

    name: str
    digest: str
    summary: str
    equations: Block
    imports: Block
    kernels: Block
    tiles: Block
    host: Block
    forward_type: str
    forward_doc: str
    make_n: Block
    forward_results: str
    fake_results: str
    typed_gradients: Block
    make_gradients: Block
    gradients: str
    dn: str
    parameters: Block
    scores_doc: Block
    argument_docs: Block
    result: str
    checks: Block
    first: str
    call: str
    body: Block


def attention_context(plan: KernelPlan, module: ModulePlan, tiles: Block) -> AttentionContext:
    """The lines of the module."""
    derivation, attention = plan.derivation, plan.derivation.attention
    if attention is None:
        raise InternalError("sums over pairs are rendered for a recurrence that has none")
    spec, signature = derivation.recurrence.spec, signature_of(derivation)
    prologue, epilogue = (
        pointwise_text(stage) if stage else None
        for stage in (attention.stages.prologue, attention.stages.epilogue)
    )
    stages = [stage for stage in (prologue, epilogue) if stage]
    context = _kernel_context(spec.name, attention)
    texts = [fill(f"kernel/{kernel}.py.jinja", context).strip("\n") for kernel in module.kernels]
    weights = attention.weight is not None
    scale = "scale" if signature.has_scale else "1.0"
    return AttentionContext(
        name=spec.name,
        digest=spec_digest(spec),
        summary=summary(spec),
        equations=Block(tuple(equations(spec))),
        imports=Block(tuple(stage_imports(stages))),
        kernels=joined([stage.kernels for stage in stages], Block.of("\n\n\n".join(texts))),
        tiles=tiles,
        host=joined([stage.host for stage in stages], Block(())),
        forward_type="tuple[torch.Tensor, torch.Tensor]" if weights else "torch.Tensor",
        forward_doc="The sums of values and of weights." if weights else "The sums of values.",
        make_n=Block((f"n = {_N.format('torch.empty')}",) if weights else ()),
        forward_results=f"_sum(q, k, v, cu_seqlens, scale{', n=n), n' if weights else ')'}",
        fake_results="v.new_empty(v.shape)" + f", {_N.format('torch.empty')}" * weights,
        typed_gradients=Block(
            tuple(f"{name}: torch.Tensor | None," for name in ("do", "dn")[: 1 + weights])
        ),
        make_gradients=Block(tuple(_gradients(weights))),
        gradients="do, dn" if weights else "do",
        dn="dn" if weights else "None",
        parameters=Block(tuple([*signature.parameters(), *signature.scale_parameter()])),
        scores_doc=Block(tuple(_scores_doc(attention))),
        argument_docs=Block(tuple([*signature.tensor_docs(), *signature.scale_doc()])),
        result=signature.result_doc(),
        checks=Block((*signature.checks(states=False), *alike(attention.stages, signature))),
        first=signature.first,
        call=signature.call(),
        body=Block(tuple(_body(spec, attention, signature.first, scale, prologue, epilogue))),
    )


_N = "{}(q.shape[:3], dtype=torch.float32, device=q.device)"


def _kernel_context(name: str, attention: Attention) -> AttentionKernelContext:
    weights = attention.weight is not None
    return AttentionKernelContext(
        name=name,
        scores=Block(tuple(StepText(attention.scores).lines())),
        slopes=Block(tuple(StepText(attention.slopes).lines())),
        load_dn=Block.of(_LOAD if weights else ""),
        add_weights=Block.of(_ADD if weights else ""),
        store_weights=Block.of(_STORE if weights else ""),
    )


_LOAD = """\
if REVERSE:
    b_dn = tl.load(dn + r_c + o_t * H, mask=m_s, other=0)[None, :]
else:
    b_dn = tl.load(dn + r_t + o_t * H, mask=m_t, other=0)[:, None]"""
_ADD = """\
if n is not None:
    b_n += tl.sum(tl.where(m_d, b_W, 0.0), 1)"""
_STORE = """\
if n is not None:
    tl.store(n + r_t + o_t * H, b_n, mask=m_t & (i_o == 0))"""


def _gradients(weights: bool) -> list[str]:
    """Statements that put zeros where a sum has no gradient."""
    lines = ["do = torch.zeros_like(v) if do is None else do"]
    if weights:
        lines.append(f"dn = {_N.format('torch.zeros')} if dn is None else dn.contiguous()")
    return lines


def _scores_doc(attention: Attention) -> list[str]:
    """What is summed, in a docstring."""
    (values, *weights), x = attention.results, f"{attention.query}[i] {attention.key}[j]"
    lines = [f"    {values}[i] = sum_j ({attention.score}) {attention.value}[j] for j <= i"]
    lines += [f"    {name}[i] = sum_j ({attention.weight})" for name in weights]
    lines.append(f"    {attention.output}".replace("    ", f"    {X} = {x},   result: ", 1))
    return lines


def _body(
    spec: Spec,
    attention: Attention,
    first: str,
    scale: str,
    prologue: PointwiseText | None,
    epilogue: PointwiseText | None,
) -> list[str]:
    """The statements from checked arguments to the result."""
    output, heads = spec.output[-1].target, output_heads(spec)
    alone = "" if heads else ".unsqueeze(2)"
    q, k, v = (f"{name}{alone}" for name in attention.stages.arguments[0])
    v += "" if attention.axes[1] else ".unsqueeze(-1)"
    results = [str(name) if epilogue else output for name in attention.results]
    lines = in_order_of_time(spec, first, states=False)
    lines += prepared(spec, attention.stages, first, prologue)
    lines.append(f"{', '.join(results)} = _attention({q}, {k}, {v}, cu_seqlens, {scale})")
    back = ("" if heads else ".squeeze(2)") + ("" if attention.axes[1] else ".squeeze(-1)")
    lines += [f"{results[0]} = {results[0]}{back}"] if back else []
    lines += [f"{name} = {name}.squeeze(2)" for name in results[1:] if not heads]
    lines += [epilogue.call] if epilogue else []
    return [*lines, f"return {output}{'.flip(1)' if spec.reverse else ''}, None"]
