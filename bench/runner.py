"""Runs the measurements one by one: check, time, write down; go on after whatever happens."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench import cases, floor, gate
from bench.cases import Shape
from bench.contenders import Contender
from bench.meter import Meter, TooSlow, time_limit
from bench.records import Journal, Record


@dataclass(frozen=True)
class Task:
    """One contender at one shape."""

    kind: str
    contender: Contender
    shape: Shape


def plan(contenders: Iterable[Contender], shapes: Iterable[Shape], kind: str = "ops") -> list[Task]:
    """Shape by shape, but what is slow to start comes after everything else."""
    shapes, contenders = list(dict.fromkeys(shapes)), list(contenders)
    tasks = [
        Task(kind, c, s) for s in sorted(shapes, key=_size) for c in contenders if c.most_T >= s.T
    ]
    return sorted(tasks, key=lambda task: task.contender.slow_start)


def _size(shape: Shape) -> tuple[int, int]:
    return shape.T, shape.B * shape.H * shape.K


@dataclass
class Runner:
    """Measures tasks; every result goes to the journal at once."""

    meter: Meter
    journal: Journal
    rate: float
    dtype: torch.dtype = torch.bfloat16
    first_call_limit: float = 60
    # No measurement begins after this many seconds.
    budget: float | None = None
    began: float = field(default_factory=time.perf_counter)
    _checked: dict[Any, gate.Verdict] = field(default_factory=dict)
    _exact: dict[Any, Tensor] = field(default_factory=dict)
    _given_up: dict[str, str] = field(default_factory=dict)

    def run(self, tasks: list[Task], before: Callable[[Task], None]) -> Iterable[Record]:
        """Yields a record per task; `before` is told what comes next."""
        for task in tasks:
            before(task)
            record = self._record(task)
            if (known := self.journal.done.get(record.key)) is not None:
                yield known
                continue
            self._measure(task, record)
            self.journal.append(record)
            yield record

    def _record(self, task: Task) -> Record:
        c, s = task.contender, task.shape
        dtype = str(self.dtype).removeprefix("torch.")
        return Record(task.kind, c.op, c.name, c.function, c.source, s.B, s.T, s.H, s.K, s.V, dtype)

    def _measure(self, task: Task, record: Record) -> None:
        """Fills in the record; whatever a contender raises becomes its status."""
        name = task.contender.name
        if self.budget and time.perf_counter() - self.began > self.budget:
            record.status, record.note = "skipped", "no time left"
            return
        if name in self._given_up:
            record.status, record.note = "skipped", self._given_up[name]
            return
        try:
            if task.kind == "decode":
                self._decode(task, record)
            else:
                self._train(task, record)
        except TooSlow as error:
            record.status, record.note = "skipped", str(error)
            self._given_up[name] = f"{error} at {task.shape}"
        except torch.OutOfMemoryError:
            record.status, record.note = "out of memory", ""
        except Exception as error:  # a peer's failure is a result, not the end of the run
            first = (str(error).strip().splitlines() or [""])[0]
            record.status, record.note = "failed", f"{type(error).__name__}: {first}"[:200]
        finally:
            gc.collect()
            if self.meter.device == "cuda" and record.status != "ok":
                torch.cuda.empty_cache()

    def _train(self, task: Task, record: Record) -> None:
        c, meter = task.contender, self.meter
        inputs = cases.draw(c.op, c.inputs, task.shape, self.dtype, meter.device)
        leaves = {name: x.requires_grad_() for name, x in inputs.items()}

        def forward() -> Tensor:
            with torch.no_grad():
                return c.run(leaves)[0]

        with time_limit(self.first_call_limit if c.slow_start else None):
            began = time.perf_counter()
            o = forward()
            do = torch.randn_like(o)

            def both() -> tuple[Tensor, ...]:
                return torch.autograd.grad(c.run(leaves)[0], list(leaves.values()), do)

            both()
            self._synchronize()
            record.first_call_s = time.perf_counter() - began
            verdict = self._small(task, record)
        if verdict.wrong:
            return _refuse(record, verdict)
        if c.per_shape:
            verdict = gate.gradients(c, inputs)
        else:
            verdict = gate.actual(c, inputs, o, meter.free_bytes(), self._exact)
        record.errors |= verdict.errors
        record.note = verdict.note
        if verdict.wrong:
            return _refuse(record, verdict)
        tensors = list(leaves.values())
        count = floor.forward_bytes(tensors, [o])
        record.fwd_floor_us = floor.microseconds(count, self.rate)
        count += floor.backward_bytes(tensors, [o])
        record.fwd_bwd_floor_us = floor.microseconds(count, self.rate)
        del o
        self._forward_numbers(forward, record)
        record.fwd_bwd_gpu_us, queued = meter.gpu_us(both)
        record.host_bound += [] if queued else ["fwd_bwd"]
        record.fwd_bwd_eager_us = meter.eager_us(both)
        record.fwd_bwd_peak_mib = meter.peak_mib(both)

    def _decode(self, task: Task, record: Record) -> None:
        c, meter = task.contender, self.meter
        names = (*c.inputs, "initial_state")
        inputs = cases.draw(c.op, names, task.shape, self.dtype, meter.device)

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return c.run(inputs, output_final_state=True)

        with time_limit(self.first_call_limit if c.slow_start else None):
            began = time.perf_counter()
            outputs = forward()
            self._synchronize()
            record.first_call_s = time.perf_counter() - began
        verdict = gate.step(c, task.shape, self.dtype, meter.device)
        record.errors |= verdict.errors
        if verdict.wrong:
            return _refuse(record, verdict)
        count = floor.forward_bytes(inputs.values(), outputs)
        record.fwd_floor_us = floor.microseconds(count, self.rate)
        self._forward_numbers(forward, record)

    def _forward_numbers(self, forward: Callable[[], Any], record: Record) -> None:
        record.fwd_gpu_us, queued = self.meter.gpu_us(forward)
        record.host_bound += [] if queued else ["fwd"]
        record.fwd_eager_us = self.meter.eager_us(forward)
        record.fwd_peak_mib = self.meter.peak_mib(forward)

    def _small(self, task: Task, record: Record) -> gate.Verdict:
        """The check in float64, once per heads and dtype."""
        c, s = task.contender, task.shape
        if c.per_shape:
            return gate.Verdict(c.limit)
        key = (c.name, c.op, s.H, s.K, s.V)
        if key not in self._checked:
            self._checked[key] = gate.small(c, s, self.dtype, self.meter.device)
        record.errors |= self._checked[key].errors
        return self._checked[key]

    def _synchronize(self) -> None:
        if self.meter.device == "cuda":
            torch.cuda.synchronize()


def _refuse(record: Record, verdict: gate.Verdict) -> None:
    record.status, record.note = "wrong", str(verdict)
