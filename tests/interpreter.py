"""Triton's interpreter without what it repeats, which is half of the time that tests spend in it.

It prepares its language anew in every call of a helper function, though nothing changed since the
launch; makes a table of all dtypes to look one up, and a type for the shape of every tensor; looks
for overflows of integers with some ten operations of its own; and scans element by element. What
kernels compute, and in which order, stays as it is. All of this is private to Triton: what a
version lacks is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from triton.language import core, semantic
from triton.runtime import interpreter


def quicken() -> None:
    if hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = once_per_launch(interpreter._patch_lang)
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = by_name(interpreter._get_np_dtype)
    if hasattr(core, "_type_for_tuple_values"):
        core._type_for_tuple_values = by_sizes(core._type_for_tuple_values)
    if hasattr(interpreter, "ScanOps"):
        interpreter.ScanOps.generic_scan = scan_by_rows
    kind = getattr(semantic, "TritonSemantic", None)
    if hasattr(kind, "binary_op_sanitize_overflow_impl"):
        kind.binary_op_sanitize_overflow_impl = check_overflow
    if hasattr(kind, "broadcast_impl_value"):
        kind.broadcast_impl_value = of_one_shape(kind.broadcast_impl_value)


def once_per_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A launch restores the language in the end; until then the modules patched are known."""
    patched: set[int] = set()

    class Scope:
        def __init__(self, scope: Any) -> None:
            self.scope = scope

        def restore(self) -> None:
            patched.clear()
            self.scope.restore()

    def patch_lang(function: Any) -> Scope:
        module = id(function.__globals__)
        if module in patched:
            return Scope(interpreter._LangPatchScope())
        patched.add(module)
        return Scope(patch(function))

    return patch_lang


def by_name(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def found(dtype: Any) -> Any:
        name = dtype.element_ty.name if dtype.is_block() else dtype.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    return found


def by_sizes(make: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[int, ...], Any] = {}

    def made(values: Any, fields: Any = None) -> Any:
        sizes = tuple(
            value.value if isinstance(value, core.constexpr) else None for value in values
        )
        if fields is not None or not all(type(size) is int for size in sizes):
            return make(values, fields)
        if sizes not in known:
            known[sizes] = make(values)
        return known[sizes]

    return made


OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def check_overflow(self: Any, x: Any, y: Any, operation: Callable[..., Any]) -> None:
    """What Triton's own is for; that asserts an object, which is true whatever it holds."""
    kind = x.type.scalar
    if kind.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
        return
    wide = (each.handle.data.astype(np.int64) for each in (x, y))
    found = OPERATIONS[operation.__name__](*wide)
    low, high = kind.get_int_min_value(), kind.get_int_max_value()
    assert low <= found.min() and found.max() <= high, (
        f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"
    )


def of_one_shape(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    def made(self: Any, x: Any, y: Any) -> tuple[Any, Any]:
        alike = x.type.is_block() and y.type.is_block()
        if alike and x.handle.data.shape == y.handle.data.shape:
            return x, y
        return broadcast(self, x, y)

    return made


def scan_by_rows(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """The elements that a step of the scan combines with those before them, all at once."""
    data = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
    found = [x.copy() for x in data]
    for i in range(1, len(found[0])):
        rows = [
            self.to_tensor(x[at], each.dtype)
            for made, at in ((found, i - 1), (data, i))
            for x, each in zip(made, inputs, strict=True)
        ]
        combined = self.combine_fn.fn(*rows)
        combined = combined if isinstance(combined, tuple) else (combined,)
        for x, value in zip(found, combined, strict=True):
            x[i] = value.handle.data.reshape(x[i].shape)
    return [
        self.to_tensor(np.moveaxis(x, 0, self.axis), each.dtype)
        for x, each in zip(found, inputs, strict=True)
    ]
