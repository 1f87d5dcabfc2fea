"""Results on disk: one JSON line per measurement while it runs, one JSON file when it is done."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
SAME = ("gpu", "torch", "triton", "commit", "code")
"""What must agree before a run continues another one."""


@dataclass
class Record:
    """One contender at one shape. Times are microseconds, memory is MiB, None is: not measured.

    `status` is ok, wrong (the check failed), skipped, failed or out of memory; `note` says why.
    A decoding step has only forward numbers.
    """

    kind: str
    op: str
    name: str
    function: str
    source: str
    B: int
    T: int
    H: int
    K: int
    V: int
    dtype: str
    status: str = "ok"
    note: str = ""
    fwd_gpu_us: float | None = None
    fwd_eager_us: float | None = None
    fwd_floor_us: float | None = None
    fwd_peak_mib: float | None = None
    fwd_bwd_gpu_us: float | None = None
    fwd_bwd_eager_us: float | None = None
    fwd_bwd_floor_us: float | None = None
    fwd_bwd_peak_mib: float | None = None
    first_call_s: float | None = None
    host_bound: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What was measured."""
        return (self.kind, self.op, self.name, *self.dims, self.dtype)

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        """B, T, H, K, V."""
        return self.B, self.T, self.H, self.K, self.V

    def json(self) -> dict[str, Any]:
        """Without what was not measured; numbers to five digits."""
        known = {name: x for name, x in asdict(self).items() if x not in (None, "", [], {})}
        return {name: round_digits(x) for name, x in known.items()}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Record:
        """From JSON; fields of later versions are left out."""
        names = {f.name for f in fields(cls)}
        return cls(**{name: x for name, x in data.items() if name in names})


def round_digits(x: Any) -> Any:
    """Five significant digits say more than any clock."""
    if isinstance(x, dict):
        return {name: round_digits(y) for name, y in x.items()}
    return float(f"{x:.5g}") if isinstance(x, float) else x


@dataclass
class Results:
    """A run: where it ran, what it measured, and a peer's rows from a file to stand beside it."""

    environment: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    reference: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def ops(self) -> list[str]:
        """The operators, in the order in which they were measured."""
        return list(dict.fromkeys(r.op for r in self.records))

    def of(self, kind: str, op: str, ok: bool = True) -> list[Record]:
        """The records of an operator; with `ok`, only those with numbers."""
        found = [r for r in self.records if (r.kind, r.op) == (kind, op)]
        return [r for r in found if r.status == "ok"] if ok else found

    def save(self, path: Path) -> None:
        """One readable JSON file: a line per record."""
        lines = [json.dumps(r.json(), ensure_ascii=False) for r in self.records]
        body = {
            "format": FORMAT,
            "complete": self.complete,
            "environment": self.environment,
            "notes": self.notes,
            "reference": self.reference,
        }
        head = json.dumps(body, indent=1, ensure_ascii=False).removesuffix("\n}")
        records = ",\n  ".join(lines)
        path.write_text(f'{head},\n "records": [\n  {records}\n ]\n}}\n', encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        """From a finished run's .json or an interrupted run's .jsonl."""
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return _of_lines(text)
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} is no result of this benchmark, format {FORMAT}")
        records = [Record.of(r) for r in data["records"]]
        return cls(data["environment"], records, data["reference"], data["notes"], data["complete"])


def _of_lines(text: str) -> Results:
    results = Results({})
    for line in text.splitlines():
        try:
            data = json.loads(line)
        except ValueError:  # the interrupt came while this line was written
            continue
        if "environment" in data:
            results.environment = data["environment"]
        else:
            results.records.append(Record.of(data))
    return results


class Journal:
    """The .jsonl file of a run. What is in it survives an interrupt."""

    def __init__(self, path: Path, environment: dict[str, Any], resume: bool = False) -> None:
        self.path, self.done = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            before = Results.load(path)
            for name in SAME:
                if before.environment.get(name) != environment.get(name):
                    raise ValueError(
                        f"{path} has another {name}: {before.environment.get(name)}, now"
                        f" {environment.get(name)}; measure again without --resume"
                    )
            self.done = {r.key: r for r in before.records if r.status in ("ok", "wrong")}
        lines = [{"environment": environment}, *(r.json() for r in self.done.values())]
        self.path.write_text("".join(map(_line, lines)), encoding="utf-8")

    def append(self, record: Record) -> None:
        """Written and closed at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record.json()))


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def stem(folder: Path, environment: dict[str, Any], name: str, resume: bool = False) -> Path:
    """<gpu>-<op>-<date>-<commit> in `folder`; with a number rather than overwriting a result."""
    gpu = environment["gpu"].lower().removeprefix("nvidia").strip().replace(" ", "-")
    first = folder / f"{gpu}-{name}-{environment['date']}-{environment['commit']}"
    if resume:  # the newest of this commit, whatever its day
        same = folder.glob(f"{gpu}-{name}-*-{environment['commit']}*.jsonl")
        newest = max(same, key=lambda path: path.stat().st_mtime, default=None)
        return newest.with_suffix("") if newest else first
    number, path = 1, first
    while any(path.with_name(path.name + suffix).exists() for suffix in (".json", ".jsonl")):
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def load_reference(path: Path, ops: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a peer's file about `ops`, each with the file's library, GPU and versions."""
    data = json.loads(path.read_text(encoding="utf-8"))
    about = {name: data[name] for name in ("library", "gpu", "torch", "triton") if name in data}
    # Longest first: chunk_simple_gla is about simple_gla, not gla. A bare name is a decoding step.
    known, rows = sorted(ops, key=len, reverse=True), []
    for row in data["rows"]:
        op = next((op for op in known if row["op"] == op or row["op"].endswith(f"_{op}")), None)
        forms = ("chunk", "fused_chunk", "fused_recurrent", "parallel", "")
        form = row["op"].removesuffix(op or "").removesuffix("_")
        if op and form in forms:
            decode = "gpu_us" in row
            rows.append({**about, **row, "op": op, "form": form or "fused_recurrent",
                         "kind": "decode" if decode else "ops"})  # fmt: skip
    return rows
