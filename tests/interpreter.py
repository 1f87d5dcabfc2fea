"""Triton's interpreter without what it repeats, which is most of the time that tests spend in it.

It prepares its language anew in every launch and every call of a helper function; makes a type for
every tensor and every shape, names it, and compares it with others of its kind; makes a table of
all dtypes to look one up; looks for overflows of integers with some ten operations of its own; and
scans element by element. What kernels compute, and in which order, stays as it is. All of this is
private to Triton: what a version lacks is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from triton import language
from triton.language import core, semantic
from triton.runtime import interpreter


def quicken() -> None:
    if hasattr(interpreter, "_LangPatchScope"):
        if hasattr(interpreter, "_patch_attr"):
            interpreter._patch_attr = with_semantic
        interpreter._patch_lang = once(interpreter._patch_lang)
    if hasattr(interpreter, "_get_np_dtype"):
        interpreter._get_np_dtype = by_name(interpreter._get_np_dtype)
    if hasattr(interpreter, "ScanOps"):
        interpreter.ScanOps.generic_scan = scan_by_rows
    intern(core.block_type)
    core.tensor.__init__ = of_its_type(core.tensor.__init__)
    core.dtype.__eq__ = or_itself(core.dtype.__eq__)
    kind = getattr(semantic, "TritonSemantic", None)
    if hasattr(kind, "binary_op_sanitize_overflow_impl"):
        kind.binary_op_sanitize_overflow_impl = check_overflow
    if hasattr(kind, "binary_op_type_checking_impl"):
        kind.binary_op_type_checking_impl = by_types(kind)
    if hasattr(kind, "broadcast_impl_value"):
        kind.broadcast_impl_value = of_one_type(kind.broadcast_impl_value)


def once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The language stays prepared: this process compiles nothing."""
    done = False

    def patch_lang(function: Any) -> Any:
        nonlocal done
        if not done:
            patch(SimpleNamespace(__globals__={"tl": language, "core": core}))
            core.tensor.__index__ = lambda self: int(self.handle.data.item())
            done = True
        return interpreter._LangPatchScope()

    return patch_lang


def with_semantic(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """A builtin that gets its semantic by itself."""
    made = semantic.TritonSemantic(builder)
    while getattr(member, "__code__", None) is CHECK_OF_SEMANTIC:
        member = member.__wrapped__

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = made
        return member(*args, **kwargs)

    scope.set_attr(obj, name, call)


CHECK_OF_SEMANTIC = core.builtin(lambda: None).__code__


def intern(kind: Any) -> None:
    """One object for all block types of an element type and a shape."""
    known: dict[tuple[Any, ...], Any] = {}
    init = kind.__init__

    def key(element_ty: Any, shape: Any) -> tuple[Any, ...] | None:
        sizes = tuple([x.value if isinstance(x, core.constexpr) else x for x in shape])
        for size in sizes:
            if type(size) is not int:
                return None
        return element_ty.name, getattr(element_ty, "address_space", None), sizes

    def new(cls: Any, element_ty: Any, shape: Any) -> Any:
        return known.get(key(element_ty, shape)) or object.__new__(cls)

    def made(self: Any, element_ty: Any, shape: Any) -> None:
        if "shape" not in self.__dict__:
            init(self, element_ty, shape)
            if found := key(element_ty, shape):
                known[found] = self

    kind.__new__ = staticmethod(new)
    kind.__init__ = made
    kind.__eq__ = or_itself(kind.__eq__)
    to_ir = kind.to_ir
    kind.to_ir = lambda self, builder: to_ir(self, builder) if self.element_ty.is_ptr() else self


def of_its_type(init: Callable[..., None]) -> Callable[..., None]:
    """All of a tensor but its handle is the same for every tensor of its type."""

    def made(self: Any, handle: Any, type: Any) -> None:
        common = type.__dict__.get("_of_tensors")
        if common is None:
            init(self, handle, type)
            type._of_tensors = {n: x for n, x in self.__dict__.items() if n != "handle"}
        else:
            self.__dict__.update(common)
            self.handle = handle

    return made


def or_itself(equal: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda self, other: self is other or equal(self, other)


def by_types(kind: Any) -> Callable[..., Any]:
    """The operands of a binary operation: numpy broadcasts them, and numbers are made once."""
    check, broadcast = kind.binary_op_type_checking_impl, kind.broadcast_impl_value
    to_tensor, scalar_constant = kind.to_tensor, kind.scalar_constant
    numbers: dict[tuple[Any, ...], Any] = {}

    class Operands(kind):
        def broadcast_impl_value(self, x: Any, y: Any) -> tuple[Any, Any]:
            if x.type is y.type:
                return x, y
            known = x.type.__dict__.setdefault("_with", {})
            if id(y.type) not in known:
                made = broadcast(self, x, y)
                known[id(y.type)] = made[0].type, made[1].type, y.type  # alive: its id is its own
            a, b, _ = known[id(y.type)]
            x = x if x.type is a else core.tensor(x.handle, a)
            return x, y if y.type is b else core.tensor(y.handle, b)

        def to_tensor(self, x: Any, check_type: bool = True) -> Any:
            if type(x) not in (int, float):
                return to_tensor(self, x, check_type)
            return once_made(x, "", lambda: to_tensor(self, x))

        def scalar_constant(self, value: Any, dtype: Any) -> Any:
            return once_made(value, dtype.name, lambda: scalar_constant(self, value, dtype))

    def once_made(value: Any, dtype: str, make: Callable[[], Any]) -> Any:
        key = type(value), value, dtype
        if key not in numbers:
            numbers[key] = make()
        return numbers[key]

    def made(self: Any, x: Any, y: Any, *options: bool, **named: bool) -> Any:
        tensors = isinstance(x, core.tensor) and isinstance(y, core.tensor)
        if tensors and x.type is y.type and not x.dtype.is_ptr() and not (options[3:] or named):
            return x, y
        if "_operands" not in self.__dict__:
            self._operands = Operands(self.builder)
        return check(self._operands, x, y, *options, **named)

    return made


def of_one_type(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, x, y: (x, y) if x.type is y.type else broadcast(self, x, y)


def by_name(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def found(dtype: Any) -> Any:
        name = dtype.element_ty.name if dtype.is_block() else dtype.name
        if name not in known:
            known[name] = look_up(dtype)
        return known[name]

    return found


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
