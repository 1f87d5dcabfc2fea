"""The package of an operator: what it exports, and the function that picks a form."""

from __future__ import annotations

from dataclasses import dataclass

from flagen.derive.derivation import Derivation
from flagen.render.environment import Block
from flagen.render.reference import signature_of, summary
from flagen.render.signature import Signature


@dataclass(frozen=True, slots=True)
class PackageContext:
    """What `module/init.py.jinja` may print."""

    name: str
    summary: str
    imports: Block
    exports: str
    parameters: Block
    scale_parameter: Block
    state_type: str
    reference_form: str
    pick: Block


def package_context(derivation: Derivation) -> PackageContext:
    """The lines of an operator's `__init__.py`."""
    spec, signature = derivation.recurrence.spec, signature_of(derivation)
    name, forms = spec.name, derivation.forms
    naive = [f"naive_{name}"]
    if derivation.plain:
        naive.append(f"naive_chunk_{name}")
    exports = sorted([*_functions(name, forms), *naive, name])
    call = signature.call("initial_state", "output_final_state", "cu_seqlens=cu_seqlens")
    return PackageContext(
        name=name,
        summary=summary(spec),
        imports=Block.of(_imports(name, forms, naive)),
        exports=repr(exports).replace("'", '"'),
        parameters=Block(tuple(signature.parameters())),
        scale_parameter=Block(tuple(signature.scale_parameter())),
        state_type=signature.state_type,
        reference_form=f"{forms[0]}_{name}",
        pick=Block.of(_pick(signature, forms, f"({call})")),
    )


_FILES = {
    "chunk": "chunk",
    "decode": "fused_recurrent",
    "fused_chunk": "chunk",
    "fused_recurrent": "fused_recurrent",
    "parallel": "parallel",
}


def _functions(name: str, forms: tuple[str, ...]) -> list[str]:
    """The functions of the forms; that of the token level has one beside it for pools of states."""
    decode = ["decode"] if "fused_recurrent" in forms else []
    return [f"{form}_{name}" for form in (*forms, *decode)]


def _imports(name: str, forms: tuple[str, ...], naive: list[str]) -> str:
    found: dict[str, list[str]] = {}
    for function in _functions(name, forms):
        found.setdefault(_FILES[function.removesuffix(f"_{name}")], []).append(function)
    lines = [f"from .{file} import {', '.join(sorted(names))}" for file, names in found.items()]
    return "\n".join(sorted([*lines, f"from .naive import {', '.join(sorted(naive))}"]))


def _pick(signature: Signature, forms: tuple[str, ...], arguments: str) -> str:
    """The body of the function without a prefix."""
    name, first = signature.spec.name, signature.first
    rank = next(len(tensor.axes) + 1 for tensor in signature.tensors if tensor.name == first)
    chunked = next((form for form in ("chunk", "fused_chunk") if form in forms), None)
    if chunked and "fused_recurrent" in forms:
        return (
            f"if {first}.dim() == {rank} and {first}.shape[1] <= 16:\n"
            f"    return fused_recurrent_{name}{arguments}\n"
            f"return {chunked}_{name}{arguments}"
        )
    return f"return {chunked or forms[0]}_{name}{arguments}"
