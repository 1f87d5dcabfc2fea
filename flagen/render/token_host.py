"""The host side of the token level: results, workspaces, partial gradients, launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagen.parse.spec import State
from flagen.render.signature import Signature
from flagen.render.token_layout import Layout, head_of


@dataclass(frozen=True)
class Host:
    """Text of the functions that launch the kernels."""

    layout: Layout
    signature: Signature

    @property
    def states(self) -> tuple[State, ...]:
        """The states of the spec."""
        return self.layout.spec.state

    @property
    def initial(self) -> list[str]:
        """The arguments for initial states."""
        return [f"initial_{state.name}" for state in self.states]

    @property
    def arguments(self) -> list[str]:
        """All arguments of the forward but its options."""
        scale = ["scale"] if self.signature.has_scale else []
        return [*self.signature.names, *self.initial, "cu_seqlens", *scale]

    @property
    def results(self) -> list[str]:
        """The results of the forward."""
        return [self.signature.output, *(f"final_{state.name}" for state in self.states)]

    @property
    def given(self) -> list[str]:
        """The gradients that the backward is given."""
        return [f"d{name}" for name in self.results]

    @property
    def programs(self) -> str:
        """The number of programs."""
        heads = [self.layout.head] if self.layout.head else []
        return " * ".join(["N", *heads, *(f"cdiv({a}, B{a})" for a in self.layout.blocked)])

    def typed_arguments(self) -> list[str]:
        """Tensors with their types."""
        lines = [f"{name}: torch.Tensor," for name in self.signature.names]
        return lines + [f"{name}: torch.Tensor | None," for name in self.initial]

    @property
    def make_output(self) -> str:
        """The statement that makes the output."""
        like, shape = self.signature.like.name, self.signature.output_shape()
        return f"{self.results[0]} = {like}.new_empty({shape})"

    def make_final(self) -> list[str]:
        """Statements that make the final states, empty where they are not wanted."""
        lines = []
        for state in self.states:
            shape = ", ".join(["N if output_final_state else 0", *self.signature.state_axes(state)])
            made = f"{self.signature.first}.new_empty({shape}, dtype=torch.float32)"
            lines.append(f"final_{state.name} = {made}")
        return lines

    def make_output_gradient(self) -> str:
        """The statement for the output's gradient: zeros where there is none."""
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
        """Statements that make room for gradients."""
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
        """The gradients, summed over what shares a tensor."""
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
        """Empty tensors like them."""
        lines = [f"{name}.new_empty({name}.shape)," for name in self.signature.names]
        first = self.signature.first
        return lines + [
            f"{first}.new_empty(0) if {name} is None else {name}.new_empty({name}.shape),"
            for name in self.initial
        ]

    def scalars(self, chunk: str) -> str:
        """The numbers that kernels take."""
        scale = "scale, " if self.signature.has_scale else ""
        return f"({scale}T, N, {chunk}),"

    @property
    def contiguous(self) -> str:
        """The inputs as kernels take them."""
        return ", ".join(f"{name}.contiguous()" for name in self.signature.names) + ","

    @property
    def strides(self) -> str:
        """The distances between states that are contiguous."""
        sizes = (" * ".join(self.signature.state_axes(state)) or "1" for state in self.states)
        return ", ".join(sizes)

    def launch_forward(self, saving: bool) -> list[str]:
        """The tensors that the forward kernel takes behind the inputs."""
        lines = [f"{'None' if saving else self.results[0]},"]
        for state, final in zip(self.states, self.results[1:], strict=True):
            start = f"None if initial_{state.name} is None else initial_{state.name}.contiguous()"
            end = "None" if saving else f"{final} if output_final_state else None"
            lines.append(f"{start}, {end}, {f'{state.name}_saved' if saving else 'None'}, None,")
        return [*lines, "None, cu_seqlens,"]

    def launch_backward(self) -> list[str]:
        """The arguments of the backward kernel behind the inputs."""
        names = [self.given[0], *(f"d{name}" for name in self.signature.names)]
        names += [f"{state.name}_{kind}" for state in self.states for kind in ("saved", "steps")]
        lines = [", ".join(names) + ","]
        for state, given in zip(self.states, self.given[1:], strict=True):
            start = f"None if {given} is None or {given}.shape[0] == 0 else {given}.contiguous()"
            lines.append(f"{start}, d{state.name},")
        return [*lines, "cu_seqlens,"]

    def call(self) -> list[str]:
        """The last statements of the public function."""
        name, signature = self.layout.spec.name, self.signature
        others = ("initial_state", "output_final_state", "cu_seqlens", "reverse")
        first, *finals = self.results
        final = finals[0] if len(finals) == 1 else f"({', '.join(finals)})"
        reverse = "not reverse" if self.layout.spec.reverse else "reverse"
        arguments = ", ".join([*self.arguments, "output_final_state", reverse])
        return [
            f"if not runs_kernels({signature.first}):",
            f"    return naive_{name}({signature.call(*others)})",
            f"{', '.join(self.results)} = _recurrent({arguments})",
            f"return {first}, {final} if output_final_state else None",
        ]

    @property
    def pools(self) -> list[str]:
        """The pools of states that decoding updates."""
        return [f"{state.name}_pool" for state in self.states]

    @property
    def each(self) -> list[str]:
        """The states after every token."""
        return [f"{state.name}_each" for state in self.states]

    @property
    def decode_arguments(self) -> list[str]:
        """All arguments of a decoding step."""
        scale = ["scale"] if self.signature.has_scale else []
        return [*self.signature.names, *self.pools, "slots", "cu_seqlens", *self.each, *scale]

    def typed_decode(self) -> list[str]:
        """The same with their types."""
        lines = [f"{name}: torch.Tensor," for name in (*self.signature.names, *self.pools, "slots")]
        lines += [f"{name}: torch.Tensor | None," for name in ("cu_seqlens", *self.each)]
        return lines + (["scale: float | None,"] if self.signature.has_scale else [])

    def decode_checks(self) -> list[str]:
        """Statements that check the arguments of a decoding step."""
        device, lines = f"{self.signature.first}.device", self.signature.argument_checks()
        for n, (state, pool) in enumerate(zip(self.states, self.pools, strict=True)):
            called = "state_pool" if len(self.states) == 1 else f"state_pool[{n}]"
            axes = "".join(f'sizes["{axis}"], ' for axis in self.signature.state_axes(state))
            lines.append(f'check_pool(op, "{called}", {pool}, ({axes}), {device})')
        return [*lines, f"check_slots(op, slots, N, {device})"]

    def launch_decode(self) -> list[str]:
        """The tensors that the forward kernel takes behind the inputs when it decodes."""
        lines = [f"{self.results[0]},"]
        for state, pool, each in zip(self.states, self.pools, self.each, strict=True):
            start = pool
            if self.layout.first(self.layout.state(state)):
                start = f"{pool}.index_select(0, slots.clamp(min=0))"
            lines.append(f"{start}, {pool}, None, {each},")
        return [*lines, "slots.contiguous(), cu_seqlens,"]

    def decode_by_reference(self) -> list[str]:
        """The arguments of the reference that decodes."""
        signature = self.signature
        inputs = ", ".join(f'"{name}": {name}' for name in signature.names)
        fixed = tuple(t.name for t in signature.tensors if "T" not in t.axes)
        pools, each = (f"({', '.join(x)},)" for x in (self.pools, self.each))
        scale = ", scale=scale" if signature.has_scale else ""
        return [
            f"naive_{self.layout.spec.name}, {{{inputs}}}, {fixed!r}, {pools}, slots, cu_seqlens,"
            f" {self.results[0]}, {each}{scale}"
        ]

    def call_decode(self) -> list[str]:
        """The last statements of the public function that decodes."""
        names, count = ", ".join(self.pools), len(self.pools)
        given = (
            "state_pool" if count == 1 else f'split_states(op, state_pool, {count}, "state_pool")'
        )
        first, output = self.signature.first, self.results[0]
        training = f"fused_recurrent_{self.layout.spec.name}"
        lines = [f"{names} = {given}"]
        lines.append(
            f'check_inference(op, "{training}", {", ".join(self.signature.names)}, {names})'
        )
        for pool, each in zip(self.pools, self.each, strict=True):
            shape = f"*{first}.shape[:2], *{pool}.shape[1:]"
            lines.append(f"{each} = {pool}.new_empty({shape}) if output_states else None")
        if self.signature.has_scale:
            lines.append("scale = None if scale is None else float(scale)")
        each = self.each[0] if count == 1 else f"({', '.join(self.each)})"
        return [
            *lines,
            f"{output} = _decode({', '.join(self.decode_arguments)})",
            f"return {output}, {each}" + (" if output_states else None" if count > 1 else ""),
        ]
