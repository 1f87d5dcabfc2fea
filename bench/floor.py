"""The least time that a call can take: its bytes over the rate at which the device copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Sized(Protocol):
    """What has a size in bytes, as tensors have."""

    nbytes: int


def forward_bytes(inputs: Iterable[Sized], outputs: Iterable[Sized]) -> int:
    """Each input read once, each output written once."""
    return sum(x.nbytes for x in inputs) + sum(x.nbytes for x in outputs)


def backward_bytes(inputs: Iterable[Sized], outputs: Iterable[Sized]) -> int:
    """The outputs' gradients and the inputs read once, each input's gradient written once."""
    return sum(x.nbytes for x in outputs) + 2 * sum(x.nbytes for x in inputs)


def microseconds(count: int, bytes_per_second: float) -> float:
    """How long `count` bytes take."""
    return count / bytes_per_second * 1e6
