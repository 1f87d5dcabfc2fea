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
    found: dict[Hazard, None] = {}
    for start, line in enumerate(lines):
        if " scf.for " in line or " scf.while " in line:
            body = _body(lines, start)
            slots, ring_of, filled = _rings(lines[:start], body)
            for hazard in _in_loop(body, filled, slots, ring_of):
                found[hazard] = None
    return list(found)


def _rings(before: list[str], body: list[str]) -> tuple[dict[str, int], dict[str, str], list[str]]:
    """The slots of every ring, the ring of every name, and the rings of the copies before the body.

    The arms of a condition may use a name each in its own way: the last one is the one that holds.
    """
    slots: dict[str, int] = {}
    ring_of: dict[str, str] = {}
    filled: list[str] = []
    for i, line in enumerate([*before, *body]):
        if m := _ALLOCATED.search(line):
            slots[m[1]] = int(m[2])
            ring_of[m[1]] = m[1]
            filled = [ring for ring in filled if ring != m[1]]
        elif (m := _VIEW.search(line)) and m[2] in ring_of:
            ring_of[m[1]] = ring_of[m[2]]
        elif (m := _COPY.search(line)) and i < len(before) and m[1] in ring_of:
            filled.append(ring_of[m[1]])
    return slots, ring_of, filled


def _body(lines: list[str], start: int) -> list[str]:
    """The lines of the loop that opens at `start`: up to the brace in its column."""
    indent = len(lines[start]) - len(lines[start].lstrip())
    close = " " * indent + "}"
    for end in range(start + 1, len(lines)):
        if lines[end].startswith(close) and " do {" not in lines[end]:
            return lines[start + 1 : end]
    raise ValueError(f"the loop at line {start + 1} has no end")


def _in_loop(
    body: list[str], filled: list[str], slots: dict[str, int], ring_of: dict[str, str]
) -> list[Hazard]:
    """The hazards of a loop, found by walking its body a few times."""
    copied = [ring_of.get(m[1]) for line in body if (m := _COPY.search(line))]
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
