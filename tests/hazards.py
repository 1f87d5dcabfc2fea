"""A static check of Triton's GPU dialect (TTGIR) for one hazard of pipelined loops.

A loop that is pipelined keeps tiles in shared memory, in a ring of slots: an asynchronous copy
fills a slot for a coming iteration while matrix units read another. On Hopper these read on after
their instruction was issued, until a wait. Where a copy may go to the slot that an unwaited product
is reading, the product may see the wrong tile.

In iteration i a product reads slot i, and a copy fills slot i + ahead, both modulo the number of
slots; `ahead` is the number of copies that were issued before the loop. A product issued `age`
iterations ago reads slot i - age. So copy and product use different slots if ahead + age < slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALLOCATED = re.compile(r"(%[\w#]+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x")
_VIEW = re.compile(r"(%[\w#]+) = ttg\.memdesc_(?:index|subview|subslice|trans|reshape) (%[\w#]+)")
_COPY = re.compile(r"ttg\.async_copy_global_to_local [^,]+, (%[\w#]+)")
_PRODUCT = re.compile(r"ttng\.warp_group_dot (%[\w#]+), (%[\w#]+), .*isAsync = true")
_WAIT = re.compile(r"ttng\.warp_group_dot_wait .*pendings = (\d+)")
_ROUNDS = 3


@dataclass(frozen=True)
class Hazard:
    """A ring of `slots` that copies fill `ahead` iterations early, under a product of `age`."""

    ring: str
    slots: int
    ahead: int
    age: int


def hazards(ttgir: str) -> list[Hazard]:
    """Every hazard of every loop, each once."""
    lines = ttgir.split("\n")
    slots = {m[1]: int(m[2]) for line in lines if (m := _ALLOCATED.search(line))}
    ring_of = {name: name for name in slots}
    for line in lines:
        if (m := _VIEW.search(line)) and m[2] in ring_of:
            ring_of[m[1]] = ring_of[m[2]]
    found: dict[Hazard, None] = {}
    for start, line in enumerate(lines):
        if " scf.for " in line or " scf.while " in line:
            body = _body(lines, start)
            before = [m[1] for text in lines[:start] if (m := _COPY.search(text))]
            for hazard in _in_loop(body, before, slots, ring_of):
                found[hazard] = None
    return list(found)


def _body(lines: list[str], start: int) -> list[str]:
    """The lines of the loop that opens at `start`: up to the brace in its column."""
    indent = len(lines[start]) - len(lines[start].lstrip())
    close = " " * indent + "}"
    for end in range(start + 1, len(lines)):
        if lines[end].startswith(close) and " do {" not in lines[end]:
            return lines[start + 1 : end]
    raise ValueError(f"the loop at line {start + 1} has no end")


def _in_loop(
    body: list[str], before: list[str], slots: dict[str, int], ring_of: dict[str, str]
) -> list[Hazard]:
    """The hazards of a loop, found by walking its body a few times."""
    copied = [ring_of.get(m[1]) for line in body if (m := _COPY.search(line))]
    filled = [ring_of.get(name) for name in before]
    found = []
    running: list[tuple[int, set[str]]] = []
    for i in range(_ROUNDS):
        for line in body:
            if m := _PRODUCT.search(line):
                running.append((i, {ring_of[name] for name in m.groups() if name in ring_of}))
            elif m := _WAIT.search(line):
                running = running[len(running) - int(m[1]) :] if int(m[1]) else []
            elif (m := _COPY.search(line)) and m[1] in ring_of:
                ring = ring_of[m[1]]
                ahead = filled.count(ring) // copied.count(ring)
                for issued, rings in running:
                    if ring in rings and ahead + i - issued >= slots[ring]:
                        found.append(Hazard(ring, slots[ring], ahead, i - issued))
    return found
