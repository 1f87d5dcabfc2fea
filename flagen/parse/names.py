"""Rules about names and axes: each function yields the mistakes of one code."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterator

from flagen.diagnostics import Diagnostic, Span, quote
from flagen.load import Node
from flagen.parse.draft import AXIS, Draft, axes_problem, is_outer
from flagen.parse.expression import FUNCTIONS
from flagen.parse.spec import parts_of

MAX_NAME = 64

# Names that generated code needs for itself.
_RESERVED = frozenset(
    {
        "B",
        "N",
        "T",
        "case",
        "ctx",
        "cu_seqlens",
        "final_state",
        "initial_state",
        "match",
        "output_final_state",
        "output_states",
        "scale",
        "self",
        "slots",
        "state_pool",
        "tl",
        "torch",
        "triton",
        *dir(builtins),
    }
)
# What generated modules, and the bodies of their functions, call their own.
_LOCAL = frozenset(
    {
        "L",
        "Operator",
        "PARTS",
        "ROWS",
        "UNBOUNDED",
        "autocast",
        "begin",
        "block",
        "bos",
        "cdiv",
        "check_alike",
        "check_cu_seqlens",
        "check_groups",
        "check_inference",
        "check_kwargs",
        "check_pool",
        "check_shapes",
        "check_slots",
        "check_state",
        "check_tensors",
        "checkpoint_interval",
        "chunk",
        "decode_by_reference",
        "decode_warps",
        "dot_precision",
        "dtype",
        "eos",
        "exchange_roles",
        "exp",
        "expm1",
        "final",
        "first_chunk",
        "fixed_segment",
        "folded",
        "ht",
        "in_place",
        "interpretable",
        "kwargs",
        "keeps_states",
        "larger",
        "launch",
        "locate",
        "log",
        "lru_cache",
        "math",
        "num_sms",
        "num_warps",
        "op",
        "out",
        "partials",
        "parts",
        "pieces",
        "pid",
        "programs",
        "reverse",
        "rows",
        "runs_kernels",
        "scalars",
        "segments",
        "shared_memory",
        "sign",
        "size",
        "sizes",
        "softplus",
        "split_states",
        "stacked",
        "states",
        "t",
        "tanh",
        "tensors",
        "total",
        "warnings",
    }
)
_RESERVED_PREFIXES = ("b_", "i_", "j_", "m_", "n_", "o_", "p_", "r_")
_OF_A_MODULE = re.compile(
    "(attention|chunk|epilogue|parallel|prologue|recurrent)_(fwd|bwd|decode)(_fake)?"
)
_OF_A_STATE = re.compile(
    r"(?:initial|final)_(?P<after>\w+)"
    r"|(?P<before>\w+)_(?:before|in|in_t|out[0-9]*|saved|steps|each|pool|STRIDE)"
)


def bad_op_name(draft: Draft) -> Iterator[Diagnostic]:
    """FG104: a name that cannot be an op's."""
    name = draft.text("name")
    if name is None:
        return
    rule = f"a lower-case letter, then lower-case letters, digits and `_`; at most {MAX_NAME}"
    bad = not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > MAX_NAME
    if bad or keyword.iskeyword(name):
        why = "is a Python keyword" if not bad else "cannot name an op"
        span = draft.sections["name"][1].span
        yield Diagnostic("FG104", f"{quote(name)} {why}", span, (f"a name is {rule}",))


def _named(draft: Draft) -> Iterator[tuple[str, Span, str]]:
    """Every name that the spec gives: name, place, and what it names."""
    for each in draft.declared:
        yield each.name, each.span, each.role
    states = {state.name for state in draft.states}
    for line in draft.lines:
        if line.target and line.target not in states:
            yield line.target, line.target_span, line.section


def is_name(name: str, role: str) -> bool:
    """Whether a name is well-formed for an input, state or intermediate."""
    pattern = r"[A-Za-z][A-Za-z0-9_]*" if role == "state" else r"[a-z][A-Za-z0-9_]*"
    return re.fullmatch(pattern, name) is not None and len(name) <= MAX_NAME


def bad_name(draft: Draft) -> Iterator[Diagnostic]:
    """FG106: a name that breaks the rules for its kind."""
    for name, span, role in _named(draft):
        if not is_name(name, role):
            what, first = "a tensor", "a lower-case letter"
            if role == "state":
                what, first = "a state", "a letter"
            rule = f"{first}, then letters, digits and `_`; at most {MAX_NAME}"
            notes = (f"the name of {what} is {rule}",)
            help = f"write `{name.lower()}`" if is_name(name.lower(), role) else "rename it"
            yield Diagnostic("FG106", f"{quote(name)} cannot be a name here", span, notes, help)


def reserved_name(draft: Draft) -> Iterator[Diagnostic]:
    """FG107: a name that means something else already."""
    names = {name for name, _, _ in _named(draft)}
    states = {name for name, _, role in _named(draft) if role == "state"}
    own, op = sorted(_RESERVED | _LOCAL), draft.text("name")
    for name, span, role in _named(draft):
        if not is_name(name, role):
            continue
        if keyword.iskeyword(name):
            why = "is a Python keyword"
        elif name in FUNCTIONS:
            why = "is a function of the language"
        elif name in draft.axes():
            why = "is an axis of this spec"
        elif name in own or name.startswith(_RESERVED_PREFIXES) or _OF_A_MODULE.fullmatch(name):
            why = "is a name that generated code uses"
        elif op and (name.startswith(f"{op}_") or name.endswith(f"_{op}")):
            why = "is what generated code calls a function of the operator"
        elif name.startswith("d") and name[1:] in names:
            why = f"is what generated code calls the gradient of `{name[1:]}`"
        elif (of := _state_of(name)) in states:
            why = f"is what generated code calls a form of the state `{of}`"
        elif taken := [each for each in own if _state_of(each) == name and name in states]:
            why = f"is a state, and would make `{taken[0]}`, which generated code uses"
        elif name.startswith("sum_d") and name[5:] in names:
            why = f"is what generated code calls the sum of the gradients of `{name[5:]}`"
        elif name.endswith("_t") and name[:-2] in names:
            why = f"is what generated code calls `{name[:-2]}` of one token"
        else:
            continue
        yield Diagnostic("FG107", f"{quote(name)} {why}", span, (), "rename it")


def _state_of(name: str) -> str | None:
    """The state of which a name would be a form in generated code."""
    form = _OF_A_STATE.fullmatch(name)
    return form and (form["after"] or form["before"])


def duplicate_name(draft: Draft) -> Iterator[Diagnostic]:
    """FG108: a name with two meanings."""
    seen: dict[str, Span] = {}
    inputs = {each.name for each in draft.tensors}
    for name, span, role in _named(draft):
        if name in seen and not (role in ("update", "output") and name in inputs):
            help = f"it is also on line {seen[name].line}; only states may be assigned again"
            yield Diagnostic("FG108", f"{quote(name)} is defined twice", span, (), help)
        seen.setdefault(name, span)


def bad_axes(draft: Draft) -> Iterator[Diagnostic]:
    """FG109: axes that are none, or that cannot stand together."""
    for each in draft.declared:
        node = each.axes_node
        if node is None or node.kind != "sequence":
            continue
        bad = [
            item
            for item in node.items
            if isinstance(item.value, str) and not _is_axis(item.value, draft)
        ]
        for item in bad:
            yield _bad_axis(item)
        if not bad and each.axes is not None and (problem := axes_problem(each)):
            message = f"{each.what} cannot have the axes [{', '.join(each.axes)}]: {problem}"
            notes = ("an input is [T, H, K], [T, H] or, as a parameter, [H, K], [H] or [K]",)
            if each.role == "state":
                notes = ("a state is [K, V], [K] or [], per sequence and head",)
            yield Diagnostic("FG109", message, node.span, notes)
    yield from _bad_products(draft)
    yield from _sizeless_axes(draft)


def _bad_products(draft: Draft) -> Iterator[Diagnostic]:
    """Products that cannot be read, or whose size is not known, or that an input has."""
    sized = {axis for each in draft.tensors if not each.constant for axis in each.axes or ()}
    for name, node in draft.pairs("axes"):
        product = str(name.value)
        if not _is_axis(product, draft):
            yield _bad_axis(name)
        elif isinstance(node.value, str) and not draft.products[product]:
            message = f"{quote(node.value)} is no product of two axes"
            help = "write it as in `F: K*K`"
            yield Diagnostic("FG109", message, node.span, (), help)
        for factor in dict.fromkeys(draft.products.get(product, ())):
            if is_outer(factor) or factor not in sized:
                message = f"`{factor}` cannot be a factor of `{product}`"
                notes = ("factors are feature axes of inputs",)
                yield Diagnostic("FG109", message, node.span, notes)
    for each in draft.tensors:
        for axis in filter(draft.products.__contains__, each.axes or ()):
            message = f"{each.what} cannot have the axis `{axis}`, which is a product"
            help = f"declare its factors as inputs, and write `kron(a, b, {axis})`"
            span = each.axes_node.span if each.axes_node else each.span
            yield Diagnostic("FG109", message, span, (), help)


def _is_axis(name: str, draft: Draft) -> bool:
    # BK, BV, NT, … are what generated code calls blocks and their numbers.
    parts = [part for product in draft.products for part in parts_of(product)]
    block = name[:1] in ("B", "N") and name[1:] in ("", "C", "S", *draft.axes(), *parts, "T")
    composed = name in ("IN", "OUT", "EACH", "POOL")  # of states, as in o_in
    return AXIS.fullmatch(name) is not None and not (block or composed or name in parts)


def _bad_axis(item: Node) -> Diagnostic:
    name = str(item.value)
    if name == "B":
        return Diagnostic("FG109", "the batch axis `B` is implicit", item.span, (), "leave it out")
    if AXIS.fullmatch(name):
        message = f"the axis {quote(name)} is a name that generated code uses"
        return Diagnostic("FG109", message, item.span, (), "rename it")
    message = f"{quote(name)} cannot be an axis"
    notes = ("an axis is an upper-case letter, then up to three upper-case letters or digits",)
    help = "use a short name, such as `K`"
    if AXIS.fullmatch(name.upper()):
        help = f"write `{name.upper()}`"
    return Diagnostic("FG109", message, item.span, notes, help)


def _sizeless_axes(draft: Draft) -> Iterator[Diagnostic]:
    """An axis has a size because an argument of the generated function has that axis."""
    if not draft.complete or any(each.sound is None for each in draft.declared):
        return
    sized = {axis for each in draft.tensors if not each.constant for axis in each.axes or ()}
    sized |= draft.products.keys()
    if "T" not in sized and draft.tensors:
        span = draft.sections["inputs"][0].span
        yield Diagnostic("FG109", "no input is per token", span, (), "begin its axes with `T`")
    for each in draft.declared:
        for axis in each.axes or ():
            if axis not in sized and axis != "T" and each.axes_node:
                message = f"no input has the axis `{axis}`, so its size is not known"
                sized.add(axis)
                help = f"add `{axis}` to the axes of an input, or correct its name"
                yield Diagnostic("FG109", message, each.axes_node.span, (), help)
