"""The module of an elementwise scan's chunk forms: kernels, tiles, launches, public functions."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.derive.derivation import Derivation
from flagen.plan.scan import LEAST_SEGMENT, PARTS, ROWS, ScanModule, ScanTile
from flagen.render.decay import LOG2_E
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest
from flagen.render.reference import equations, signature_of, summary


@dataclass(frozen=True, slots=True)
class ScanKernelContext:
    """What a kernel template may print."""

    name: str
    log2_e: str


@dataclass(frozen=True, slots=True)
class ScanModuleContext:
    """What `module/scan.py.jinja` may print.

    `axes` are those of the state, as sizes; `size` is their product, the number of channels.
    """

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
    sizes: str
    axes: str
    size: str
    parameters: Block
    names: str
    injection: str
    log_decay: str
    argument_docs: Block
    output: str
    output_shape: str
    checks: Block


def scan_context(derivation: Derivation, module: ScanModule) -> ScanModuleContext:
    """The lines of the module."""
    spec, scan, signature = derivation.recurrence.spec, derivation.scan, signature_of(derivation)
    assert scan is not None
    context = ScanKernelContext(spec.name, LOG2_E)
    texts = [fill(f"kernel/{kernel}.py.jinja", context).strip("\n") for kernel in module.kernels]
    (_, forward, _), *_ = module.scan_tiles
    return ScanModuleContext(
        name=spec.name,
        digest=spec_digest(spec),
        summary=summary(spec),
        equations=Block(tuple(equations(spec))),
        kernels=Block.of("\n\n\n".join(texts)),
        tiles=Block.of("\n\n\n".join(_tiles(*each) for each in module.scan_tiles)),
        rows=ROWS,
        parts=PARTS,
        channels=forward.channels,
        least_segment=LEAST_SEGMENT,
        sizes=f"B, T, {', '.join(scan.axes)} = x.shape",
        axes=", ".join(scan.axes),
        size=" * ".join(scan.axes),
        parameters=Block(tuple(signature.parameters())),
        names=", ".join(signature.names),
        injection=scan.injection,
        log_decay=scan.log_decay,
        argument_docs=Block(tuple(signature.docs())),
        output=signature.output,
        output_shape=signature.output_shape(),
        checks=Block(tuple(signature.checks())),
    )


def _tiles(kernel: str, half: ScanTile, single: ScanTile) -> str:
    """A function that looks the tiles of a kernel up."""

    def tile(each: ScanTile) -> str:
        return f"{each.groups}, block(channels, {each.channels}), {each.warps}, {each.stages}"

    lines = [
        f"def _{kernel}_tiles(channels: int, dtype: torch.dtype) -> tuple[int, ...]:",
        '    """(groups of tokens, block of channels, warps, stages)."""',
    ]
    if half != single:
        lines += ["    if dtype == torch.float32:", f"        return {tile(single)}"]
    return "\n".join([*lines, f"    return {tile(half)}"])
