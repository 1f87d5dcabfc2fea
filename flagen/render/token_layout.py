"""Where a token-level kernel finds things: programs, rows, offsets and masks, as Triton text.

The grid has a program per sequence, head of the output and block of every axis in `blocked`. A
tensor that lacks a blocked axis, or has fewer heads, is shared by several programs: each reads it,
the first writes it, and its gradient is a sum of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from flagen.analyze.recurrence import is_feature
from flagen.derive.step import output_axes
from flagen.derive.token import TokenLevel, arguments
from flagen.parse.spec import Spec, State, Tensor


@dataclass(frozen=True)
class Layout:
    """The axes of a token-level kernel and the text that follows from them."""

    spec: Spec
    level: TokenLevel

    @property
    def order(self) -> tuple[str, ...]:
        """The axes of tiles, in order."""
        return self.level.step.order

    @property
    def blocked(self) -> tuple[str, ...]:
        """The axes along which programs work apart."""
        return self.level.blocked

    @property
    def head(self) -> str:
        """The head axis of the output, or ""."""
        return "".join(self.level.heads)

    @property
    def output(self) -> str:
        """The output's name."""
        return self.spec.output[-1].target

    @property
    def output_axes(self) -> tuple[str, ...]:
        """The output's feature axes, as in memory."""
        return output_axes(self.level.step, self.output)

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """Every axis with a size that kernels need, heads first."""
        tensors = arguments(self.spec)
        heads = [a for t in tensors for a in t.axes if a != "T" and not is_feature(a)]
        return (*dict.fromkeys(heads), *self.sized)

    @cached_property
    def sized(self) -> tuple[str, ...]:
        """The axes of tiles that kernels are told the sizes of: those of parts follow."""
        parts = {part for product in self.spec.products for part in product.parts}
        return tuple(axis for axis in self.order if axis not in parts)

    def features(self, axes: Iterable[str]) -> tuple[str, ...]:
        """The feature axes among those of a tensor, as tiles have them."""
        return self.spec.in_tiles(filter(is_feature, axes))

    def block(self, axis: str) -> str:
        """The side of tiles along an axis: that of the factor, for a part of a product."""
        parts = {
            part: f for p in self.spec.products for part, f in zip(p.parts, p.factors, strict=True)
        }
        return f"B{parts.get(axis, axis)}"

    def index(self, axis: str) -> str:
        """A block's or head's index."""
        return f"i_{axis.lower()}"

    def lacks(self, axes: Iterable[str]) -> tuple[str, ...]:
        """The blocked axes that are not among `axes`."""
        return tuple(axis for axis in self.blocked if axis not in axes)

    def group(self, axes: Iterable[str]) -> str:
        """How many heads of the output share a head of a tensor; "1" if it has them all."""
        own = head_of(axes)
        if own == self.head:
            return "1"
        return f"{self.head} // {own}" if own else self.head

    def programs(self) -> str:
        """The number of programs per sequence."""
        parts = [self.head] if self.head else []
        return " * ".join(parts + [f"N{axis}" for axis in self.blocked]) or "1"

    def place(self) -> list[str]:
        """Which part of the work is this program's."""
        lines = []
        for product in self.spec.products:
            for part, factor in zip(product.parts, product.factors, strict=True):
                lines.append(f"{part}: tl.constexpr = {factor}")
                lines.append(f"B{part}: tl.constexpr = B{factor}")
        lines += [f"N{a}: tl.constexpr = ({a} + B{a} - 1) // B{a}" for a in self.blocked]
        lines += [f"PROGRAMS: tl.constexpr = {self.programs()}", "pid = tl.program_id(0)"]
        rest = "pid"
        for axis in reversed(self.blocked):
            lines.append(f"{self.index(axis)} = {rest} % N{axis}")
            rest += f" // N{axis}"
        if self.head:
            lines.append(f"{self.index(self.head)} = {rest} % {self.head}")
        coarse = {head_of(t.axes) for t in arguments(self.spec)} | set(self.level.state_heads)
        for axis in sorted(coarse - {self.head, ""}):
            value = f"{self.index(self.head)} // ({self.head} // {axis})"
            lines.append(f"{self.index(axis)} = {value}")
        lines.append("i_n, _, bos, n_t = locate(cu_seqlens, pid // PROGRAMS, T, N, 1 << 30)")
        for axis in self.order:
            start = f"{self.index(axis)} * B{axis} + " if axis in self.blocked else ""
            lines.append(f"o_{axis.lower()} = {start}tl.arange(0, B{axis})")
        return lines + [f"m_{axis.lower()} = o_{axis.lower()} < {axis}" for axis in self.order]

    def first(self, axes: Sequence[str]) -> str:
        """The condition that this program is the first of those that share a tensor, or ""."""
        parts = [f"({self.index(axis)} == 0)" for axis in self.lacks(axes)]
        if self.group(axes) != "1":
            own = head_of(axes)
            index = self.index(self.head)
            parts.append(f"({index} % ({self.head} // {own}) == 0)" if own else f"({index} == 0)")
        return " & ".join(parts)

    def tile(self, axes: Sequence[str]) -> tuple[str, ...]:
        """Feature axes in the order of tiles."""
        return tuple(sorted(self.features(axes), key=self.order.index))

    def offsets(self, axes: Sequence[str]) -> str:
        """The offsets of a tile in a tensor with the feature axes `axes`, in memory order."""
        features = self.features(axes)
        terms = []
        for axis in self.tile(axes):
            later = features[features.index(axis) + 1 :]
            terms.append(" * ".join([_spread(f"o_{axis.lower()}", axis, self.tile(axes)), *later]))
        return " + ".join(terms)

    def mask(self, axes: Sequence[str]) -> str:
        """The mask of a tile, or "" where there is none."""
        tile = self.tile(axes)
        return " & ".join(_spread(f"m_{axis.lower()}", axis, tile) for axis in tile)

    def within(self, axes: Sequence[str]) -> str:
        """The offsets in a tile that is stored as it is, padding included."""
        tile = self.tile(axes)
        terms = []
        for n, axis in enumerate(tile):
            later = [f"B{each}" for each in tile[n + 1 :]]
            terms.append(" * ".join([_spread(f"tl.arange(0, B{axis})", axis, tile), *later]))
        return " + ".join(terms) or "0"

    def elements(self, axes: Sequence[str]) -> str:
        """The number of elements of a tile."""
        return " * ".join(map(self.block, self.tile(axes))) or "1"

    def row(self, outer: str, axes: Sequence[str], head: str | None = None) -> str:
        """The offset of row `outer` and head in a tensor with `axes`: its first feature."""
        own = head_of(axes) if head is None else head
        code = outer
        if own:
            code = f"({code} * {own} + {self.index(own)})"
        features = self.features(axes)
        if len(features) == 1:
            return f"{code} * {features[0]}"
        return f"{code} * ({' * '.join(features)})" if features else code

    def stride(self, axes: Sequence[str], head: str | None = None) -> str:
        """The distance from a token to the next, as a factor of `i_t`."""
        own = head_of(axes) if head is None else head
        parts = [*filter(None, (own,)), *self.features(axes)]
        if not parts:
            return "i_t"
        return f"i_t * {parts[0]}" if len(parts) == 1 else f"i_t * ({' * '.join(parts)})"

    def state(self, state: State) -> tuple[str, ...]:
        """A state's axes with its heads."""
        return (*self.level.state_heads, *state.axes)

    def partial(self, axes: Sequence[str], count: str) -> str:
        """The number of the partial sum, times `count`, or "" where there is one."""
        lacks = self.lacks(axes)
        if not lacks:
            return ""
        code = self.index(lacks[0])
        for axis in lacks[1:]:
            code = f"({code} * N{axis} + {self.index(axis)})"
        return f"{code} * {count} + "

    def counts(self, tensor: Tensor | Sequence[str]) -> str:
        """How many partial sums a gradient has, in terms of the host."""
        axes = tensor.axes if isinstance(tensor, Tensor) else tensor
        return " * ".join(f"cdiv({axis}, B{axis})" for axis in self.lacks(axes)) or "1"


def head_of(axes: Iterable[str]) -> str:
    """The head axis among `axes`, or ""."""
    return next((axis for axis in axes if axis != "T" and not is_feature(axis)), "")


def _spread(code: str, axis: str, tile: Sequence[str]) -> str:
    if len(tile) == 1:
        return code
    return f"{code}[{', '.join(':' if each == axis else 'None' for each in tile)}]"
