"""Who is measured: flagen's forms, the references, and peers that are installed.

Every contender is called with its inputs by name and returns its output, or its output and a state.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import flagen.ops
from bench import cases

Function = Callable[..., Any]

FLA_NAMES = {"linear_attention": "linear_attn"}
"""Where flash-linear-attention calls an operator differently."""
FLA_OPTIONS = {"linear_attn": {"normalize": False}}
"""What makes an operator of flash-linear-attention compute the same."""


@dataclass(frozen=True)
class Contender:
    """A function with what is known of it. `reference` computes the same in any dtype."""

    name: str
    op: str
    function: str
    source: str
    call: Function
    reference: Function
    inputs: tuple[str, ...]
    most_T: int = 1 << 30
    # Relative RMS error. Peers get twice what flagen allows itself.
    limit: float = 5e-3
    # Compiled anew for every shape: checked only at the shape at which it is timed.
    per_shape: bool = False
    # Compilation or tuning may take minutes: its first call is under a time limit.
    slow_start: bool = False

    def run(self, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
        """The tensors that the function returns."""
        result = self.call(**{n: x for n, x in inputs.items() if n in self.allowed}, **options)
        return tensors(result)

    @property
    def allowed(self) -> tuple[str, ...]:
        """The names of what it may be given."""
        return (*self.inputs, "initial_state")


def tensors(result: Any) -> tuple[Tensor, ...]:
    """What is a tensor of a function's result."""
    results = (result,) if isinstance(result, Tensor) else result
    return tuple(x for x in results if isinstance(x, Tensor))


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention in the operators' layout. Another layer; what users leave behind."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def compiled(reference: Function) -> Function:
    """`torch.compile` of the chunked reference, unrolled into at most 16 chunks.

    Its loop over chunks is Python: with chunks of 64 a long sequence takes minutes to compile.
    """
    chunked = "chunk_size" in inspect.signature(reference).parameters
    fast: dict[Any, Function] = {}

    def call(**inputs: Any) -> Any:
        shape = next(iter(inputs.values())).shape
        if shape not in fast:
            torch._dynamo.reset()  # a function may be recompiled only so often
            fast.clear()
            fast[shape] = torch.compile(reference, dynamic=False)
        return fast[shape](**inputs, **({"chunk_size": max(64, shape[1] // 16)} if chunked else {}))

    return call


def in_place(decode: Function) -> Function:
    """A step of `decode_X`, whose pool is the state that it is given: a slot per sequence."""
    slots: dict[Any, Tensor] = {}

    def call(*, initial_state: Tensor, output_final_state: bool, **inputs: Tensor) -> Any:
        key = initial_state.shape[0], initial_state.device
        if key not in slots:
            slots[key] = torch.arange(key[0], device=key[1])
        o, _ = decode(**inputs, state_pool=initial_state, slots=slots[key])
        return o, initial_state

    return call


def contenders(
    op: str,
    only: Iterable[str] = (),
    *,
    peers: bool = True,
    extra: Iterable[str] = (),
    quick: bool = False,
    decode: bool = False,
) -> tuple[list[Contender], list[str]]:
    """Who competes at `op`, and notes about who could not. `only` names forms."""
    found = cases.forms(op)
    functions = {form: getattr(flagen.ops, name) for form, name in found.items()}
    reference = functions.get("naive_chunk") or functions["naive"]
    own = [form for form in functions if not form.startswith(("naive", "decode"))]
    if decode:
        own = [form for form in ("decode", "fused_recurrent") if form in functions]
        if "decode" in own:
            functions["decode"] = in_place(functions["decode"])
    if unknown := set(only) - set(functions) - {"sdpa", "compiled"}:
        raise ValueError(f"{op} has no form {', '.join(sorted(unknown))}; it has {', '.join(own)}")
    # of the last: a step in place takes whatever `decode_X` takes
    inputs = cases.required_inputs(functions[own[-1]] if own else reference)
    make = partial(Contender, op=op, reference=reference, inputs=inputs)

    out = [
        make(name=form, function=found[form], source="flagen", call=functions[form])
        for form in own
        if not only or form in only
    ]
    notes: list[str] = []
    if peers:
        out += _fla(op, [c.name for c in out], make, notes)
    for text in extra:
        name, _, place = text.partition("=")
        call = _resolve(place)
        out.append(
            make(name=name, function=place, source=name, call=call, limit=1e-2, slow_start=True)
        )
    if not decode and {"q", "k", "v"} <= set(inputs) and (not only or "sdpa" in only):
        qkv = make(name="sdpa", function="scaled_dot_product_attention", source="torch", call=sdpa)
        out.append(replace(qkv, reference=sdpa, inputs=("q", "k", "v"), limit=1e-2))
    if not decode and (not only or "naive" in only):
        naive = functions["naive"]
        out.append(make(name="naive", function=found["naive"], source="reference", call=naive))
    if not decode and (not only or "compiled" in only):
        # Last, because a run that has little time must first have everything else.
        call, function = compiled(reference), f"torch.compile({reference.__name__})"
        slow = make(name="compiled", function=function, source="torch", call=call)
        out.append(replace(slow, per_shape=True, slow_start=True))
    limits = {name: pair[quick] for name, pair in cases.MOST_T.items()}
    return [replace(c, most_T=limits.get(c.name.split()[-1], c.most_T)) for c in out], notes


def _fla(op: str, forms: list[str], make: Function, notes: list[str]) -> list[Contender]:
    """The same forms from flash-linear-attention, where it is installed and has them."""
    name = FLA_NAMES.get(op, op)
    try:
        version = getattr(import_module("fla"), "__version__", "?")
        module = import_module(f"fla.ops.{name}")
    except Exception as error:  # its imports fail in many ways on stacks it does not know
        notes.append(f"flash-linear-attention not measured: {error}")
        return []
    tuned = ", its configurations given" if os.environ.get("FLA_CONFIG_DIR") else ""
    notes.append(f"flash-linear-attention {version}{tuned}")
    out = []
    for form in forms:
        if call := getattr(module, f"{form}_{name}", None):
            call = partial(call, **FLA_OPTIONS.get(op, {}))
            peer = make(name=f"fla {form}", function=f"{form}_{name}", source="fla", call=call)
            out.append(replace(peer, limit=1e-2, slow_start=True))
    return out


def _resolve(place: str) -> Function:
    """The function at `module:name`."""
    module, _, name = place.partition(":")
    if not name:
        raise ValueError(f"--peer is NAME=module:function, not {place!r}")
    return getattr(import_module(module), name)
