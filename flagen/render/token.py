"""The module of the token level: launches, results, gradients and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagen.derive.derivation import Derivation
from flagen.render.environment import Block, fill
from flagen.render.finish import spec_digest
from flagen.render.pointwise import calls
from flagen.render.reference import equations, signature_of, summary
from flagen.render.signature import Signature
from flagen.render.step_text import HELPERS
from flagen.render.token_host import Host
from flagen.render.token_kernel import kernel_context
from flagen.render.token_layout import Layout


@dataclass(frozen=True, slots=True)
class TokenModuleContext:
    """What `module/token.py.jinja` may print."""

    name: str
    digest: str
    summary: str
    equations: Block
    imports: Block
    kernels: Block
    size_parameters: str
    size_names: str
    widened: str
    decode_tiles: Block
    tiles_doc: str
    tiles: Block
    tile_elements: str
    tile_results: str
    blocks: str
    programs: str
    tokens: str
    arguments: str
    typed_arguments: Block
    typed_scale: Block
    typed_gradients: Block
    gradients: str
    forward_type: str
    backward_type: str
    forward_results: str
    sizes: Block
    fake_sizes: Block
    backward_sizes: Block
    make_output: str
    make_final: Block
    make_output_gradient: str
    make_saved: Block
    make_partials: Block
    output: str
    contiguous: str
    contiguous_inputs: str
    strides: str
    scalars: str
    scalars_saving: str
    launch_inputs: str
    launch_forward: Block
    launch_saving: Block
    launch_backward: Block
    launch_sizes: str
    folded: Block
    fake_gradients: Block
    positions: str
    parameters: Block
    scale_parameter: Block
    state_type: str
    the_states: str
    argument_docs: Block
    result_doc: Block
    checks: Block
    call: Block
    cast: Block
    decode_arguments: str
    typed_decode: Block
    decode_checks: Block
    decode_sizes: Block
    default_scale: Block
    decode_fake_sizes: Block
    launch_decode: Block
    decode_scalars: str
    decode_by_reference: Block
    pool_strides: str
    last: str
    first_token: str
    reversed: str
    changed: str
    pool_type: str
    pool_docs: Block
    decode_docs: Block
    scale_doc: Block
    decode_result_doc: Block
    call_decode: Block


def token_context(derivation: Derivation, kernels: tuple[str, ...]) -> TokenModuleContext:
    """The lines of the token level's module."""
    spec = derivation.recurrence.spec
    layout = Layout(spec, derivation.token)
    signature = signature_of(derivation)
    context = kernel_context(layout)
    text = "\n\n\n".join(fill(f"kernel/{name}.py.jinja", context).strip("\n") for name in kernels)
    host = Host(layout, signature)
    forward_sizes = [host.programs, *layout.sizes, host.strides, "N"]
    made = [host.make_output, *host.make_final()]
    scale = signature.default_scale()
    return TokenModuleContext(
        name=spec.name,
        digest=spec_digest(spec),
        summary=summary(spec),
        equations=_block(equations(spec)),
        imports=_block(_imports(spec.name, text, signature)),
        kernels=Block.of(text),
        size_parameters=", ".join(f"{axis}: int" for axis in layout.sized),
        size_names=", ".join(layout.sized),
        widened=", warps: int = 1" * _is_widened(layout),
        decode_tiles=_block(_decode_tiles(layout, host)),
        tiles_doc=_tiles_doc(layout),
        tiles=_block(_tiles(layout)),
        tile_elements=_tile_elements(layout),
        tile_results=", ".join(f"B{axis}" for axis in layout.sized),
        blocks="".join(f"B{axis}, " for axis in layout.sized),
        programs=host.programs,
        tokens="B * T",
        arguments=", ".join(host.arguments),
        typed_arguments=_block(host.typed_arguments()),
        typed_scale=_block(["scale: float,"] if signature.has_scale else []),
        typed_gradients=_block([f"{name}: torch.Tensor | None," for name in host.given]),
        gradients=", ".join(host.given),
        forward_type=_tensors(1 + len(spec.state)),
        backward_type=_tensors(len(signature.tensors) + len(spec.state)),
        forward_results=", ".join(host.results),
        sizes=_block(signature.sizes(" ".join([*forward_sizes, "T"]))),
        fake_sizes=_block(signature.sizes(" ".join(made))),
        backward_sizes=_block(signature.sizes(" ".join([*forward_sizes, "B"]))),
        make_output=host.make_output,
        make_final=_block(host.make_final()),
        make_output_gradient=host.make_output_gradient(),
        make_saved=_block(host.make_saved()),
        make_partials=_block(host.make_partials()),
        output=signature.output,
        contiguous=_contiguous(signature),
        contiguous_inputs=host.contiguous,
        strides=host.strides,
        scalars=host.scalars("1"),
        scalars_saving=host.scalars("chunk"),
        launch_inputs=", ".join(signature.names) + ",",
        launch_forward=_block(host.launch_forward(saving=False)),
        launch_saving=_block(host.launch_forward(saving=True)),
        launch_backward=_block(host.launch_backward()),
        launch_sizes=", ".join([*layout.sizes, *(f"B{axis}" for axis in layout.sized)]) + ",",
        folded=_block(host.folded()),
        fake_gradients=_block(host.fake_gradients()),
        positions=repr(tuple(range(len(signature.tensors) + len(spec.state)))),
        parameters=_block(signature.parameters()),
        scale_parameter=_block(signature.scale_parameter()),
        state_type=signature.state_type,
        the_states="the states" if len(spec.state) > 1 else "the state",
        argument_docs=_block(signature.docs()),
        result_doc=_block(_result_doc(signature)),
        checks=_block(signature.checks()),
        call=_block(host.call()),
        cast=_block(signature.cast()),
        decode_arguments=", ".join(host.decode_arguments),
        typed_decode=_block(host.typed_decode()),
        decode_checks=_block(host.decode_checks()),
        decode_sizes=_block(
            signature.sizes(" ".join([host.programs.removeprefix("N"), *layout.sizes, *scale, "T"]))
        ),
        default_scale=_block(scale),
        decode_fake_sizes=_block(signature.sizes(host.make_output)),
        launch_decode=_block(host.launch_decode()),
        decode_scalars="scale, T, N, 1" if signature.has_scale else "T, N, 1",
        decode_by_reference=_block(host.decode_by_reference()),
        pool_strides=", ".join(f"{pool}.stride(0)" for pool in host.pools),
        last="first" if spec.reverse else "last",
        first_token="last" if spec.reverse else "first",
        reversed=str(spec.reverse),
        changed=repr((*host.pools, *host.each)),
        pool_type=signature.state_type.removesuffix(" | None"),
        pool_docs=_block(signature.pool_docs()),
        decode_docs=_block(signature.tensor_docs()),
        scale_doc=_block(signature.scale_doc()),
        decode_result_doc=_block(_decode_result_doc(signature)),
        call_decode=_block(host.call_decode()),
    )


def _block(lines: Sequence[str]) -> Block:
    return Block(tuple(lines))


def _contiguous(signature: Signature) -> str:
    """The statement that makes the inputs contiguous."""
    names = ", ".join(signature.names)
    each = "y" if "x" in signature.names else "x"
    comma = "," if len(signature.names) == 1 else ""
    return f"{names}{comma} = ({each}.contiguous() for {each} in ({names}{comma}))"


def _tensors(count: int) -> str:
    return f"tuple[{', '.join(['torch.Tensor'] * count)}]"


_RUNTIME = (
    "Operator autocast begin block cdiv check_cu_seqlens check_groups check_inference check_kwargs"
    " check_pool check_shapes check_slots check_state checkpoint_interval decode_by_reference"
    " decode_warps folded in_place launch locate partials runs_kernels split_states"
)


def _imports(name: str, kernels: str, signature: Signature) -> list[str]:
    used = [each for each in _RUNTIME.split() if _is_used(each, signature)]
    used += [helper for helper in HELPERS if calls(helper, kernels)]
    lines = ["import torch", "import triton", "import triton.language as tl", ""]
    lines = ["from functools import lru_cache", "", *lines]
    if any("math." in line for line in signature.default_scale()):
        lines.insert(0, "import math")
    return [*lines, f"from .._runtime import {', '.join(used)}", f"from .naive import naive_{name}"]


def _is_used(helper: str, signature: Signature) -> bool:
    text = "\n".join(signature.checks())
    optional = {"autocast", "check_groups", "split_states", "check_state"}
    return helper not in optional or f"{helper}(" in text


def _tiles_doc(layout: Layout) -> str:
    """What the tiles are, in words."""
    names = ", ".join(f"B{axis}" for axis in layout.sized)
    whole = [axis for axis in layout.sized if axis not in layout.blocked]
    rest = f"all of {' and '.join(whole)}" if whole else ""
    cut = f"blocks of {' and '.join(layout.blocked)}" if layout.blocked else ""
    return (
        f"({names}, warps): {', '.join(filter(None, (rest, cut)))}; a warp holds `most` elements"
        f"{', and up to `warps` of them a block' * _is_widened(layout)}."
    )


def _tiles(layout: Layout) -> list[str]:
    """The sizes of blocks: whole axes first, then what a warp holds of the others."""
    whole = [axis for axis in layout.sized if axis not in layout.blocked]
    lines = [f"B{axis} = block({axis}, 1 << 20)" for axis in whole]
    for n, axis in enumerate(layout.blocked):
        tile = dict.fromkeys(a for s in layout.spec.state for a in layout.tile(s.axes))
        others = [layout.block(other) for other in tile if other not in layout.blocked[n:]]
        last = n == len(layout.blocked) - 1
        beside = f"({' * '.join(others)})" if len(others) > 1 else "".join(others)
        most = f"max(warps * most // {beside}, 16)" if beside else "128"
        lines.append(f"B{axis} = block({axis}, {most if last else 16})")
    return lines


def _is_widened(layout: Layout) -> bool:
    """Whether blocks can be wider than what a warp holds: they have whole axes beside them."""
    return bool(layout.blocked) and len(layout.sized) > len(layout.blocked)


def _decode_tiles(layout: Layout, host: Host) -> list[str]:
    """Statements that look up the tiles of a decoding step."""
    names, blocks = ", ".join(layout.sized), "".join(f"B{axis}, " for axis in layout.sized)
    usual = f"{blocks}num_warps = _tiles({names}, 2048)"
    if not _is_widened(layout):
        return [usual]
    warps = f"decode_warps({host.programs}, slots.device)"
    return [usual, f"{blocks}num_warps = _tiles({names}, 2048, {warps})"]


def _tile_elements(layout: Layout) -> str:
    products = dict.fromkeys(layout.elements(state.axes) for state in layout.spec.state)
    return next(iter(products)) if len(products) == 1 else f"max({', '.join(products)})"


def _decode_result_doc(signature: Signature) -> list[str]:
    shape, like = signature.output_shape(), signature.like.name
    each = [f"[B, T, {', '.join(signature.state_axes(s))}]" for s in signature.spec.state]
    return [
        f"{signature.output}, [{shape}] in the dtype of {like}, and the states after every token,",
        f"{' and '.join(each)} in the dtype of the pool{'s' * (len(each) > 1)}, or None.",
    ]


def _result_doc(signature: Signature) -> list[str]:
    shape, like = signature.output_shape(), signature.like.name
    states = "states" if len(signature.spec.state) > 1 else "state"
    return [
        f"{signature.output}, [{shape}] in the dtype of {like}, and the final {states} in float32,",
        "or None.",
    ]
