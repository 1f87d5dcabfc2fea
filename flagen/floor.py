"""What a call must cost at least: the bytes that must move and the products that must be formed.

Each input is read once and each output written once; the backward reads the inputs and the output's
gradient and writes the inputs' gradients. Products are those of the chunk form. Needs no SymPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

BYTES_PER_SECOND = 4.26e12
"""The rate at which an H200 copies, measured."""

FLOPS = {"bfloat16": 695e12, "float16": 695e12}
"""The rate of an H200's matrix units, measured for bfloat16, whose rate float16 shares."""

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_SHAPE = {"B": 4, "T": 2048, "H": 16, "K": 128, "V": 128}
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """The bytes and the multiply-adds of a pass; `macs` is None where they are not known."""

    bytes: int
    macs: int | None

    def __add__(self, other: Cost) -> Cost:
        macs = None if self.macs is None or other.macs is None else self.macs + other.macs
        return Cost(self.bytes + other.bytes, macs)

    @property
    def memory_seconds(self) -> float:
        """The least time for the bytes."""
        return self.bytes / BYTES_PER_SECOND

    def matrix_seconds(self, dtype: str) -> float | None:
        """The least time for the products, where their rate is known."""
        rate = FLOPS.get(dtype)
        return None if rate is None or self.macs is None else 2 * self.macs / rate


def read_shape(text: str | None) -> dict[str, int]:
    """Axis sizes from `4,2048,16,128,128` or `T=8192,K=64`; what is left out has its default.

    Raises ValueError with a message for the user.
    """
    shape = dict(DEFAULT_SHAPE)
    parts = [part.strip() for part in text.split(",")] if text else []
    named = any("=" in part for part in parts)
    if parts and not named and len(parts) != len(shape):
        raise ValueError(f"a shape is five numbers, {','.join(shape)}, not {len(parts)}")
    if not named:
        parts = [f"{axis}={size}" for axis, size in zip(shape, parts, strict=False)]
    for part in parts:
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if not (axis.isascii() and axis.isalnum() and axis[0].isupper()):
            raise ValueError(f"{axis or part!r} is no axis; write B,T,H,K,V or e.g. T=8192,K=64")
        if not (size.isascii() and size.isdigit() and 0 < int(size) <= 10**9):
            raise ValueError(
                f"the size of {axis} must be a whole number from 1 to 10**9, not {size!r}"
            )
        shape[axis] = int(size)
    return shape


def size_of(axis: str, shape: Mapping[str, int]) -> int:
    """The size of an axis; other heads and features than the usual ones are as large as H and K."""
    return shape.get(axis) or (shape["H"] if axis in ("HQ", "HV", "G") else shape["K"])


def elements(axes: tuple[str, ...], shape: Mapping[str, int]) -> int:
    """How many elements a tensor has: one per batch, too, if it has tokens."""
    batch = shape["B"] if "T" in axes else 1
    return batch * prod(size_of(axis, shape) for axis in axes)


def walk_macs(heads: int, key: int, value: int, shape: Mapping[str, int]) -> int:
    """The multiply-adds of one walk of the family "diagonal outer product".

    Per head and chunk of C tokens: C² K for the scores, C² V to apply them, C K V to read the state
    and as many to write it.
    """
    chunks = shape["B"] * -(-shape["T"] // CHUNK)
    per_chunk = CHUNK * CHUNK * (key + value) + 2 * CHUNK * key * value
    return chunks * heads * per_chunk


def passes(
    inputs: Mapping[tuple[str, ...], int],
    output: tuple[str, ...],
    dtype: str,
    shape: Mapping[str, int],
    macs: int | None,
) -> tuple[Cost, Cost]:
    """The forward and the backward, whose walks are three of the forward's.

    `inputs` counts the inputs by their axes; all are of `dtype`.
    """
    size = SIZES[dtype]
    read = size * sum(count * elements(axes, shape) for axes, count in inputs.items())
    written = size * elements(output, shape)
    return Cost(read + written, macs), Cost(2 * read + written, None if macs is None else 3 * macs)
