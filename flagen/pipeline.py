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

STAGES = ("load", "parse", "analyze", "derive", "plan", "render")

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
        """Compile a spec: its path, its text (a string of several lines), or its content as data.

        Raises FlagenError with all mistakes of the first stage that finds any, InternalError where
        flagen is at fault, and TypeError for data that no spec could hold.
        """
        from flagen.plan import plan
        from flagen.render import render

        recurrence = self.recognise(spec)
        derivation = self.derive(recurrence)
        name = recurrence.spec.source.path
        kernels = self._stage("plan", plan, derivation, name)
        files = self._stage("render", render, kernels, name)
        parsed = recurrence.spec
        return Compilation(parsed.source, parsed, recurrence, derivation, kernels, files)

    def recognise(self, spec: str | Path | Mapping[str, Any]) -> Recurrence:
        """The first half: what a spec means, whether or not kernels exist. Raises likewise."""
        from flagen.analyze import analyze
        from flagen.parse import parse

        source = self._stage("load", _load, spec, _name(spec))
        parsed = self._stage("parse", parse, source, source.path)
        recurrence: Recurrence = self._stage("analyze", analyze, parsed, source.path)
        return recurrence

    def derive(self, recurrence: Recurrence) -> Derivation:
        """The forms of a recurrence. Raises FlagenError where there are none."""
        from flagen.derive import derive

        name = recurrence.spec.source.path
        derivation: Derivation = self._stage("derive", derive, recurrence, name)
        return derivation

    def _stage(self, stage: str, run: Callable[[Any], Any], value: Any, spec: str) -> Any:
        start = time.perf_counter()
        try:
            result = run(value)
        except (FlagenError, InternalError):
            raise
        except Exception as error:
            if stage == "load" and isinstance(error, TypeError):  # of the caller's data
                raise
            raise InternalError(f"{stage} failed on {spec}; this is a mistake in flagen") from error
        if self.hook:
            self.hook(stage, result, time.perf_counter() - start)
        return result


def _load(spec: str | Path | Mapping[str, Any]) -> Source:
    from flagen.load import load, load_data, load_text

    if isinstance(spec, str) and "\n" in spec:
        return load_text(spec)
    return load(spec) if isinstance(spec, str | Path) else load_data(spec)


def _name(spec: str | Path | Mapping[str, Any]) -> str:
    one_line = isinstance(spec, Path) or (isinstance(spec, str) and "\n" not in spec)
    return str(spec) if one_line else "the spec"
