"""`flagen tune`, without a GPU: which tiles to try next, what is known, and when to stop.

What a configuration costs comes from outside: `measure` gives a `Cost`, and `prepare` is told what
will be tried, so that it can compile that at once. A journal keeps every answer as it comes: an
interrupted search goes on where it was, and a configuration that took the process with it is not
tried again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flagen.plan.kernel_plan import Tile
from flagen.plan.space import Tiles, candidates, steps
from flagen.write import replace

GAIN = 0.995
"""What a configuration must cost at most, as a part of the best one's cost, to replace it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of GPU time by call, or why a configuration is refused."""

    times: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""

    def relative(self, base: Cost) -> float:
        """The mean of the calls' times, each as a part of its time with `base`."""
        if self.refused:
            return float("inf")
        return sum(self.times[call] / base.times[call] for call in base.times) / len(base.times)


class Journal:
    """A file of JSON lines: what the search is about, then a line for every attempt.

    A line is written before a configuration is tried and another when its cost is known. A journal
    of another search, as `about` tells, is begun anew.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = [{"about": dict(about)}]
        if (found := list(_lines(path)))[:1] == self.lines:
            self.lines = found
        self._rewrite()
        crashed = Cost(refused="the process ended in it")
        self.known: dict[str, Cost] = {
            line["tiles"]: Cost(**line["cost"]) if "cost" in line else crashed
            for line in self.lines[1:]
        }

    def __call__(self, tiles: Tiles, measure: Callable[[Tiles], Cost]) -> Cost:
        """The cost of `tiles`: known, or measured and written down."""
        key = _key(tiles)
        if key not in self.known:
            self._append({"tiles": key})
            try:
                cost = measure(tiles)
            except BaseException:  # an interrupt, or an error of ours: not the configuration's
                self.lines.pop()
                self._rewrite()
                raise
            self._append({"tiles": key, "cost": asdict(cost)})
            self.known[key] = cost
        return self.known[key]

    def _append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        replace(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is: what it tries, and how many of this step's candidates are done."""

    step: str
    done: int
    count: int
    gain: float


@dataclass(frozen=True, slots=True)
class Found:
    """The best tiles and their cost, and the tiles from which the search began and theirs.

    `tried` and `refused` count configurations; `complete` is false where the time was over before.
    """

    tiles: Tiles
    cost: Cost
    base: Tiles
    before: Cost
    tried: int
    refused: int
    complete: bool


def search(
    base: Tiles,
    half: bool,
    contracted: int,
    journal: Journal,
    measure: Callable[[Tiles], Cost],
    prepare: Callable[[tuple[Tiles, ...]], Mapping[int, str]] = lambda _: {},
    budget: float | None = None,
    tell: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """The best tiles along the coordinates of `plan.space`, from `base` on.

    `half` says that elements have two bytes, `contracted` is the dimension that walks contract.
    `measure` gives the cost of a configuration. `prepare` gets a step's candidates before any is
    measured, and returns why some, by their place, need no trial. After `budget` seconds nothing
    more is tried; `tell` hears of progress.

    Raises ValueError where `measure` refuses `base`.
    """
    end = None if budget is None else clock() + budget
    before = journal(base, measure)
    if before.refused:
        raise ValueError(f"the tiles to start from are refused: {before.refused}")
    best, cost, tried, refused, late = base, before, 1, 0, False
    for step in steps(base):
        options = candidates(best, step, half, contracted)
        unknown = tuple(each for each in options if _key(each) not in journal.known)
        late = late or (end is not None and clock() > end)
        if late:
            break
        useless = {_key(unknown[i]): why for i, why in prepare(unknown).items()}
        start = best
        for done, tiles in enumerate(options):
            tell(Progress(str(step), done, len(options), 1 - cost.relative(before)))
            late = late or (end is not None and clock() > end)
            if late:
                break
            why = useless.get(_key(tiles))
            found = journal(tiles, _refusal(why) if why else measure)
            tried += 1
            refused += bool(found.refused)
            if found.relative(before) < GAIN * cost.relative(before):
                start, cost = tiles, found
        best = start
    return Found(best, cost, base, before, tried, refused, not late)


def _refusal(why: str) -> Callable[[Tiles], Cost]:
    return lambda _: Cost(refused=why)


def _key(tiles: Tiles) -> str:
    return " ".join(
        f"{kernel}:" + ",".join(map(str, _numbers(tile))) for kernel, tile in sorted(tiles.items())
    )


def _numbers(tile: Tile) -> tuple[int | None, ...]:
    return (
        tile.rows,
        tile.block,
        tile.columns,
        tile.warps,
        tile.stages,
        tile.crowded_stages,
        tile.least,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; one that was cut off is the last."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(text)
        except ValueError:
            return
