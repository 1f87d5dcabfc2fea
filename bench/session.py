"""One run over one operator: its files, its progress bar, and what is left after an interrupt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import cases, tables
from bench.environment import environment
from bench.meter import CudaMeter, Meter
from bench.records import Journal, Results, load_reference, stem
from bench.runner import Runner, Task


@dataclass(frozen=True)
class Session:
    """How to run, and where results go."""

    op: str
    out: Path
    reference: list[Path]
    resume: bool
    dtype: str
    commit: str
    first_call_limit: float
    budget: float | None
    file: str = ""

    def run(
        self, tasks: list[Task], notes: list[str], console: Console, meter: Meter | None = None
    ) -> Results:
        """Measures, prints, and writes all files; the results say whether the run was complete."""
        meter = meter or CudaMeter()
        rate = meter.copy_rate()
        where = environment([self.op], self.commit) | {"copy_tb_s": round(rate / 1e12, 3)}
        path = stem(self.out, where, self.file or self.op, self.resume)
        journal = Journal(named(path, ".jsonl"), where, self.resume)
        results = Results(where, notes=notes)
        for file in self.reference:
            rows = load_reference(file, cases.operators())
            results.reference += [row for row in rows if row["op"] == self.op]
        dtype = getattr(torch, self.dtype)
        runner = Runner(meter, journal, rate, dtype, self.first_call_limit, self.budget)
        try:
            self._measure(runner, tasks, results, console)
            results.complete = True
        except KeyboardInterrupt:
            console.print("Interrupted. Nothing is lost: the same command with --resume goes on.")
        tables.show(console, results)
        if results.records:
            results.save(named(path, ".json"))
            draw(results, path, console)
            console.print(f"Written: {path} .json .jsonl .html .svg .png", soft_wrap=True)
        return results

    def _measure(
        self, runner: Runner, tasks: list[Task], results: Results, console: Console
    ) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task(self.op, total=len(tasks))

            def before(task: Task) -> None:
                text = f"{self.op} {task.contender.name} {task.shape}"
                progress.update(bar, description=f"{text:<42}")

            for record in runner.run(tasks, before):
                results.records.append(record)
                progress.advance(bar)


def named(path: Path, suffix: str) -> Path:
    """The file of a run: a commit's name may have dots, so no suffix is replaced."""
    return path.with_name(path.name + suffix)


def draw(results: Results, path: Path, console: Console) -> None:
    """Plots and the page, where matplotlib is there."""
    try:
        from bench import plots, report
    except ImportError as error:
        console.print(f"No plots: {error.name} is missing; pip install -e '.[bench]'")
        return
    plots.write(results, path)
    named(path, ".html").write_text(report.page(results), encoding="utf-8")
