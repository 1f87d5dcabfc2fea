"""The compiler on one screen: each stage is a function from one frozen dataclass to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagen.diagnostics import FlagenError, InternalError

if TYPE_CHECKING:
    from flagen.analyze.recurrence import Recurrence
    from flagen.derive.derivation import Derivation
    from flagen.load import Source
    from flagen.parse.spec import Spec
    from flagen.plan.kernel_plan import KernelPlan
    from flagen.render.finish import GeneratedFile

StageHook = Callable[[str, Any, float], None]
"""Called after each stage with its name, its result and its seconds."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """What every stage made of one spec."""

    source: Source
    spec: Spec
    recurrence: Recurrence
    derivation: Derivation
    plan: KernelPlan
    files: tuple[GeneratedFile, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """load → parse → analyze → derive → plan → render. `write` puts the files on disk."""

    hook: StageHook | None = None

    def __call__(self, spec: str | Path | Mapping[str, Any]) -> Compilation:
        """Compile a spec: its path, or the spec itself as Python data.

        Raises FlagenError with all mistakes of the first stage that finds any, and InternalError
        where flagen is at fault.
        """
        from flagen.analyze import analyze
        from flagen.derive import derive
        from flagen.load import load, load_data
        from flagen.parse import parse
        from flagen.plan import plan
        from flagen.render import render

        name = "<data>" if isinstance(spec, Mapping) else str(spec)
        source = self._stage("load", load_data if isinstance(spec, Mapping) else load, spec, name)
        parsed = self._stage("parse", parse, source, name)
        recurrence = self._stage("analyze", analyze, parsed, name)
        derivation = self._stage("derive", derive, recurrence, name)
        kernels = self._stage("plan", plan, derivation, name)
        files = self._stage("render", render, kernels, name)
        return Compilation(source, parsed, recurrence, derivation, kernels, files)

    def _stage(self, stage: str, run: Callable[[Any], Any], value: Any, spec: str) -> Any:
        start = time.perf_counter()
        try:
            result = run(value)
        except (FlagenError, InternalError):
            raise
        except Exception as error:
            raise InternalError(f"{stage} failed on {spec}; this is a mistake in flagen") from error
        if self.hook:
            self.hook(stage, result, time.perf_counter() - start)
        return result
