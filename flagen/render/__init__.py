"""render: a plan becomes the text of files.

`environment` fills templates, `finish` formats and stamps. What a template may print is a
dataclass: that of `package` for an operator's `__init__.py`, of `reference` for the naive forms, of
`token` for the token level, and for the chunk forms those below, with the lines for a decay from
`decay`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import sympy

from flagen.analyze.normal_form import constant_value
from flagen.analyze.recurrence import Level
from flagen.derive.derivation import Derivation, Operands
from flagen.diagnostics import InternalError
from flagen.parse.expression import unparse
from flagen.parse.spec import Spec
from flagen.plan.kernel_plan import KernelPlan, ModulePlan, Rows, Tile, TileTable
from flagen.plan.scan import ScanModule
from flagen.render.attention import attention_context
from flagen.render.chunk import check_arguments, chunk_context
from flagen.render.decay import LOG2_E, DecayLines, decay_lines
from flagen.render.environment import Block, fill
from flagen.render.finish import GeneratedFile, finish, spec_digest
from flagen.render.package import package_context
from flagen.render.parallel import parallel_context
from flagen.render.printer import TritonPrinter
from flagen.render.reference import equations, reference_context, summary
from flagen.render.scan import scan_context
from flagen.render.step_text import StepText
from flagen.render.token import token_context
from flagen.render.walks import gate_axes, operand_names

__all__ = ["GeneratedFile", "render", "runtime_file"]


@dataclass(frozen=True, slots=True)
class KernelContext:
    """What a kernel template may print."""

    name: str
    decay: DecayLines
    gated: bool
    by_channel: bool
    before: bool
    bonus: bool
    of_gate: bool
    key_backward: Block
    gates: str
    gate_k: str
    gate_v: str
    gate_results: str
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
    digest: str
    summary: str
    equations: Block
    check_arguments_layout: Block


def render(plan: KernelPlan) -> tuple[GeneratedFile, ...]:
    """The files of an operator's folder, formatted and stamped."""
    spec = plan.derivation.recurrence.spec
    return tuple(
        finish(spec, f"{spec.name}/{module.file}", fill(module.template, _context(plan, module)))
        for module in plan.modules
    )


def _context(plan: KernelPlan, module: ModulePlan) -> object:
    """What a module's template may print."""
    if isinstance(module, ScanModule):
        return scan_context(plan.derivation, module)
    match module.template:
        case "module/init.py.jinja":
            return package_context(plan.derivation)
        case "module/naive.py.jinja":
            return reference_context(plan.derivation)
        case "module/token.py.jinja":
            return token_context(plan.derivation, module.kernels)
        case "module/attention.py.jinja":
            return attention_context(plan, module, _tiles_text(module))
        case "module/chunk.py.jinja":
            return chunk_context(plan, *_texts(plan, module))
        case "module/parallel.py.jinja":
            return parallel_context(plan, *_texts(plan, module))
    return _module_context(plan, module)


_RUNTIME = ("settings", "device", "sizes", "launch", "repeat", "tensors", "arguments", "operator")
"""The parts of the file that all operators share."""


def runtime_file() -> GeneratedFile:
    """What all operators share; it depends on no spec."""
    texts = (fill(f"runtime/{part}.py.jinja", _Nothing()).strip("\n") for part in _RUNTIME)
    return finish(None, "_runtime.py", "\n\n\n".join(texts) + "\n")


@dataclass(frozen=True, slots=True)
class _Nothing:
    pass


def _kernel_context(derivation: Derivation, pairs: bool) -> KernelContext:
    """What templates may print, those of the T x T form if `pairs`."""
    spec = derivation.recurrence.spec
    operands, walks = _operands(derivation), derivation.walks
    key = walks.key if walks else None
    log = _constant_log_decay(derivation)
    bonus = operands.bonus is not None
    gates = operand_names(operands)[3:]
    vectors = {axis: f"{gate} + r_t * {axis}" for gate, axis in gate_axes(operands)}
    results = [f"{part}{axis.lower()}, " for axis in vectors for part in "rws"]
    results += [f"m{axis.lower()}, " for axis in vectors if pairs]
    return KernelContext(
        name=spec.name,
        decay=decay_lines(spec.name, operands.level, bonus),
        gated=operands.gated,
        by_channel=operands.by_channel,
        before=not operands.inclusive,
        bonus=bonus,
        of_gate=key is not None,
        key_backward=Block(tuple(StepText(key.backward).lines() if key else ())),
        gates="".join(f"{gate}, " for gate in gates),
        gate_k=vectors.get("K", ""),
        gate_v=vectors.get("V", ""),
        gate_results="".join(results) + "du, " * bonus,
        log2_decay="" if log is None else TritonPrinter().doprint(log),
        decay_formula=str(operands.log_decay) if log is None else _formula(spec),
        log2_e=LOG2_E,
        unbounded="1 << 30",
    )


def _operands(derivation: Derivation) -> Operands:
    if derivation.operands is None:
        raise InternalError("a chunk form is rendered for a recurrence that has none")
    return derivation.operands


def _constant_log_decay(derivation: Derivation) -> sympy.Expr | None:
    """The log decay as an expression of `h` and axis sizes, where it is constant."""
    if _operands(derivation).level is not Level.CONSTANT:
        return None
    values = {
        sympy.Symbol(tensor.name, real=True): constant_value(tensor.value)
        for tensor in derivation.recurrence.spec.inputs
        if tensor.value is not None
    }
    return _operands(derivation).log_decay.subs(values)


def _formula(spec: Spec) -> str:
    return ", ".join(f"{t.name} = {unparse(t.value)}" for t in spec.inputs if t.value is not None)


def _texts(plan: KernelPlan, module: ModulePlan) -> tuple[Block, Block]:
    """The kernels of a module, and its functions that look tiles up."""
    context = _kernel_context(plan.derivation, "parallel" in module.template)
    texts = [fill(f"kernel/{kernel}.py.jinja", context).strip("\n") for kernel in module.kernels]
    kernels = Block.of("\n\n\n".join(text for text in texts if text))
    return kernels, _tiles_text(module)


def _tiles_text(module: ModulePlan) -> Block:
    """The functions of a module that look tiles up."""
    return Block.of("\n\n\n".join(_tile_function(table) for table in module.tiles))


def _module_context(plan: KernelPlan, module: ModulePlan) -> ModuleContext:
    derivation = plan.derivation
    spec = derivation.recurrence.spec
    kernels, tiles = _texts(plan, module)
    return ModuleContext(
        name=spec.name,
        kernels=kernels,
        tiles=tiles,
        digest=spec_digest(spec),
        summary=summary(spec),
        equations=Block.of("\n".join(equations(spec))),
        check_arguments_layout=Block.of(check_arguments("*((V, K) if state_v_first else (K, V))")),
    )


def _tile_function(table: TileTable) -> str:
    """A function that looks the tiles of a kernel up."""
    parameter = ", crowded: bool" if table.crowded else ""
    lines = [
        f"def _{table.kernel}_tiles(",
        f"    contracted: int, columns: int, dtype: torch.dtype{parameter}",
        ") -> tuple[int, ...]:",
        '    """(BT, block of the contracted dimension, block of columns, warps, stages)."""',
        "    if dtype == torch.float32:",
        *(f"        {line}" for line in _fitting(table.single)),
        *(f"    {line}" for line in _fitting(table.half)),
    ]
    return "\n".join(lines)


def _fitting(rows: tuple[Rows, ...]) -> list[str]:
    """Statements that return a tile of the last rows that the GPU has the shared memory for."""
    lines = []
    for each, larger in pairwise(rows):
        lines.append(f"if shared_memory() < {larger.shared} << 10:")
        lines += [f"    {line}" for line in _choose(each.tiles)]
    return lines + _choose(rows[-1].tiles)


def _choose(tiles: tuple[Tile, ...]) -> list[str]:
    """Statements that return the first tile that holds the contracted dimension, or the last."""
    lines = []
    for tile in tiles:
        stages = str(tile.stages)
        if tile.crowded_stages not in (None, tile.stages):
            stages = f"{tile.crowded_stages} if crowded else {tile.stages}"
        least = f", {tile.least}" if tile.least > 16 else ""
        result = (
            f"return {tile.rows}, block(contracted, {tile.block}{least}),"
            f" block(columns, {tile.columns}{least}),"
            f" {tile.warps}, {stages}"
        )
        last = tile is tiles[-1]
        lines += [result] if last else [f"if contracted <= {tile.contracted}:", f"    {result}"]
    return lines
