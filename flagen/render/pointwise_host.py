"""The host side of a pointwise stage: tiles, results, partial gradients, launches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flagen.analyze.recurrence import is_feature
from flagen.derive.pointwise import Result
from flagen.render.environment import Block
from flagen.render.pointwise_layout import PointwiseLayout, times

ELEMENTS = 4096
"""Elements of a tile: at 4 warps, four loads of 16 bytes per thread in half precision."""
LEAST_ROWS = 16
"""Rows per program, where it can be, that the partial sum of an input without rows is worth."""


@dataclass(frozen=True, slots=True)
class PointwiseHostContext:
    """What the template of a pointwise stage's host functions may print."""

    name: str
    stage: str
    digest: str
    size_parameters: str
    size_names: str
    tile_results: str
    tiles: Block
    tile_size: int
    warp_size: int
    tile_elements: str
    programs: str
    arguments: str
    typed_arguments: Block
    typed_gradients: Block
    forward_type: str
    formulas: Block
    results: str
    given: str
    inputs: str
    sizes: Block
    fake_sizes: Block
    make_results: Block
    make_given: Block
    make_gradients: Block
    contiguous: str
    launch_forward: str
    launch_backward: str
    launch_scalars: str
    launch_sizes: str
    folded: Block
    fake_gradients: Block
    positions: str


def host_context(layout: PointwiseLayout, digest: str) -> PointwiseHostContext:
    """The lines of the host functions; `digest` stands for the kernels."""
    program = layout.program
    results, given = list(layout.results), list(layout.given)
    gradients, scale = list(layout.gradients), layout.scale
    pairs = list(zip(results, given, program.results, strict=True))
    apart = [axis for axis in (layout.rows, layout.heads) if axis]
    return PointwiseHostContext(
        name=program.name,
        stage=program.stage,
        digest=digest,
        size_parameters=", ".join(f"{name}: int" for name in layout.sizes),
        size_names=", ".join(layout.sizes),
        tile_results=", ".join(layout.blocks),
        tiles=_block(_tiles(layout)),
        tile_size=ELEMENTS,
        warp_size=ELEMENTS // 4,
        tile_elements=times(*_whole(layout), f"B{layout.rows}"),
        programs=" * ".join(f"cdiv({axis}, B{axis})" for axis in apart),
        arguments=", ".join(layout.arguments),
        typed_arguments=_block(
            f"{name}: {'float' if name in scale else 'torch.Tensor'}," for name in layout.arguments
        ),
        typed_gradients=_block(f"{name}: torch.Tensor | None," for name in given),
        forward_type=_tensors(len(results)),
        formulas=_block(f"    {result.name} = {result.expression}" for result in program.results),
        results=", ".join(results),
        given=", ".join(given),
        inputs=", ".join(layout.inputs),
        sizes=_block(_sizes(layout, launching=True)),
        fake_sizes=_block(_sizes(layout, launching=False)),
        make_results=_block(f"{name} = {_make(layout, result)}" for name, _, result in pairs),
        make_given=_block(
            f"{name} = {_make(layout, result, 'zeros')} if {name} is None else {name}.contiguous()"
            for _, name, result in pairs
        ),
        make_gradients=_block(
            f"d{name} = partials({name}, {layout.counts(axes)}, 0, 1)"
            for name, axes in layout.inputs.items()
        ),
        contiguous=_contiguous(list(layout.inputs)),
        launch_forward=", ".join([*layout.inputs, *results]),
        launch_backward=", ".join([*layout.recalled, *given, *gradients]),
        launch_scalars=f"{', '.join([*scale, layout.rows])},",
        launch_sizes=", ".join([*layout.sizes, *layout.blocks]),
        folded=_block(f"folded(d{name}, {name}, 0)," for name in layout.inputs),
        fake_gradients=_block(f"{name}.new_empty({name}.shape)," for name in layout.inputs),
        positions=repr(tuple(range(len(gradients)))),
    )


def _block(lines: Iterable[str]) -> Block:
    return Block(tuple(lines))


def _tensors(count: int) -> str:
    return "torch.Tensor" if count == 1 else f"tuple[{', '.join(['torch.Tensor'] * count)}]"


def _contiguous(names: list[str]) -> str:
    """The statement that makes tensors contiguous."""
    if len(names) == 1:
        return f"{names[0]} = {names[0]}.contiguous()"
    each = "y" if "x" in names else "x"
    return f"{', '.join(names)} = ({each}.contiguous() for {each} in ({', '.join(names)}))"


def _make(layout: PointwiseLayout, result: Result, how: str = "empty") -> str:
    """An empty tensor for a result, or zeros for its gradient."""
    like = next(iter(layout.inputs)) if result.like == "float32" else result.like
    dtype = ", dtype=torch.float32" if result.like == "float32" else ""
    products = {each.name: " * ".join(each.factors) for each in layout.program.axes.products}
    shape = ", ".join(["B", *(products.get(axis, axis) for axis in result.axes)])
    return f"{like}.new_{how}({shape}{dtype})"


def _tiles(layout: PointwiseLayout) -> list[str]:
    """The sides of tiles: whole features and whole groups of heads, then heads, then rows."""
    axes = layout.program.axes
    features = [axis for axis in axes.features if axis not in axes.factors]
    lines = [f"B{axis} = block({axis}, 1 << 20)" for axis in features]
    lines += [f"B{axis} = triton.next_power_of_2({axis})" for _, axis in axes.heads[1:]]
    if heads := layout.heads:
        # What is summed over heads stays in one program; what is summed over rows alone needs rows.
        shared = any(heads in layout.lacks(each) for each in layout.inputs.values())
        beside = [*_whole(layout, heads), *([] if shared else [str(LEAST_ROWS)])]
        most = f"{ELEMENTS} // {times(beside)}" if beside else str(ELEMENTS)
        lines.append(f"B{heads} = max(min(triton.next_power_of_2({heads}), {most}), 1)")
    whole = _whole(layout)
    rows = f"max({ELEMENTS} // {times(whole)}, 1)" if whole else str(ELEMENTS)
    return [*lines, f"B{layout.rows} = {rows}"]


def _whole(layout: PointwiseLayout, *without: str) -> list[str]:
    """The sides of the largest tile but rows, as factors, those of the axes `without` left out."""
    program = layout.program
    heads = [f"B{tile}" for _, tile in program.axes.heads if tile and tile not in without]
    factors = program.axes.factors
    found = {
        tuple(f"B{factors.get(a, a)}" for a in node.axes if a in program.axes.features)
        for node in (*program.forward.nodes, *program.backward.nodes)
    }
    largest = sorted(one for one in found if one and not any(set(one) < set(x) for x in found))
    features = [times(*each) for each in largest]
    return [*heads, *([f"max({', '.join(features)})"] if len(features) > 1 else features)]


def _sizes(layout: PointwiseLayout, launching: bool) -> list[str]:
    """Statements for the sizes of the results' axes, or for what the kernels are launched with."""
    program = layout.program
    kinds = [kind for kind, _ in program.axes.heads]
    wanted = {axis for result in program.results for axis in result.axes}
    wanted = {*kinds, *program.axes.features} if launching else wanted
    wanted |= set(program.axes.factors.values())
    tensors = [*program.inputs, *program.sizers]
    first, axes = next((name, axes) for name, axes in tensors if "T" in axes)
    lines = [f"{', '.join(['B', *axes])} = {first}.shape"]
    known = set(axes)
    for name, axes in tensors:
        for place, axis in enumerate(axes):
            if axis in wanted - known:
                at = place - len(axes) if is_feature(axis) else place + ("T" in axes)
                lines.append(f"{axis} = {name}.shape[{at}]")
                known.add(axis)
    if launching:
        merged = [kind for kind, tile in program.axes.heads if not tile]
        lines.append(f"{layout.rows} = {' * '.join(['B', 'T', *merged])}")
        for coarse, (fine, tile) in zip(kinds, program.axes.heads[1:], strict=False):
            lines.append(f"{tile} = max({fine} // max({coarse}, 1), 1)")
    return lines
