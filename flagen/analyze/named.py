"""Arrays with named axes: `+` and `*` broadcast by name, contractions sum over a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flagen.parse.spec import parts_of

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Named:
    """`data`, whose dimensions are called `axes`."""

    axes: tuple[str, ...]
    data: Array

    def at(self, axis: str, index: int) -> Named:
        """The slice at `index` of `axis`, or the array itself if it does not have the axis."""
        if axis not in self.axes:
            return self
        place = self.axes.index(axis)
        return Named(
            self.axes[:place] + self.axes[place + 1 :], np.asarray(self.data.take(index, place))
        )

    def over(self, axes: tuple[str, ...]) -> Array:
        """The data with the dimensions of `axes`, of size 1 where the array does not vary."""
        present = [axis for axis in axes if axis in self.axes]
        data = self.data.transpose([self.axes.index(axis) for axis in present])
        view: Array = data[tuple(slice(None) if axis in self.axes else None for axis in axes)]
        return view


def scalar(value: float) -> Named:
    """A number as an array without axes."""
    return Named((), np.asarray(value, dtype=np.float64))


def pointwise(function: Callable[..., Any], *operands: Named) -> Named:
    """`function` of the operands, broadcast by name."""
    axes = tuple(dict.fromkeys(axis for operand in operands for axis in operand.axes))
    return Named(axes, function(*(operand.over(axes) for operand in operands)))


def kron(
    left: Named, right: Named, factors: tuple[str, str], axis: str, sizes: Mapping[str, int]
) -> Named:
    """The products of all elements of vectors along the two `factors`, along `axis`."""
    pair = []
    for vector, factor, part in zip((left, right), factors, parts_of(axis), strict=True):
        whole = pointwise(np.multiply, vector, Named((factor,), np.ones(sizes[part])))
        renamed = tuple(part if each == factor else each for each in whole.axes)
        pair.append(Named(renamed, whole.data))
    return joined(pointwise(np.multiply, *pair), axis)


def joined(operand: Named, axis: str) -> Named:
    """The array with the two parts of `axis` as one axis, if it has them."""
    parts = parts_of(axis)
    if parts[0] not in operand.axes:
        return operand
    rest = tuple(each for each in operand.axes if each not in parts)
    data = operand.over((*rest, *parts))
    return Named((*rest, axis), data.reshape(*data.shape[:-2], -1))


def parted(operand: Named, axis: str, sizes: Mapping[str, int]) -> Named:
    """The array with `axis` as its two parts, if it has it: what `joined` undoes."""
    if axis not in operand.axes:
        return operand
    place = operand.axes.index(axis)
    parts, shape = parts_of(axis), operand.data.shape
    lengths = (sizes[part] for part in parts)
    data = operand.data.reshape(*shape[:place], *lengths, *shape[place + 1 :])
    return Named((*operand.axes[:place], *parts, *operand.axes[place + 1 :]), data)


def total(operand: Named, axis: str, size: int) -> Named:
    """The sum over `axis`, also where the operand does not vary over it."""
    if axis not in operand.axes:
        return Named(operand.axes, operand.data * size)
    place = operand.axes.index(axis)
    return Named(operand.axes[:place] + operand.axes[place + 1 :], operand.data.sum(place))
