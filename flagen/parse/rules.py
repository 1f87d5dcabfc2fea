"""Rules about a whole spec: each function yields the mistakes of one code."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from flagen.diagnostics import Diagnostic, listing, nearest, quote
from flagen.parse import names
from flagen.parse.arithmetic import check_numbers
from flagen.parse.axes import check_axes
from flagen.parse.draft import Draft
from flagen.parse.expression import FUNCTIONS
from flagen.parse.schema import DOMAINS, FORMS
from flagen.parse.text import text_of

MAX_STATES = 8
SHORTHANDS = {"recurrent": "fused_recurrent"}

Rule = Callable[[Draft], Iterator[Diagnostic]]


def bad_doc(draft: Draft) -> Iterator[Diagnostic]:
    """FG105: text that cannot stand in a docstring."""
    doc = draft.text("doc")
    if doc is None:
        return
    text = text_of(draft.sections["doc"][1], draft.source)
    for match in re.finditer(r"\\|\"\"\"|'''|[^\n\x20-\x7e]", doc):
        category = unicodedata.category(match[0][0])
        if match[0].isprintable() and match[0].isascii():
            what = {"\\": "a backslash"}.get(match[0], "triple quotes")
        elif category[0] == "C" or category in ("Zl", "Zp"):
            what = f"the invisible character U+{ord(match[0]):04X}"
        else:
            continue
        note = ("it becomes a docstring: plain text, without backslashes and triple quotes",)
        span = text.span(match.start(), match.end())
        yield Diagnostic("FG105", f"`doc` contains {what}", span, note)
        return


def bad_domain(draft: Draft) -> Iterator[Diagnostic]:
    """FG110: a domain that cannot be read."""
    for each in draft.tensors:
        if each.domain_node is not None and each.domain is None:
            allowed = ", ".join(f'"{domain}"' for domain in DOMAINS)
            notes = (f"allowed: {allowed}, or two numbers [low, high]",)
            message = f"the domain of {quote(each.name)} cannot be read"
            yield Diagnostic("FG110", message, each.domain_node.span, notes)


def bad_target(draft: Draft) -> Iterator[Diagnostic]:
    """FG121: a statement that assigns what cannot be assigned."""
    inputs = {each.name: each for each in draft.tensors}
    states = {each.name for each in draft.states}
    for line in draft.lines:
        if line.target in inputs:
            message = f"`{line.target}` is {inputs[line.target].what} and cannot be assigned"
            help = "give the result a name of its own"
            yield Diagnostic("FG121", message, line.target_span, (), help)
        elif line.section == "output" and line.target in states:
            message = f"`{line.target}` is a state: `output` only reads it"
            help = "assign it in `update`"
            yield Diagnostic("FG121", message, line.target_span, (), help)


def unused_name(draft: Draft) -> Iterator[Diagnostic]:
    """FG122: a tensor or intermediate that nothing uses."""
    if not draft.of("update") or not draft.of("output") or _misread(draft) or _misspelt(draft):
        return
    for each in draft.tensors:
        used = any(each.name in line.words for line in draft.lines)
        if not used and names.is_name(each.name, each.role):
            message = f"`{each.name}` is never used: it would get no gradient"
            help = "remove it, or use it in `update` or `output`"
            yield Diagnostic("FG122", message, each.span, (), help)
    named = {each.name for each in draft.declared}
    for index, line in enumerate(draft.lines[:-1]):
        used = any(line.target in later.words for later in draft.lines[index + 1 :])
        if not used and line.target not in named:
            message = f"`{line.target}` is assigned and never used"
            yield Diagnostic("FG122", message, line.target_span, (), "remove the statement")


def unused_state(draft: Draft) -> Iterator[Diagnostic]:
    """FG123: a state that does not reach the output."""
    if not draft.of("output") or _misread(draft) or _misspelt(draft):
        return
    live = {word for line in draft.of("output") for word in line.words}
    for _ in draft.lines:  # each pass finds what the last one's statements need
        live |= {word for line in draft.lines if line.target in live for word in line.words}
    for state in draft.states:
        if state.name not in live and names.is_name(state.name, "state"):
            message = f"the state `{state.name}` does not reach the output"
            help = f"read it in `output`, as in `dot(q, {state.name})`, or remove it"
            yield Diagnostic("FG123", message, state.span, (), help)


def state_not_updated(draft: Draft) -> Iterator[Diagnostic]:
    """FG124: a state that `update` never assigns."""
    if not draft.of("update") or _misread(draft):
        return
    targets = {line.target for line in draft.of("update")}
    for state in draft.states:
        if state.name not in targets and names.is_name(state.name, "state"):
            message = f"`update` does not assign the state `{state.name}`"
            help = f"add `{state.name} = …` to `update`"
            yield Diagnostic("FG124", message, state.span, (), help)


def _misread(draft: Draft) -> bool:
    """Whether a statement is missing, so that nothing can be said about what is not there."""
    return any(not line.target for line in draft.lines) or not draft.complete


def _misspelt(draft: Draft) -> bool:
    """Whether a statement uses a name that does not exist: it may be the one that seems unused."""
    known = {each.name for each in draft.declared} | {line.target for line in draft.lines}
    known |= {"scale", *FUNCTIONS, *draft.axes()}
    return any(line.value is None or line.words - known for line in draft.lines)


def bad_forms(draft: Draft) -> Iterator[Diagnostic]:
    """FG126: forms that do not exist, or stand there twice."""
    if "forms" not in draft.sections:
        return
    section = draft.sections["forms"][1]
    if section.kind != "sequence":
        return
    notes = (f"forms: {listing(FORMS)}",)
    if not section.items:
        help = "leave the key out to get every form that the mathematics allows"
        yield Diagnostic("FG126", "`forms` is empty", section.span, notes, help)
    seen: set[str] = set()
    for item in section.items:
        if not isinstance(item.value, str):
            continue
        form = SHORTHANDS.get(item.value, item.value)
        if form in seen:
            yield Diagnostic("FG126", f"the form {quote(form)} is listed twice", item.span)
        elif form not in FORMS:
            guess = nearest(form, FORMS)
            help = f"did you mean `{guess}`?" if guess else "remove it"
            if form == "naive":
                help = "`naive` always exists and is not listed"
            yield Diagnostic("FG126", f"unknown form {quote(form)}", item.span, notes, help)
        seen.add(form)


def wrong_count(draft: Draft) -> Iterator[Diagnostic]:
    """FG127: an empty section, or too many states."""
    for name in ("inputs", "state", "update", "output"):
        if name in draft.sections and draft.sections[name][1].value == ():
            key, _ = draft.sections[name]
            yield Diagnostic("FG127", f"`{name}` is empty", key.span)
    if len(draft.states) > MAX_STATES:
        message = f"{len(draft.states)} states are too many: at most {MAX_STATES}"
        yield Diagnostic("FG127", message, draft.states[MAX_STATES].span)


RULES: tuple[Rule, ...] = (
    names.bad_op_name,
    bad_doc,
    names.bad_name,
    names.reserved_name,
    names.duplicate_name,
    names.bad_axes,
    bad_domain,
    check_numbers,
    check_axes,
    bad_target,
    unused_name,
    unused_state,
    state_not_updated,
    bad_forms,
    wrong_count,
)
