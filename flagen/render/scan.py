"""The module of an elementwise scan's chunk forms: kernels, tiles, launches, public functions."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.derive.derivation import Derivation
from flagen.derive.scan import Scan
from flagen.parse.spec import Spec
from flagen.plan.scan import LEAST_SEGMENT, PARTS, ROWS, ScanModule, ScanTile
from flagen.render.decay import LOG2_E
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest
from flagen.render.passes import (
    from_heads,
    given_state,
    in_order_of_time,
    prepared,
    results_in_order,
    stage_imports,
    to_heads,
)
from flagen.render.pointwise import PointwiseText, pointwise_text
from flagen.render.reference import equations, signature_of, summary


@dataclass(frozen=True, slots=True)
class ScanKernelContext:
    """What a kernel template may print."""

    name: str
    log2_e: str
    before: bool


@dataclass(frozen=True, slots=True)
class ScanModuleContext:
    """What `module/scan.py.jinja` may print."""

    name: str
    digest: str
    summary: str
    equations: Block
    kernels: Block
    tiles: Block
    rows: int
    parts: int
    channels: int
    least_segment: int
    imports: Block
    host: Block
    before: bool
    state_type: str
    parameters: Block
    run_parameters: Block
    call: str
    argument_docs: Block
    result: str
    checks: Block
    first: str
    body: Block


def scan_context(derivation: Derivation, module: ScanModule) -> ScanModuleContext:
    """The lines of the module."""
    spec, scan, signature = derivation.recurrence.spec, derivation.scan, signature_of(derivation)
    assert scan is not None
    stages = [
        pointwise_text(stage) if stage else None
        for stage in (scan.stages.prologue, scan.stages.epilogue)
    ]
    made = [stage for stage in stages if stage]
    context = ScanKernelContext(spec.name, LOG2_E, scan.before)
    texts = ["\n".join(stage.kernels.lines) for stage in made]
    texts += [fill(f"kernel/{kernel}.py.jinja", context).strip("\n") for kernel in module.kernels]
    scale = ["scale: float | None,"] * signature.has_scale
    tiles = [
        _tiles(*each, module.crowded if each[0] == "fwd" else None) for each in module.scan_tiles
    ]
    (_, forward, _), *_ = module.scan_tiles
    return ScanModuleContext(
        name=spec.name,
        digest=spec_digest(spec),
        summary=summary(spec),
        equations=Block(tuple(equations(spec))),
        kernels=Block.of("\n\n\n".join(texts)),
        tiles=Block.of("\n\n\n".join(tiles)),
        rows=ROWS,
        parts=PARTS,
        channels=forward.channels,
        least_segment=LEAST_SEGMENT,
        before=scan.before,
        imports=Block(tuple(stage_imports(made))),
        host=Block.of("\n\n\n".join("\n".join(stage.host.lines) for stage in made)),
        state_type=signature.state_type,
        parameters=Block(tuple([*signature.parameters(), *signature.scale_parameter()])),
        run_parameters=Block(tuple([*signature.parameters(), *scale])),
        call=signature.call(),
        argument_docs=Block(tuple(signature.docs())),
        result=signature.result_doc(),
        checks=Block(tuple(signature.checks())),
        first=signature.first,
        body=Block(tuple(_body(spec, scan, signature.first, *stages))),
    )


def _body(
    spec: Spec,
    scan: Scan,
    first: str,
    prologue: PointwiseText | None,
    epilogue: PointwiseText | None,
) -> list[str]:
    """The statements from checked arguments to the results."""
    lines = [*in_order_of_time(spec, first), *prepared(spec, scan.stages, first, prologue)]
    final: dict[str, str] = {}
    alone, output = len(spec.state) == 1, spec.output[-1].target
    spread = to_heads(spec, "-1")
    for (x, g), read in zip(scan.stages.arguments, scan.reads, strict=True):
        given = given_state(spec, read.state)
        taken, again = f"{read.state}_in" if spread else given, read.state in final
        if spread and not again:
            lines.append(f"{taken} = None if {given} is None else {given}{spread}")
        last = "ht" if alone else f"{read.state}_out"
        result = str(read.result) if epilogue else output
        left = f"{result}, *_" if again else f"{result}, {last}, _"
        options = ["cu_seqlens", "False" if again else "output_final_state", "L"]
        options += [str(read.before)] * scan.before
        lines.append(f"{left} = _chunk({x}, {g}, {taken}, {', '.join(options)})")
        final.setdefault(read.state, last + from_heads(spec))
    lines += [epilogue.call] if epilogue else []
    return [
        *lines,
        *results_in_order(spec, {state.name: final[state.name] for state in spec.state}),
    ]


def _tiles(kernel: str, half: ScanTile, single: ScanTile, crowded: ScanTile | None = None) -> str:
    """A function that looks the tiles of a kernel up."""

    def tile(each: ScanTile) -> str:
        sizes = f"{each.groups}, {each.tokens // each.groups}, block(channels, {each.channels})"
        return f"{sizes}, {each.warps}, {each.stages}"

    last = ", crowded: bool" if crowded else ""
    lines = [
        f"def _{kernel}_tiles(channels: int, dtype: torch.dtype{last}) -> tuple[int, ...]:",
        '    """(groups, tokens of a group, block of channels, warps, stages)."""',
        "    if dtype == torch.float32:",
        f"        return {tile(single)}",
    ]
    if crowded:
        lines += ["    if crowded:", f"        return {tile(crowded)}"]
    return "\n".join([*lines, f"    return {tile(half)}"])
