"""The references in plain torch: every spec step by step, and the chunk form where there is one."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import Level, output_heads, state_heads
from flagen.derive.derivation import Derivation
from flagen.derive.step import axis_order, output_axes
from flagen.parse.expression import unparse
from flagen.parse.spec import Spec, Tensor
from flagen.render.environment import Block
from flagen.render.printer import TorchPrinter
from flagen.render.signature import Signature
from flagen.render.steps import Statements, constant


@dataclass(frozen=True, slots=True)
class ReferenceContext:
    """What `module/naive.py.jinja` may print."""

    name: str
    summary: str
    equations: Block
    imports: Block
    first: str
    like: str
    parameters: Block
    scale_parameter: Block
    state_type: str
    sizes: Block
    default_scale: Block
    constants: Block
    start: Block
    result: str
    reverse: str
    token: Block
    steps: Block
    output: Block
    final: str
    no_output: str
    final_states: str
    reference_form: str
    chunked: bool
    chunk_decay: Block
    chunk_state: str
    attention_decay: Block


def reference_context(derivation: Derivation) -> ReferenceContext:
    """The lines of the references."""
    spec = derivation.recurrence.spec
    signature = signature_of(derivation)
    chunked = derivation.plain
    constant = chunked and derivation.recurrence.states[0].decay.level is Level.CONSTANT
    steps, output = _statements(spec, signature)
    states = [state.name for state in spec.state]
    start = _start(signature)
    empty = signature.like.name
    if signature.output_shape() != ", ".join(("B", *signature.like.axes)):
        empty = f"{empty}.new_empty({signature.output_shape()})"
    scale = signature.default_scale()
    constants = _constants(spec, signature.first)
    lines = [*start, constants, *_token(signature), *steps, *output, *scale, empty]
    sizes = signature.sizes("\n".join(lines))
    if chunked:
        sizes = ["B, T, H, K = q.shape", "V = v.shape[-1]"]
    many = len(states) > 1
    return ReferenceContext(
        name=spec.name,
        summary=summary(spec),
        equations=Block.of("\n".join(equations(spec))),
        imports=Block(("import math", "") if any("math." in line for line in scale) else ()),
        first=signature.first,
        like=signature.like.name,
        parameters=Block(tuple(signature.parameters())),
        scale_parameter=Block(tuple(signature.scale_parameter())),
        state_type=signature.state_type,
        sizes=Block(tuple(sizes)),
        default_scale=Block(tuple(scale)),
        constants=Block.of(constants),
        start=Block(tuple(start)),
        result=signature.output,
        reverse="not reverse" if spec.reverse else "reverse",
        token=Block(tuple(_token(signature))),
        steps=Block(tuple(steps)),
        output=Block(tuple(output)),
        final=_final(signature),
        no_output=empty,
        final_states="tuple(torch.cat(x) for x in zip(*final, strict=True))"
        if many
        else "torch.cat(final)",
        reference_form=f"{derivation.forms[0]}_{spec.name}",
        chunked=chunked,
        chunk_decay=Block.of(_chunk_decay(derivation) if chunked else ""),
        chunk_state="G_end.exp() * S + " if constant else "S + ",
        attention_decay=Block.of(_attention_decay(derivation) if chunked else ""),
    )


def signature_of(derivation: Derivation) -> Signature:
    """The signature of an operator's functions."""
    spec = derivation.recurrence.spec
    axes = output_axes(derivation.token.step, spec.output[-1].target)
    return Signature(derivation.recurrence, axes)


def summary(spec: Spec) -> str:
    """One line about the operator."""
    return (spec.doc.strip().splitlines() or [spec.name])[0]


def equations(spec: Spec) -> list[str]:
    """The spec's statements with what its constants are, for docstrings."""
    lines = [f"    {statement.text}" for statement in (*spec.update, *spec.output)]
    lines += [f"    {t.name} = {unparse(t.value)}" for t in spec.inputs if t.value is not None]
    return (
        lines
        + ["", "from the last token to the first: initial states are those after the last."]
        * spec.reverse
    )


def _statements(spec: Spec, signature: Signature) -> tuple[list[str], list[str]]:
    """The update of a step, and the lines that make and keep its output."""
    statements = Statements(spec)
    steps = [statements.assign(s.target, s.value) for s in spec.update]
    reads = [statements.assign(s.target, s.value) for s in spec.output[:-1]]
    text = statements.text(spec.output[-1].value)
    wanted = tuple(
        axis for axis in statements.order if axis in signature.output_shape().split(", ")
    )
    code = statements.over(text, wanted, ", ".join(["size", *wanted])).code
    before = [f"{name}_before = {name}" for name in statements.before]
    return [*before, *steps], [*reads, f"{signature.output}.append({code})"]


def _start(signature: Signature) -> list[str]:
    """The states before the first token, with the heads of the output."""
    spec, first = signature.spec, signature.first
    lines = []
    for state in spec.state:
        shape = ", ".join(["size", *signature.state_axes(state)])
        lines.append(f"{state.name} = torch.zeros({shape}, dtype=dtype, device={first}.device)")
    lines.append("if initial_state is not None:")
    if len(spec.state) == 1:
        given = "(initial_state if cu_seqlens is None else initial_state[i_n : i_n + 1]).to(dtype)"
        lines.append(f"    {spec.state[0].name} = {given}")
    else:
        names = ", ".join(state.name for state in spec.state)
        given = "(y if cu_seqlens is None else y[i_n : i_n + 1]).to(dtype) for y in initial_state"
        lines.append(f"    {names} = ({given})")
    group = _group(signature)
    for state in spec.state:
        if group and state_heads(spec):
            lines.append(f"{state.name} = {state.name}.repeat_interleave({group}, 1)")
        elif group:
            lines.append(
                f"{state.name} = {state.name}[:, None].expand(-1, {group}, {_ones(state.axes)})"
            )
    return lines + [f"{name} = {name}.transpose(-1, -2)" for name in _transposed(signature)]


def _transposed(signature: Signature) -> list[str]:
    """The states whose axes are in another order in memory than in the statements."""
    order = axis_order(signature.spec)
    names = []
    for state in signature.spec.state:
        if list(state.axes) != sorted(state.axes, key=order.index):
            names.append(state.name)
    return names


def _ones(axes: tuple[str, ...]) -> str:
    return ", ".join("-1" for _ in axes)


def _group(signature: Signature) -> str:
    """How many heads of the output share a state, where that is more than one."""
    fine, coarse = output_heads(signature.spec), state_heads(signature.spec)
    if fine == coarse:
        return ""
    return f"{fine[0]} // {coarse[0]}" if coarse else fine[0]


def _final(signature: Signature) -> str:
    """The states after the last token: one per group of heads."""
    group, states = _group(signature), []
    for state in signature.spec.state:
        index = f"[:, :: {group}]" if group and state_heads(signature.spec) else "[:, 0]"
        back = ".transpose(-1, -2)" if state.name in _transposed(signature) else ""
        states.append(f"{state.name}{index if group else ''}{back}")
    return states[0] if len(states) == 1 else f"({', '.join(states)})"


def _token(signature: Signature) -> list[str]:
    """The inputs of a token, with the output's heads; inputs that are alike in one statement."""
    kinds: dict[str, list[str]] = {}
    for tensor in signature.tensors:
        if "T" in tensor.axes:
            kinds.setdefault(_slice(signature, tensor), []).append(tensor.name)
    lines = []
    for code, names in kinds.items():
        if len(names) == 1:
            lines.append(f"{names[0]}_t = {code.format(names[0])}")
        else:
            each = "y" if "x" in signature.names else "x"
            targets = ", ".join(f"{name}_t" for name in names)
            lines.append(f"{targets} = ({code.format(each)} for {each} in ({', '.join(names)}))")
    return lines


def _slice(signature: Signature, tensor: Tensor) -> str:
    code = "{}[rows, t].to(dtype)"
    heads = output_heads(signature.spec)
    own = tuple(axis for axis in tensor.axes if axis in ("H", "HV", "HQ", "G"))
    if own == heads:
        return code
    if own:
        return f"{code}.repeat_interleave({heads[0]} // {own[0]}, 1)"
    return (
        f"{code}[:, None].expand({', '.join(['-1', heads[0], *('-1' for _ in tensor.axes[1:])])})"
    )


def _constants(spec: Spec, first: str) -> str:
    """The constants of the spec as tensors, evaluated in float64, and parameters with all heads."""
    taken = {tensor.name for tensor in spec.inputs}
    lines = []
    for tensor in spec.inputs:
        if tensor.value is not None:
            lines += constant(tensor, taken, f"{first}.device")
    return "\n".join(lines + _fixed(spec))


def _fixed(spec: Spec) -> list[str]:
    heads = output_heads(spec)
    lines = []
    for tensor in spec.inputs:
        own = tuple(axis for axis in tensor.axes if axis in ("H", "HV", "HQ", "G"))
        name = tensor.name
        cast = ".to(dtype)" if tensor.value is None else ""
        if "T" in tensor.axes:
            continue
        group = f".repeat_interleave({heads[0]} // {own[0]}, 0)" if own and own != heads else ""
        if cast or group:
            lines.append(f"{name} = {name}{cast}{group}")
    return lines


def _chunk_decay(derivation: Derivation) -> str:
    """G of a chunk, [H, C, 1], and D, for the chunked reference."""
    g = _constant_log_decay(derivation)
    if g:
        return f"{_COUNT.format('end - start')}\nG = (i + 1)[:, None] * {g}\n{_D}"
    return (
        "G = torch.zeros(H, end - start, 1, dtype=dtype, device=q.device)\n"
        "D = torch.ones(end - start, end - start, dtype=dtype, device=q.device).tril()"
    )


def _attention_decay(derivation: Derivation) -> str:
    """D of a whole sequence, for the attention matrix."""
    g = _constant_log_decay(derivation)
    if g:
        return f"{_COUNT.format('eos - bos')}\nG = i[:, None] * {g}\n{_D}"
    return "D = torch.ones(eos - bos, eos - bos, dtype=dtype, device=q.device).tril()"


_COUNT = "i = torch.arange({}, dtype=dtype, device=q.device)"
_D = "D = (G - G.transpose(-1, -2)).clamp(max=0).exp().tril()"


def _constant_log_decay(derivation: Derivation) -> str:
    """The log decay as text that broadcasts over [H, C, 1]; empty where there is none."""
    if derivation.recurrence.states[0].decay.level is not Level.CONSTANT or not derivation.operands:
        return ""
    g = TorchPrinter().doprint(derivation.operands.log_decay)
    return f"{g if g.isidentifier() else f'({g})'}[:, None, None]"
