"""The lines of the kernels of a pointwise stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from flagen.derive.pointwise import Axes
from flagen.render.environment import Block
from flagen.render.pointwise_layout import PointwiseLayout
from flagen.render.step_text import StepText


@dataclass(frozen=True, slots=True)
class PointwiseKernelContext:
    """What the templates of a pointwise stage's kernels may print."""

    name: str
    stage: str
    scalars: str
    constants: str
    row: str
    place: Block
    forward_arguments: str
    forward_starts: Block
    forward_loads: Block
    forward: Block
    forward_stores: Block
    backward_arguments: str
    backward_starts: Block
    backward_loads: Block
    backward: Block
    backward_stores: Block


def kernel_context(layout: PointwiseLayout) -> PointwiseKernelContext:
    """The lines of both kernels."""
    program = layout.program
    inputs, results, recalled = layout.inputs, layout.results, layout.recalled
    given, gradients = layout.given, layout.gradients
    scalars = [*layout.scale, layout.rows]
    return PointwiseKernelContext(
        name=program.name,
        stage=program.stage,
        scalars=", ".join(f'"{name}"' for name in scalars),
        constants=", ".join(f"{name}: tl.constexpr" for name in (*layout.sizes, *layout.blocks)),
        row=_row(layout),
        place=_block(layout.place()),
        forward_arguments=", ".join([*inputs, *results, *scalars]),
        forward_starts=_starts(layout, {**inputs, **results}),
        forward_loads=_loads(layout, inputs),
        forward=_block(StepText(program.forward, program.masked).lines()),
        forward_stores=_block(
            f"tl.store({layout.pointer(name, axes)}, {_cast(name)}, mask={layout.first(axes)})"
            for name, axes in results.items()
        ),
        backward_arguments=", ".join([*recalled, *given, *gradients, *scalars]),
        backward_starts=_starts(layout, {**recalled, **given}, gradients),
        backward_loads=_loads(layout, recalled, given),
        backward=_block(StepText(program.backward, program.masked_backward).lines()),
        backward_stores=_block(
            f"tl.store({layout.pointer(name, axes, True)}, {_cast(name)}, mask={layout.mask(axes)})"
            for name, axes in gradients.items()
        ),
    )


def _block(lines: Iterable[str]) -> Block:
    return Block(tuple(lines))


def _row(layout: PointwiseLayout) -> str:
    """What a row is and what programs do with rows, in words."""
    kinds = layout.program.axes.heads
    merged = kinds and not layout.heads
    words = [f"a row is a token's head {kinds[0][0]}" if merged else "a row is a token"]
    for (coarse, _), (fine, tile) in pairwise(kinds):
        words.append(f"{tile} heads {fine} share a head {coarse}")
    blocks = f"rows and heads {layout.heads}" if layout.heads else "rows"
    return f"One block of {blocks}: {', '.join(words)}."


def _starts(
    layout: PointwiseLayout, tensors: dict[str, Axes], partials: dict[str, Axes] | None = None
) -> Block:
    lines = [line for name, axes in tensors.items() for line in layout.start(name, axes)]
    for name, axes in (partials or {}).items():
        lines += layout.start(name, axes, partial=True)
    return _block(lines)


def _loads(
    layout: PointwiseLayout, tensors: dict[str, Axes], once: dict[str, Axes] | None = None
) -> Block:
    """Values in float32, 0 beyond the end. Of those in `once` only the first program has them."""
    masks = {name: layout.mask(axes) for name, axes in tensors.items()}
    masks |= {name: layout.first(axes) for name, axes in (once or {}).items()}
    every = {**tensors, **(once or {})}
    return _block(
        f"b_{name} = tl.load({layout.pointer(name, axes)}, mask={masks[name]}, other=0)"
        ".to(tl.float32)"
        for name, axes in every.items()
    )


def _cast(name: str) -> str:
    return f"b_{name}.to({name}.dtype.element_ty)"
