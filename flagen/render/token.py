"""The module of the token level: launches, results, gradients and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagen.derive.derivation import Derivation
from flagen.parse.spec import State
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest
from flagen.render.reference import equations, signature_of, summary
from flagen.render.signature import Signature
from flagen.render.step_text import HELPERS
from flagen.render.token_kernel import kernel_context, uses_scale
from flagen.render.token_layout import Layout, head_of


@dataclass(frozen=True, slots=True)
class TokenModuleContext:
    """What `module/token.py.jinja` may print."""

    name: str
    digest: str
    summary: str
    equations: Block
    imports: Block
    kernels: Block
    size_parameters: str
    size_names: str
    tiles_doc: str
    tiles: Block
    tile_elements: str
    tile_results: str
    blocks: str
    programs: str
    tokens: str
    arguments: str
    typed_arguments: Block
    typed_scale: Block
    typed_gradients: Block
    gradients: str
    forward_type: str
    backward_type: str
    forward_results: str
    sizes: Block
    fake_sizes: Block
    backward_sizes: Block
    make_output: str
    make_final: Block
    make_output_gradient: str
    make_saved: Block
    make_partials: Block
    contiguous: str
    launch_inputs: str
    launch_forward: Block
    launch_saving: Block
    launch_backward: Block
    launch_sizes: str
    folded: Block
    fake_gradients: Block
    positions: str
    parameters: Block
    scale_parameter: Block
    state_type: str
    the_states: str
    argument_docs: Block
    result_doc: Block
    checks: Block
    call: Block


def token_context(derivation: Derivation, kernels: tuple[str, ...]) -> TokenModuleContext:
    """The lines of the token level's module."""
    spec = derivation.recurrence.spec
    layout = Layout(spec, derivation.token)
    signature = signature_of(derivation)
    context = kernel_context(layout)
    text = "\n\n\n".join(fill(f"kernel/{name}.py.jinja", context).strip("\n") for name in kernels)
    host = _Host(layout, signature)
    forward_sizes = [host.programs, *layout.sizes, "N"]
    made = [host.make_output, *host.make_final()]
    return TokenModuleContext(
        name=spec.name,
        digest=spec_digest(spec),
        summary=summary(spec),
        equations=_block(equations(spec)),
        imports=_block(_imports(spec.name, text, signature)),
        kernels=Block.of(text),
        size_parameters=", ".join(f"{axis}: int" for axis in layout.order),
        size_names=", ".join(layout.order),
        tiles_doc=_tiles_doc(layout),
        tiles=_block(_tiles(layout)),
        tile_elements=_tile_elements(layout),
        tile_results=", ".join(f"B{axis}" for axis in layout.order),
        blocks="".join(f"B{axis}, " for axis in layout.order),
        programs=host.programs,
        tokens="B * T",
        arguments=", ".join(host.arguments),
        typed_arguments=_block(host.typed_arguments()),
        typed_scale=_block(["scale: float,"] if signature.has_scale else []),
        typed_gradients=_block([f"{name}: torch.Tensor | None," for name in host.given]),
        gradients=", ".join(host.given),
        forward_type=_tensors(1 + len(spec.state)),
        backward_type=_tensors(len(signature.tensors) + len(spec.state)),
        forward_results=", ".join(host.results),
        sizes=_block(signature.sizes(" ".join([*forward_sizes, "T"]))),
        fake_sizes=_block(signature.sizes(" ".join(made))),
        backward_sizes=_block(signature.sizes(" ".join([*forward_sizes, "B"]))),
        make_output=host.make_output,
        make_final=_block(host.make_final()),
        make_output_gradient=host.make_output_gradient(),
        make_saved=_block(host.make_saved()),
        make_partials=_block(host.make_partials()),
        contiguous=_contiguous(signature),
        launch_inputs=", ".join(signature.names) + ",",
        launch_forward=_block(host.launch_forward(saving=False)),
        launch_saving=_block(host.launch_forward(saving=True)),
        launch_backward=_block(host.launch_backward()),
        launch_sizes=", ".join([*layout.sizes, *(f"B{axis}" for axis in layout.order)]) + ",",
        folded=_block(host.folded()),
        fake_gradients=_block(host.fake_gradients()),
        positions=repr(tuple(range(len(signature.tensors) + len(spec.state)))),
        parameters=_block(signature.parameters()),
        scale_parameter=_block(signature.scale_parameter()),
        state_type=signature.state_type,
        the_states="the states" if len(spec.state) > 1 else "the state",
        argument_docs=_block(signature.docs()),
        result_doc=_block(_result_doc(signature)),
        checks=_block(signature.checks()),
        call=_block(host.call()),
    )


def _block(lines: Sequence[str]) -> Block:
    return Block(tuple(lines))


def _contiguous(signature: Signature) -> str:
    """The statement that makes the inputs contiguous."""
    names = ", ".join(signature.names)
    each = "y" if "x" in signature.names else "x"
    comma = "," if len(signature.names) == 1 else ""
    return f"{names}{comma} = ({each}.contiguous() for {each} in ({names}{comma}))"


def _tensors(count: int) -> str:
    return f"tuple[{', '.join(['torch.Tensor'] * count)}]"


_RUNTIME = (
    "Operator autocast block cdiv check_cu_seqlens check_groups check_kwargs check_shapes check_state"
    " check_tensors checkpoint_interval folded locate partials runs_kernels split_states warps"
)


def _imports(name: str, kernels: str, signature: Signature) -> list[str]:
    used = [each for each in _RUNTIME.split() if _is_used(each, signature)]
    used += [helper for helper in HELPERS if f" {helper}(" in kernels or f"({helper}(" in kernels]
    lines = ["import torch", "import triton", "import triton.language as tl", ""]
    if any("math." in line for line in signature.default_scale()):
        lines.insert(0, "import math")
    return [*lines, f"from .._runtime import {', '.join(used)}", f"from .naive import naive_{name}"]


def _is_used(helper: str, signature: Signature) -> bool:
    text = "\n".join(signature.checks())
    optional = {"autocast", "check_groups", "split_states", "check_state"}
    return helper not in optional or f"{helper}(" in text


def _tiles_doc(layout: Layout) -> str:
    """What the tiles are, in words."""
    names = ", ".join(f"B{axis}" for axis in layout.order)
    whole = [axis for axis in layout.order if axis not in layout.blocked]
    rest = f"all of {' and '.join(whole)}" if whole else ""
    cut = f"blocks of {' and '.join(layout.blocked)}" if layout.blocked else ""
    return f"({names}, warps): {', '.join(filter(None, (rest, cut)))}; a warp holds `most` elements."


def _tiles(layout: Layout) -> list[str]:
    """The sizes of blocks: whole axes first, then what a warp holds of the others."""
    whole = [axis for axis in layout.order if axis not in layout.blocked]
    lines = [f"B{axis} = block({axis}, 1 << 20)" for axis in whole]
    for n, axis in enumerate(layout.blocked):
        others = [
            f"B{other}"
            for other in dict.fromkeys(a for s in layout.spec.state for a in s.axes)
            if other in whole or other in layout.blocked[:n]
        ]
        last = n == len(layout.blocked) - 1
        beside = f"({' * '.join(others)})" if len(others) > 1 else "".join(others)
        most = f"max(most // {beside}, 16)" if beside else "128"
        lines.append(f"B{axis} = block({axis}, {most if last else 16})")
    return lines


def _tile_elements(layout: Layout) -> str:
    products = dict.fromkeys(layout.elements(state.axes) for state in layout.spec.state)
    return next(iter(products)) if len(products) == 1 else f"max({', '.join(products)})"


def _result_doc(signature: Signature) -> list[str]:
    shape, like = signature.output_shape(), signature.like.name
    states = "states" if len(signature.spec.state) > 1 else "state"
    return [
        f"{signature.output}, [{shape}] in the dtype of {like}, and the final {states} in float32,",
        "or None.",
    ]


@dataclass(frozen=True)
class _Host:
    """Text of the functions that launch the kernels."""

    layout: Layout
    signature: Signature

    @property
    def states(self) -> tuple[State, ...]:
        return self.layout.spec.state

    @property
    def initial(self) -> list[str]:
        return [f"initial_{state.name}" for state in self.states]

    @property
    def arguments(self) -> list[str]:
        scale = ["scale"] if self.signature.has_scale else []
        return [*self.signature.names, *self.initial, "cu_seqlens", *scale]

    @property
    def results(self) -> list[str]:
        return [self.signature.output, *(f"final_{state.name}" for state in self.states)]

    @property
    def given(self) -> list[str]:
        """The gradients that the backward is given."""
        return [f"d{name}" for name in self.results]

    @property
    def programs(self) -> str:
        heads = [self.layout.head] if self.layout.head else []
        return " * ".join(["N", *heads, *(f"cdiv({a}, B{a})" for a in self.layout.blocked)])

    def typed_arguments(self) -> list[str]:
        lines = [f"{name}: torch.Tensor," for name in self.signature.names]
        return lines + [f"{name}: torch.Tensor | None," for name in self.initial]

    @property
    def make_output(self) -> str:
        return f"{self.results[0]} = {self.signature.like.name}.new_empty({self.signature.output_shape()})"

    def make_final(self) -> list[str]:
        lines = []
        for state in self.states:
            shape = ", ".join(["N if output_final_state else 0", *self.signature.state_axes(state)])
            made = f"{self.signature.first}.new_empty({shape}, dtype=torch.float32)"
            lines.append(f"final_{state.name} = {made}")
        return lines

    def make_output_gradient(self) -> str:
        name, like = self.given[0], self.signature.like.name
        zeros = f"{like}.new_zeros({self.signature.output_shape()})"
        return f"{name} = {zeros} if {name} is None else {name}.contiguous()"

    def make_saved(self) -> list[str]:
        """The states that the backward starts from, and those of one chunk per program."""
        lines = []
        first = self.signature.first
        for state in self.states:
            tile = self.layout.elements(state.axes)
            per = f"programs // max(N, 1), {tile}, dtype=torch.float32"
            lines.append(f"{state.name}_saved = {first}.new_empty(B * T // chunk + N, {per})")
            tile = f"programs, chunk, {tile}, dtype=torch.float32"
            lines.append(f"{state.name}_steps = {first}.new_empty({tile})")
        return lines

    def _count(self, axes: Sequence[str], fixed: bool) -> str:
        counts = [f"cdiv({axis}, B{axis})" for axis in self.layout.lacks(axes)]
        return " * ".join([*counts, *(["N"] if fixed else [])]) or "1"

    def make_partials(self) -> list[str]:
        lines = []
        for tensor in self.signature.tensors:
            fixed = "T" not in tensor.axes
            count = self._count(tensor.axes, fixed)
            lead = 0 if fixed else 2
            lead += bool(head_of(tensor.axes))
            group = self.layout.group(tensor.axes)
            made = f"partials({tensor.name}, {count}, {lead}, {group})"
            lines.append(f"d{tensor.name} = {made}")
        for state in self.states:
            axes = self.signature.state_axes(state)
            group, lead = self.layout.group(axes), 1 + bool(head_of(axes))
            made = f"partials(initial_{state.name}, {self._count(axes, False)}, {lead}, {group})"
            lines.append(f"d{state.name} = None if initial_{state.name} is None else {made}")
        return lines

    def folded(self) -> list[str]:
        lines = []
        for tensor in self.signature.tensors:
            lead = (0 if "T" not in tensor.axes else 2) + bool(head_of(tensor.axes))
            lines.append(f"folded(d{tensor.name}, {tensor.name}, {lead}),")
        first = self.signature.first
        for state in self.states:
            lead = 1 + bool(head_of(self.signature.state_axes(state)))
            name = f"initial_{state.name}"
            made = f"folded(d{state.name}, {name}, {lead})"
            lines.append(f"{first}.new_empty(0) if {name} is None else {made},")
        return lines

    def fake_gradients(self) -> list[str]:
        lines = [f"{name}.new_empty({name}.shape)," for name in self.signature.names]
        first = self.signature.first
        return lines + [
            f"{first}.new_empty(0) if {name} is None else {name}.new_empty({name}.shape),"
            for name in self.initial
        ]

    def _scalars(self, chunk: str) -> str:
        scale = "scale, " if uses_scale(self.layout) else ""
        return f"cu_seqlens, {scale}T, N, {chunk},"

    def launch_forward(self, saving: bool) -> list[str]:
        lines = [f"{'None' if saving else self.results[0]},"]
        for state, final in zip(self.states, self.results[1:], strict=True):
            start = f"None if initial_{state.name} is None else initial_{state.name}.contiguous()"
            end = "None" if saving else f"{final} if output_final_state else None"
            lines.append(f"{start}, {end}, {f'{state.name}_saved' if saving else 'None'},")
        return [*lines, self._scalars("chunk" if saving else "1")]

    def launch_backward(self) -> list[str]:
        names = [self.given[0], *(f"d{name}" for name in self.signature.names)]
        names += [f"{state.name}_{kind}" for state in self.states for kind in ("saved", "steps")]
        lines = [", ".join(names) + ","]
        for state, given in zip(self.states, self.given[1:], strict=True):
            start = f"None if {given} is None or {given}.shape[0] == 0 else {given}.contiguous()"
            lines.append(f"{start}, d{state.name},")
        return [*lines, self._scalars("chunk")]

    def call(self) -> list[str]:
        """The last statements of the public function."""
        name, signature = self.layout.spec.name, self.signature
        others = ("initial_state", "output_final_state", "cu_seqlens", "reverse")
        first, *finals = self.results
        final = finals[0] if len(finals) == 1 else f"({', '.join(finals)})"
        arguments = ", ".join([*self.arguments, "output_final_state", "reverse"])
        return [
            f"if not runs_kernels({signature.first}):",
            f"    return naive_{name}({signature.call(*others)})",
            f"{', '.join(self.results)} = _recurrent({arguments})",
            f"return {first}, {final} if output_final_state else None",
        ]

