"""A configuration of tiles on this machine's GPU: right or not, and how fast.

It runs in a process of its own, since a wrong configuration may end the process or wait for ever.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from flagen import verify
from flagen.accuracy import Tensors, compare
from flagen.notebook import load_folder
from flagen.parse.spec import Spec
from flagen.plan.space import Tiles
from flagen.rehearsal import Call, Operator, chunk_module, replaced, runtime_module
from flagen.tune import Cost
from flagen.verify import Case

PATIENCE = 120.0
"""Seconds for a configuration that was compiled before."""

STRONG = 16.0
"""By how much decays of the last case are stronger."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is tuned: an operator, its chunk forms, the sizes of its calls, and its dtype."""

    operator: Operator
    spec: Spec
    forms: tuple[str, ...]
    sizes: tuple[tuple[tuple[str, int], ...], ...]
    dtype: str

    def cases(self) -> tuple[Case, ...]:
        """Shapes of the check: segments, chunks that are not full, packed sequences."""
        sizes = dict(self.sizes[0])
        B1 = partial(Case, 1, H=sizes["H"], K=sizes["K"], V=sizes["V"])
        return B1(T=1100), B1(T=321), B1(T=320, bounds=(0, 0, 1, 65, 193, 193, 320))

    def timed(self) -> tuple[tuple[str, Call], ...]:
        """What is timed, by name: chunk at every shape, the other forms at the first."""
        found = []
        for form in self.forms:
            for sizes in self.sizes if form == "chunk" else self.sizes[:1]:
                shape = "x".join(str(dict(sizes)[axis]) for axis in "BTHKV")
                for train in (False, True):
                    what = "forward + backward" if train else "forward"
                    call = Call(form, sizes, self.dtype, train=train)
                    found.append((f"{form} {shape} {what}", call))
        return tuple(found)

    def checked(self) -> tuple[Call, ...]:
        """The calls of the check, for compilation."""
        found = []
        for case in self.cases():
            sizes = tuple((axis, case.size(axis)) for axis in self.operator.axes)
            packed = case.sequences if case.bounds else 0
            for form in self.forms:
                each = Call(form, sizes, self.dtype, train=True, states=True, packed=packed)
                found.append(each)
        return tuple(found)


class Judge:
    """Whether results and gradients are as near to float64 as `flagen verify` wants them.

    `device` may be the CPU under Triton's interpreter; `cases` are those of the setup, or others.
    """

    def __init__(
        self,
        setup: Setup,
        package: Any,
        device: torch.device,
        cases: tuple[Case, ...] | None = None,
    ) -> None:
        self.setup, self.package = setup, package
        dtype = getattr(torch, setup.dtype)
        naive = getattr(package, f"naive_{setup.operator.name}")
        self.naive, self.dtype = naive, dtype
        self.known: list[tuple[Case, Tensors, Tensors, Tensors]] = []
        for case in cases or setup.cases():
            inputs = verify.make(setup.spec, case, dtype, device)
            if case.bounds:
                decays = [each.name for each in setup.spec.inputs if each.role == "decay"]
                inputs |= {name: inputs[name] * STRONG for name in decays if name in inputs}
            exact = verify.run(naive, verify.cast(inputs, torch.float64), setup.spec, True)
            usual = verify.run(naive, inputs, setup.spec, True)
            self.known.append((case, inputs, exact, usual))

    def refused(self) -> str:
        """Why the operator, as it is now, is wrong; empty if it is right."""
        for case, inputs, exact, usual in self.known:
            times = cache(
                partial(verify.conditions_of_sums, self.naive, inputs, self.setup.spec, True)
            )
            for form in self.setup.forms:
                function = getattr(self.package, f"{form}_{self.setup.operator.name}")
                with verify.poisoned_memory():
                    found = verify.run(function, inputs, self.setup.spec, True)
                for name, off, bound in compare(found, exact, usual, self.dtype, times):
                    if not off <= bound:
                        return f"{form} {case} {name}: error {off:.1e} above {bound:.1e}"
        return ""


def trial(
    package: Any,
    judge: Judge,
    timed: Mapping[str, Callable[[], object]],
    gpu_us: Callable[[Callable[[], object]], tuple[float, bool]],
    tiles: Tiles,
) -> Cost:
    """Check first; then the times, where all is right. Raises what a launch raises."""
    runtime_module(package).forget_calls()  # other tiles, other launches
    with replaced(chunk_module(package), tiles):
        wrong = judge.refused()
        if wrong:
            return Cost(refused=wrong)
        return Cost({name: gpu_us(call)[0] for name, call in timed.items()})


def prepared(setup: Setup, package: Any, device: torch.device) -> dict[str, Callable[[], object]]:
    """The calls that are timed, with their inputs, by name."""
    return {name: _prepared(setup, package, call, device) for name, call in setup.timed()}


def _prepared(setup: Setup, package: Any, call: Call, device: torch.device) -> Callable[[], object]:
    sizes = dict(call.sizes)
    case = Case(sizes["B"], sizes["T"], sizes["H"], sizes["K"], sizes["V"])
    made = verify.make(setup.spec, case, getattr(torch, setup.dtype), device)
    inputs = {name: made[name].requires_grad_(call.train) for name, _ in setup.operator.inputs}
    function = getattr(package, f"{call.form}_{setup.operator.name}")
    if not call.train:
        return lambda: _without_gradient(function, inputs)
    do = torch.randn_like(function(**inputs)[0])
    return lambda: torch.autograd.grad(function(**inputs)[0], list(inputs.values()), do)


def _without_gradient(function: Callable[..., object], inputs: Tensors) -> object:
    with torch.no_grad():
        return function(**inputs)


class Process:
    """A process that tries configurations; a new one where one ended or had to be ended."""

    def __init__(
        self, setup: Setup, serve: Callable[[Setup, Connection], None] | None = None
    ) -> None:
        self.setup = setup
        self.serve = serve or _serve
        self.process: Any = None
        self.pipe: Connection | None = None

    def __call__(self, tiles: Tiles) -> Cost:
        """The cost of a configuration; a crash or a hang is a reason to refuse it."""
        pipe = self.pipe or self._start()
        try:
            pipe.send(dict(tiles))
            if not pipe.poll(PATIENCE):
                self.close()
                return Cost(refused=f"no end within {PATIENCE:.0f} s")
            cost, healthy = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.close()
            return Cost(refused="the process ended in it")
        except KeyboardInterrupt:
            self.close()
            raise
        if not healthy:
            self.close()
        return Cost(**cost)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=self.serve, args=(self.setup, other), daemon=True)
        self.process.start()
        other.close()
        if not self.pipe.poll(5 * PATIENCE):
            raise RuntimeError("the process that measures does not start")
        try:
            self.pipe.recv()
        except EOFError:
            raise RuntimeError("the process that measures ended at its start") from None
        return self.pipe


def _serve(setup: Setup, pipe: Connection) -> None:
    """The life of such a process."""
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks decides
    sys.path.insert(0, str(Path(__file__).parents[1]))  # bench/ is beside flagen/
    package = load_folder(setup.operator.folder, setup.operator.name)
    device = torch.device("cuda")
    judge, timed = Judge(setup, package, device), prepared(setup, package, device)
    meter = import_module("bench.meter").CudaMeter()
    pipe.send("ready")
    while True:
        try:
            tiles = pipe.recv()
        except EOFError:
            return
        healthy = True
        try:
            cost = trial(package, judge, timed, meter.gpu_us, tiles)
        except Exception as error:  # whatever a configuration causes is a fact about it
            text = (str(error).strip().splitlines() or [""])[0]
            cost = Cost(refused=f"{type(error).__name__}: {text}"[:200])
            healthy = not _is_device_error(error)
        pipe.send(({"times": dict(cost.times), "refused": cost.refused}, healthy))


def _is_device_error(error: Exception) -> bool:
    """After such an error no kernel of the process runs any more."""
    return "CUDA error" in str(error) or "HIP error" in str(error) or "Triton Error" in str(error)
