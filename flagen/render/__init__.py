"""render: a plan becomes the text of files.

`environment` fills templates, `decay` and `steps` write the lines that depend on the mathematics,
`finish` formats and stamps. Templates see only the dataclasses below.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from flagen.analyze.normal_form import constant_value
from flagen.analyze.recurrence import Level
from flagen.derive.derivation import Derivation
from flagen.parse.expression import unparse
from flagen.parse.spec import Spec
from flagen.plan.kernel_plan import KernelPlan, ModulePlan, Tile, TileTable
from flagen.render.decay import DecayLines, decay_lines
from flagen.render.environment import Block, fill
from flagen.render.finish import GeneratedFile, finish, spec_digest
from flagen.render.printer import TorchPrinter, TritonPrinter
from flagen.render.steps import Statements

__all__ = ["GeneratedFile", "render", "runtime_file"]

LOG2_E = "1.4426950408889634"


@dataclass(frozen=True, slots=True)
class KernelContext:
    """What a kernel template may print."""

    name: str
    decay: DecayLines
    log2_decay: str
    decay_formula: str
    log2_e: str
    unbounded: str


@dataclass(frozen=True, slots=True)
class ModuleContext:
    """What a module template may print."""

    name: str
    kernels: Block
    tiles: Block
    least_segment: int
    digest: str
    summary: str
    equations: Block
    attention: Block
    check_arguments: Block
    check_arguments_stateless: Block
    check_arguments_layout: Block
    imports: Block
    exports: str
    reference_form: str
    pick: Block
    constants: Block
    token: Block
    steps: Block
    output: Block
    chunk_decay: Block
    chunk_state: str
    attention_decay: Block


def render(plan: KernelPlan) -> tuple[GeneratedFile, ...]:
    """The files of an operator's folder, formatted and stamped."""
    spec = plan.derivation.recurrence.spec
    return tuple(
        finish(spec, f"{spec.name}/{module.file}", fill(module.template, _module_context(plan, module)))
        for module in plan.modules
    )


def runtime_file() -> GeneratedFile:
    """What all operators share; it depends on no spec."""
    return finish(None, "_runtime.py", fill("runtime.py.jinja", _Nothing()))


@dataclass(frozen=True, slots=True)
class _Nothing:
    pass


def _kernel_context(derivation: Derivation) -> KernelContext:
    spec = derivation.recurrence.spec
    (state,) = derivation.recurrence.states
    log = _constant_log_decay(derivation)
    return KernelContext(
        name=spec.name,
        decay=decay_lines(spec.name, state.decay.level),
        log2_decay="" if log is None else TritonPrinter().doprint(log),
        decay_formula=str(derivation.operands.log_decay) if log is None else _formula(spec),
        log2_e=LOG2_E,
        unbounded="1 << 30",
    )


def _constant_log_decay(derivation: Derivation) -> sympy.Expr | None:
    """The log decay as an expression of `h` and axis sizes, where it is constant."""
    if derivation.recurrence.states[0].decay.level is not Level.CONSTANT:
        return None
    values = {
        sympy.Symbol(tensor.name, real=True): constant_value(tensor.value)
        for tensor in derivation.recurrence.spec.inputs
        if tensor.value is not None
    }
    return derivation.operands.log_decay.subs(values)


def _formula(spec: Spec) -> str:
    return ", ".join(f"{t.name} = {unparse(t.value)}" for t in spec.inputs if t.value is not None)


def _module_context(plan: KernelPlan, module: ModulePlan) -> ModuleContext:
    derivation = plan.derivation
    spec = derivation.recurrence.spec
    kernel_context = _kernel_context(derivation)
    texts = [fill(f"kernel/{kernel}.py.jinja", kernel_context).strip("\n") for kernel in module.kernels]
    statements = Statements(spec)
    steps = [statements.assign(s.target, s.value) for s in spec.update]
    reads = [statements.assign(s.target, s.value) for s in spec.output[:-1]]
    result = statements.text(spec.output[-1].value).code
    constant = derivation.recurrence.states[0].decay.level is Level.CONSTANT
    tensors = [t.name for t in spec.inputs if "T" in t.axes]
    return ModuleContext(
        name=spec.name,
        kernels=Block.of("\n\n\n".join(text for text in texts if text)),
        tiles=Block.of("\n\n\n".join(_tile_function(table) for table in module.tiles)),
        least_segment=plan.least_segment,
        digest=spec_digest(spec),
        summary=(spec.doc.strip().splitlines() or [spec.name])[0],
        equations=Block.of("\n".join(_equations(spec))),
        attention=Block.of(_attention(constant)),
        check_arguments=Block.of(_check_arguments("K, V")),
        check_arguments_stateless=Block.of(_check_arguments(None)),
        check_arguments_layout=Block.of(_check_arguments("*((V, K) if state_v_first else (K, V))")),
        imports=Block.of(_imports(spec.name, derivation.forms)),
        exports=repr(_exports(spec.name, derivation.forms)).replace("'", '"'),
        reference_form=f"{derivation.forms[0]}_{spec.name}",
        pick=Block.of(_pick(spec.name, derivation.forms)),
        constants=Block.of(_constants(spec)),
        token=Block.of(f"{', '.join(f'{n}_t' for n in tensors)} = (x[rows, t].to(dtype) for x in ({', '.join(tensors)}))"),
        steps=Block.of("\n".join(steps)),
        output=Block.of("\n".join([*reads, f"o.append({result})"])),
        chunk_decay=Block.of(_chunk_decay(derivation)),
        chunk_state="G_end.exp() * S + " if constant else "S + ",
        attention_decay=Block.of(_attention_decay(derivation)),
    )


def _equations(spec: Spec) -> list[str]:
    """The spec's statements with what its constants are, for docstrings."""
    lines = [f"    {statement.text}" for statement in (*spec.update, *spec.output)]
    lines += [f"    {t.name} = {unparse(t.value)}" for t in spec.inputs if t.value is not None]
    return lines


def _attention(constant: bool) -> str:
    factor = "decay^(i - j) " if constant else ""
    return f"    o = A v with A[i, j] = scale {factor}(q[i] k[j]) for j <= i, and 0 elsewhere"


def _tile_function(table: TileTable) -> str:
    """A function that looks the tiles of a kernel up."""
    crowded = any(tile.crowded_stages for tile in (*table.half, *table.single))
    parameter = ", crowded: bool" if crowded else ""
    lines = [
        f"def _{table.kernel}_tiles(contracted: int, columns: int, dtype: torch.dtype{parameter}) -> tuple[int, ...]:",
        '    """(BT, block of the contracted dimension, block of columns, warps, stages)."""',
        "    if dtype == torch.float32:",
        *(f"        {line}" for line in _choose(table.single)),
        *(f"    {line}" for line in _choose(table.half)),
    ]
    return "\n".join(lines)


def _choose(tiles: tuple[Tile, ...]) -> list[str]:
    """Statements that return the first tile that holds the contracted dimension, or the last."""
    lines = []
    for tile in tiles:
        stages = str(tile.stages)
        if tile.crowded_stages is not None:
            stages = f"{tile.crowded_stages} if crowded else {tile.stages}"
        result = (
            f"return {tile.rows}, block(contracted, {tile.block}), block(columns, {tile.columns}),"
            f" {tile.warps}, {stages}"
        )
        last = tile is tiles[-1]
        lines += [result] if last else [f"if contracted <= {tile.contracted}:", f"    {result}"]
    return lines


def _check_arguments(state: str | None) -> str:
    """Statements that bind the sizes and raise for wrong arguments; `state`: a state's axes, if any."""
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


_FILES = {"chunk": "chunk", "fused_chunk": "chunk", "fused_recurrent": "fused_recurrent", "parallel": "parallel"}


def _imports(name: str, forms: tuple[str, ...]) -> str:
    found: dict[str, list[str]] = {}
    for form in forms:
        found.setdefault(_FILES[form], []).append(f"{form}_{name}")
    lines = [f"from .{file} import {', '.join(sorted(names))}" for file, names in sorted(found.items())]
    return "\n".join(sorted([*lines, f"from .naive import naive_chunk_{name}, naive_{name}"]))


def _exports(name: str, forms: tuple[str, ...]) -> list[str]:
    return sorted([*(f"{form}_{name}" for form in forms), f"naive_{name}", f"naive_chunk_{name}", name])


def _pick(name: str, forms: tuple[str, ...]) -> str:
    """The body of the function without a prefix."""
    arguments = "(q, k, v, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)"
    chunked = next((form for form in ("chunk", "fused_chunk") if form in forms), None)
    if chunked and "fused_recurrent" in forms:
        return (
            f"if q.dim() == 4 and q.shape[1] <= 16:\n    return fused_recurrent_{name}{arguments}\n"
            f"return {chunked}_{name}{arguments}"
        )
    return f"return {chunked or forms[0]}_{name}{arguments}"


def _constants(spec: Spec) -> str:
    """The constants of the spec as tensors, evaluated in float64."""
    lines = []
    for tensor in spec.inputs:
        if tensor.value is None:
            continue
        (axis,) = tensor.axes
        code = TorchPrinter().doprint(constant_value(tensor.value))
        lines += [
            f"{axis.lower()} = torch.arange({axis}, dtype=torch.float64, device=q.device)",
            f"{tensor.name} = ({code}).to(dtype)" if not code.startswith("torch.") else f"{tensor.name} = {code}.to(dtype)",
        ]
    return "\n".join(lines)


def _chunk_decay(derivation: Derivation) -> str:
    """G, G_end and D of a chunk, for the chunked reference."""
    lines = ["i = torch.arange(end - start, dtype=dtype, device=q.device)"]
    if derivation.recurrence.states[0].decay.level is Level.CONSTANT:
        g = TorchPrinter().doprint(derivation.operands.log_decay)
        g = g if g.isidentifier() else f"({g})"
        return "\n".join(
            [
                *lines,
                f"G = (i + 1)[:, None] * {g}[:, None, None]",
                "G_end = G[:, -1:]",
                "D = (G - G.transpose(-1, -2)).clamp(max=0).exp().tril()",
            ]
        )
    return "\n".join(
        [
            "n = end - start",
            "G = torch.zeros(H, n, 1, dtype=dtype, device=q.device)",
            "G_end = G[:, -1:]",
            "D = torch.ones(n, n, dtype=dtype, device=q.device).tril()",
        ]
    )


def _attention_decay(derivation: Derivation) -> str:
    """D of a whole sequence, for the attention matrix."""
    return _chunk_decay(derivation).replace("end - start", "eos - bos")
