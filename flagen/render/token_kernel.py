"""The lines of the token-level kernels that depend on the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagen.analyze.recurrence import is_feature
from flagen.derive.step import Step, StepBuilder, pruned, translated
from flagen.derive.token import arguments
from flagen.parse.spec import Tensor
from flagen.render.environment import Block
from flagen.render.step_text import StepText, aligned
from flagen.render.token_layout import Layout, head_of
from flagen.render.token_states import (
    adjoint_start,
    each,
    finish,
    keep,
    load,
    loaded,
    plus,
    recall,
    restore,
    save,
    slot_rows,
    start,
    state_rows,
)


@dataclass(frozen=True, slots=True)
class TokenKernelContext:
    """What the templates of the token-level kernels may print."""

    name: str
    scalars: str
    constants: str
    strides: str
    forward_arguments: Block
    backward_arguments: Block
    place: Block
    input_rows: Block
    parameters: Block
    output_row: Block
    saved_rows: Block
    slot_rows: Block
    state_rows: Block
    start: Block
    save: Block
    loads: Block
    step: Block
    write_output: Block
    each: Block
    finish: Block
    output_gradient_row: Block
    gradient_rows: Block
    adjoint_start: Block
    accumulators: Block
    restore: Block
    keep: Block
    update_loads: Block
    update: Block
    recall: Block
    adjoint_loads: Block
    adjoint: Block
    write_gradients: Block
    adjoint_finish: Block


def kernel_context(layout: Layout) -> TokenKernelContext:
    """The lines of both kernels."""
    spec, level = layout.spec, layout.level
    update = level.update(spec)
    names = [tensor.name for tensor in arguments(spec)]
    states = [state.name for state in spec.state]
    scalars = [*(["scale"] if uses_scale(layout) else []), "T", "N", "CHUNK"]
    tail = ["cu_seqlens", *scalars]
    forward = [
        *names,
        layout.output,
        *_each(states, "_in", "_out", "_saved", "_each"),
        "slots",
        *tail,
    ]
    backward = [*names, f"d{layout.output}", *(f"d{name}" for name in names)]
    backward += [*_each(states, "_saved", "_steps")]
    backward += [*_each([f"d{name}" for name in states], "_in", "_out"), *tail]
    sizes = [*layout.sizes, *(f"B{axis}" for axis in layout.sized)]
    # what lives through the loops, whether or not a step in them needs it
    values = [*(tensor.name for tensor in spec.inputs), *states, layout.output]
    taken = frozenset(f"b_{d}{name}" for name in values for d in ("", "d", "sum_d"))
    return TokenKernelContext(
        name=spec.name,
        scalars=", ".join(f'"{name}"' for name in scalars),
        constants=", ".join(f"{size}: tl.constexpr" for size in sizes),
        strides=", ".join(f"{name}_STRIDE: tl.constexpr" for name in states),
        forward_arguments=_wrapped(forward),
        backward_arguments=_wrapped(backward),
        place=_block(layout.place()),
        input_rows=_block(_input_rows(layout)),
        parameters=_block(_parameters(layout)),
        output_row=_block(_output_row(layout, layout.output)),
        saved_rows=_block(_saved_rows(layout)),
        slot_rows=_block(slot_rows(layout)),
        state_rows=_block(state_rows(layout)),
        start=_block(start(layout)),
        save=_block(save(layout)),
        loads=_block(_loads(layout, level.step)),
        step=_block(StepText(level.step, level.masked, taken=taken).lines()),
        write_output=_block(_write_output(layout)),
        each=_block(each(layout)),
        finish=_block(finish(layout)),
        output_gradient_row=_block(_output_row(layout, f"d{layout.output}")),
        gradient_rows=_block(_gradient_rows(layout)),
        adjoint_start=_block(adjoint_start(layout)),
        accumulators=_block(_accumulators(layout)),
        restore=_block(restore(layout)),
        keep=_block(keep(layout)),
        update_loads=_block(_loads(layout, update)),
        update=_block(StepText(update, level.masked_update, taken=taken).lines()),
        recall=_block(recall(layout)),
        adjoint_loads=_block(_loads(layout, level.adjoint)),
        adjoint=_block(StepText(level.adjoint, level.masked_adjoint, taken=taken).lines()),
        write_gradients=_block(_write_gradients(layout)),
        adjoint_finish=_block(_adjoint_finish(layout)),
    )


def uses_scale(layout: Layout) -> bool:
    """Whether the step has the argument `scale`."""
    return "scale" in layout.level.step.inputs


def _block(lines: Sequence[str]) -> Block:
    return Block(tuple(lines))


def _each(names: Sequence[str], *endings: str) -> list[str]:
    return [f"{name}{ending}" for name in names for ending in endings]


def _wrapped(names: Sequence[str], width: int = 90) -> Block:
    """Names with commas, over several lines."""
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > width:
            lines.append("")
        lines[-1] += f"{name}, "
    return Block(tuple(line.rstrip() for line in lines))


def _per_token(layout: Layout) -> list[Tensor]:
    return [tensor for tensor in arguments(layout.spec) if "T" in tensor.axes]


def _fixed(layout: Layout) -> list[Tensor]:
    return [tensor for tensor in arguments(layout.spec) if "T" not in tensor.axes]


def _input_rows(layout: Layout) -> list[str]:
    return [f"p_{t.name} = {t.name} + {layout.row('bos', t.axes)}" for t in _per_token(layout)]


def _parameters(layout: Layout) -> list[str]:
    """Inputs without `T`, loaded once, and constants, computed once."""
    lines = []
    for tensor in _fixed(layout):
        row = ""
        if own := head_of(tensor.axes):
            features = [axis for axis in tensor.axes if is_feature(axis)]
            row = " * ".join([layout.index(own), *features])
        pointer = plus(tensor.name, row, layout.offsets(tensor.axes))
        lines.append(f"b_{tensor.name} = {load(pointer, layout.mask(tensor.axes))}")
    for tensor in layout.spec.inputs:
        if tensor.value is not None:
            lines += _constant(layout, tensor)
    return lines


def _constant(layout: Layout, tensor: Tensor) -> list[str]:
    """A constant from the indices of its axes, in float64."""
    assert tensor.value is not None
    builder = StepBuilder(layout.order)
    values = {axis: builder.size(axis) for axis in layout.sizes}
    leaves = {}
    for axis in tensor.axes:
        feature = is_feature(axis)
        values[axis.lower()] = builder.input(axis.lower(), [axis] if feature else [])
        index = f"o_{axis.lower()}" if feature else layout.index(axis)
        leaves[axis.lower()] = f"{index}.to(tl.float64)"
    node = translated(builder, tensor.value, values, {}, {})
    whole = Step(tuple(builder.nodes), (), (), layout.order)
    text = StepText(
        pruned(whole, [(tensor.name, node)]), frozenset(), leaves.__getitem__, "tl.float64"
    )
    *lines, last = text.lines()
    if not builder.is_tensor(node):
        return [f"b_{tensor.name} = tl.full([], {last.split(' = ', 1)[1]}, tl.float32)"]
    return [*lines, last, f"b_{tensor.name} = b_{tensor.name}.to(tl.float32)"]


def _output_row(layout: Layout, name: str) -> list[str]:
    axes = (*layout.level.heads, *layout.output_axes)
    line = f"p_{name} = {name} + {layout.row('bos', axes)}"
    return [line] if name != layout.output else [f"if {name} is not None:", f"    {line}"]


def _saved_rows(layout: Layout) -> list[str]:
    return ["r_first = bos // CHUNK + i_n"]


def _loads(layout: Layout, step: Step) -> list[str]:
    """The inputs of a step that change from token to token, in the order of the spec.

    All loads come first: Triton waits for a load where its result is converted.
    """
    names, lines = [], []
    output = f"d{layout.output}"
    for tensor in _per_token(layout):
        if tensor.name in step.inputs:
            row = f"p_{tensor.name} + {layout.stride(tensor.axes)}"
            pointer = plus(row, layout.offsets(tensor.axes))
            lines.append(f"b_{tensor.name} = {loaded(pointer, layout.mask(tensor.axes))}")
            names.append(f"b_{tensor.name}")
    if output in step.inputs:
        axes = (*layout.level.heads, *layout.output_axes)
        pointer = plus(f"p_{output} + {layout.stride(axes)}", layout.offsets(axes))
        lines.append(f"b_{output} = {loaded(pointer, layout.mask(axes))}")
        names.append(f"b_{output}")
    return lines + [f"{name} = {name}.to(tl.float32)" for name in names]


def _write_output(layout: Layout) -> list[str]:
    name, axes = layout.output, (*layout.level.heads, *layout.output_axes)
    pointer = plus(f"p_{name} + {layout.stride(axes)}", layout.offsets(axes))
    mask = f", mask={mask}" if (mask := layout.mask(axes)) else ""
    return [
        f"if {name} is not None:",
        "    if slots is not None:",
        f"        b_{name} = tl.where(r_slot >= 0, b_{name}, 0.0)",
        f"    tl.store({pointer}, b_{name}.to({name}.dtype.element_ty){mask})",
    ]


def _gradient_axes(layout: Layout, tensor: Tensor) -> tuple[str, ...]:
    """The axes of a partial gradient without `T`: it has the output's heads."""
    return (*layout.level.heads, *filter(is_feature, tensor.axes))


def _gradient_rows(layout: Layout) -> list[str]:
    lines = []
    tensors = _per_token(layout)
    if any(layout.lacks(tensor.axes) for tensor in tensors):
        lines.append("n_r = T.to(tl.int64) * (N if cu_seqlens is None else 1)")
    for tensor in tensors:
        axes = _gradient_axes(layout, tensor)
        partial = layout.partial(tensor.axes, "n_r")
        row = layout.row(f"({partial}bos)" if partial else "bos", axes)
        lines.append(f"p_d{tensor.name} = d{tensor.name} + {row}")
    return lines


def _accumulators(layout: Layout) -> list[str]:
    lines = []
    for tensor in _fixed(layout):
        shape = ", ".join(f"B{axis}" for axis in layout.tile(tensor.axes))
        zero = f"tl.zeros([{shape}], dtype=tl.float32)" if shape else "0.0"
        lines.append(f"b_sum_d{tensor.name} = {zero}")
    return lines


def _write_gradients(layout: Layout) -> list[str]:
    lines = []
    adjoint = layout.level.adjoint
    for tensor in arguments(layout.spec):
        name, tile = f"d{tensor.name}", layout.tile(tensor.axes)
        value = aligned(f"b_{name}", adjoint.axes(name), tile)
        if "T" not in tensor.axes:
            lines.append(f"b_sum_{name} += {value}")
            continue
        axes = _gradient_axes(layout, tensor)
        pointer = plus(f"p_{name} + {layout.stride(axes)}", layout.offsets(axes))
        mask = f", mask={mask}" if (mask := layout.mask(axes)) else ""
        lines.append(f"tl.store({pointer}, {value}.to({name}.dtype.element_ty){mask})")
    return lines


def _adjoint_finish(layout: Layout) -> list[str]:
    lines = []
    for tensor in _fixed(layout):
        axes = _gradient_axes(layout, tensor)
        name, mask = f"d{tensor.name}", layout.mask(axes)
        partial = layout.partial(tensor.axes, "N")
        row = f"({partial}i_n.to(tl.int64))" if partial else "i_n.to(tl.int64)"
        pointer = plus(name, layout.row(row, axes), layout.offsets(axes))
        masked = f", mask={mask}" if mask else ""
        lines.append(f"tl.store({pointer}, b_sum_{name}.to({name}.dtype.element_ty){masked})")
    for state in layout.spec.state:
        name, axes = f"d{state.name}", (*layout.level.heads, *state.axes)
        partial = layout.partial(state.axes, "N")
        row = f"({partial}i_n.to(tl.int64))" if partial else "i_n.to(tl.int64)"
        pointer = plus(f"{name}_out", layout.row(row, axes), layout.offsets(axes))
        value = f"b_{name}.to({name}_out.dtype.element_ty)"
        mask = f", mask={mask}" if (mask := layout.mask(state.axes)) else ""
        lines.append(f"if {name}_out is not None:")
        lines.append(f"    tl.store({pointer}, {value}{mask})")
    return lines
