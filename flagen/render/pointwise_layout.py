"""Where the kernels of a pointwise stage find things: programs, rows, offsets, as Triton text.

The grid has a program per block of rows, and of heads where rows are tokens. A tensor that lacks
one of these axes is shared by several programs: the first of them writes it where it is a result,
and its gradient is a sum of theirs where it is an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagen.derive.pointwise import Axes, Pointwise


@dataclass(frozen=True, slots=True)
class PointwiseLayout:
    """The axes of a stage's kernels and the text that follows from them."""

    program: Pointwise

    @property
    def rows(self) -> str:
        """The axis of rows."""
        return self.program.axes.rows

    @property
    def heads(self) -> str:
        """The axis of heads that programs work apart on, or ""."""
        return self.program.axes.outer_heads

    @property
    def sizes(self) -> list[str]:
        """The axes whose sizes kernels are told as constants: not those of rows and of parts."""
        return [axis for axis in self._sized if axis != self.rows]

    @property
    def blocks(self) -> list[str]:
        """The sides of tiles that kernels are told."""
        return [f"B{axis}" for axis in self._sized]

    @property
    def _sized(self) -> list[str]:
        axes = self.program.axes
        return [axis for axis in axes.order if axis not in axes.factors]

    @property
    def scale(self) -> list[str]:
        """The number `scale`, if it is an argument."""
        return ["scale"] if self.program.has_scale else []

    @property
    def inputs(self) -> dict[str, Axes]:
        """The inputs and their axes."""
        return dict(self.program.inputs)

    @property
    def results(self) -> dict[str, Axes]:
        """The results, by their names in the kernels, and their axes."""
        return {self.program.inside(result): result.axes for result in self.program.results}

    @property
    def given(self) -> dict[str, Axes]:
        """The results' gradients and their axes."""
        return {f"d{name}": axes for name, axes in self.results.items()}

    @property
    def gradients(self) -> dict[str, Axes]:
        """The inputs' gradients and their axes."""
        return {f"d{name}": axes for name, axes in self.inputs.items()}

    @property
    def recalled(self) -> dict[str, Axes]:
        """The inputs that the backward reads."""
        read = self.program.backward.inputs
        return {name: axes for name, axes in self.inputs.items() if name in read}

    @property
    def arguments(self) -> list[str]:
        """The arguments of the stage's function."""
        return [*self.inputs, *(name for name, _ in self.program.sizers), *self.scale]

    def lacks(self, axes: Axes) -> list[str]:
        """The axes that programs work apart on and that a tensor lacks."""
        tile = self.program.axes.tile(axes)
        return [axis for axis in (self.rows, self.heads) if axis and axis not in tile]

    def place(self) -> list[str]:
        """Which part of the work is this program's, and the offsets and masks of its tiles."""
        index = "tl.program_id(0)"
        lines = []
        for part, factor in self.program.axes.factors.items():
            lines.append(f"{part}: tl.constexpr = {factor}")
            lines.append(f"B{part}: tl.constexpr = B{factor}")
        if heads := self.heads:
            lines.append(f"N{heads}: tl.constexpr = ({heads} + B{heads} - 1) // B{heads}")
            lines.append(f"{_index(heads)} = {index} % N{heads}")
            index = f"({index} // N{heads})"
        lines.append(f"{_index(self.rows)} = {index}.to(tl.int64)")
        lines.append(f"r_0 = {_index(self.rows)} * B{self.rows}")
        for axis in self.program.axes.order:
            start = f"{_index(axis)} * B{axis} + " if axis == self.heads else ""
            lines.append(f"o_{axis.lower()} = {start}tl.arange(0, B{axis})")
        for axis in self.program.axes.order:
            start = "r_0 + " if axis == self.rows else ""
            lines.append(f"m_{axis.lower()} = {start}o_{axis.lower()} < {axis}")
        tensors = (*self.inputs.values(), *self.results.values())
        for tile in dict.fromkeys(map(self.program.axes.tile, tensors)):
            if len(tile) > 1:
                lines.append(f"{_of('o', tile)} = {_offsets(tile)}")
                masks = (_spread(f"m_{axis.lower()}", axis, tile) for axis in tile)
                lines.append(f"{_of('m', tile)} = {' & '.join(masks)}")
        return lines

    def start(self, name: str, axes: Axes, partial: bool = False) -> list[str]:
        """The pointer to a program's rows of a tensor, or to its part of a `partial` sum."""
        row = self._row(axes, partial)
        elements = [axis for axis in self.program.axes.tile(axes) if axis != self.rows]
        return [f"p_{name} = {name} + {times(row, elements)}"] if row else []

    def pointer(self, name: str, axes: Axes, partial: bool = False) -> str:
        """The pointers to a tile of a tensor, from `start`."""
        base = f"p_{name}" if self._row(axes, partial) else name
        return f"{base} + {_of('o', self.program.axes.tile(axes))}"

    def mask(self, axes: Axes) -> str:
        """The mask of a tile."""
        return _of("m", self.program.axes.tile(axes))

    def first(self, axes: Axes) -> str:
        """The mask of a result's tile where several programs have it: it is the first one's."""
        return self.mask(axes) + "".join(f" & ({_index(axis)} == 0)" for axis in self.lacks(axes))

    def _row(self, axes: Axes, partial: bool) -> str:
        """The number of a program's first row in a tensor, or "" for a tensor without rows."""
        has_rows = "T" in axes
        if not partial or not self.lacks(axes):
            return "r_0" if has_rows else ""
        if has_rows:
            return f"({_index(self.heads)} * {self.rows}.to(tl.int64) + r_0)"
        index = _index(self.rows)
        if self.heads in self.lacks(axes):
            return f"({index} * N{self.heads} + {_index(self.heads)})"
        return index

    def counts(self, axes: Axes) -> str:
        """How many partial sums a gradient has, in terms of the host."""
        return " * ".join(f"cdiv({axis}, B{axis})" for axis in self.lacks(axes)) or "1"


def times(*factors: str | Sequence[str]) -> str:
    """A product; a sequence is a product that stands in parentheses."""
    codes = []
    for each in factors:
        parts = [each] if isinstance(each, str) else list(each)
        codes += [f"({' * '.join(parts)})"] if len(parts) > 1 else parts
    return " * ".join(codes)


def _index(axis: str) -> str:
    return f"i_{axis.lower()}"


def _of(what: str, tile: Axes) -> str:
    """The name of offsets or masks of a tile."""
    return "_".join([what, *(axis.lower() for axis in tile)])


def _spread(code: str, axis: str, tile: Axes) -> str:
    return f"{code}[{', '.join(':' if each == axis else 'None' for each in tile)}]"


def _offsets(tile: Axes) -> str:
    """The offsets of a tile's elements from its first row."""
    return " + ".join(
        times(_spread(f"o_{axis.lower()}", axis, tile), tile[place + 1 :])
        for place, axis in enumerate(tile)
    )
