"""`flagen tune`: the fastest tiles of an operator on this machine's GPU, as a table."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as Screen

from flagen.cli import project, shapes
from flagen.cli.console import Exit, progress, say, show, usage, warn

if TYPE_CHECKING:
    from flagen.gpus import GPU
    from flagen.pipeline import Compilation
    from flagen.plan.kernel_plan import ModulePlan
    from flagen.plan.space import Tiles
    from flagen.rehearsal import Launch, Made, Workers
    from flagen.trial import Setup
    from flagen.tune import Found

SPILLED = 1024
"""Bytes of a thread's registers in memory above which tiles are not tried."""

EXAMPLES = """\b
Examples:
  flagen tune gla
  flagen tune gla --shapes 8x2048x32x256 --dtypes float32 --budget 240
  flagen tune gla && flagen build && git diff
"""


def tune(
    spec: Annotated[str, typer.Argument(metavar="SPEC", hidden=True)],
    shape: Annotated[
        str,
        typer.Option(
            "--shapes", metavar="SHAPE,…", help="BxTxHxD or BxTxHxKxV, of the same heads."
        ),
    ] = "4x2048x16x128,1x16384x16x128",
    dtype: Annotated[
        str, typer.Option("--dtypes", metavar="DTYPE,…", help="bfloat16, float16, float32.")
    ] = "bfloat16",
    size: Annotated[
        str, typer.Option(metavar="AXIS=SIZE,…", help="Axes beside those of the shape: HV=32.")
    ] = "",
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For each dtype; 0: until it is done.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where tables are read and written; else flagen's own."),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=0, help="Processes; 0: by the CPUs.")] = 0,
) -> None:
    """Search the fastest tiles of the chunk forms, on this GPU.

    Tiles are tried only if results and gradients are right: against float64, with segments,
    chunks that are not full, packed sequences, strong decays. After an interrupt the same
    command goes on where it was. What is faster goes into the table of GPUs with as much shared
    memory; `flagen build` then writes the operators anew.
    """
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise usage(f"tune runs kernels, and {package} is not installed")
    if not (project.PACKAGE.parent / "bench" / "meter.py").exists():
        raise usage("tune measures with the benchmark, which is not part of the package")
    from flagen.gpus import this_gpu
    from flagen.pipeline import Pipeline
    from flagen.plan import tables

    compilation = Pipeline()(project.find_spec(spec))
    module = next((each for each in compilation.plan.modules if each.file == "chunk.py"), None)
    if module is None or not module.walk:
        raise usage(f"{compilation.spec.name} has no chunk form with tiles to search")
    others = shapes.pairs(size, "--size HV=32")
    sizes = tuple(tuple(shapes.sizes(s, others).items()) for s in shapes.listed(shape))
    if len({(dict(each)["K"], dict(each)["V"]) for each in sizes}) > 1:
        raise usage("all shapes must have the same head dimensions", "tune others by themselves")
    kinds = shapes.dtypes(dtype)
    gpu = this_gpu()
    if gpu is None:
        raise usage("there is no GPU here, and tiles are measured on one")
    folder = out or tables.FOLDER
    for kind in kinds:
        found = _search(compilation, module, gpu, sizes, kind, budget or None, folder, jobs)
        _conclude(compilation.spec.name, kind, found)
        _write(module.walk, gpu, kind != "float32", dict(sizes[0])["K"], found, folder)


def _search(
    compilation: Compilation,
    module: ModulePlan,
    gpu: GPU,
    sizes: tuple[tuple[tuple[str, int], ...], ...],
    dtype: str,
    budget: float | None,
    folder: Path,
    jobs: int,
) -> Found:
    """One search, with its processes and its progress bar."""
    import torch
    import triton  # type: ignore[import-untyped]

    from flagen.notebook import cache_folder, store_files
    from flagen.plan import tables
    from flagen.plan.space import candidates, steps
    from flagen.rehearsal import Operator, Workers, default_workers
    from flagen.render import runtime_file
    from flagen.trial import Process, Setup
    from flagen.tune import Journal, Progress, search

    spec, K = compilation.spec, dict(sizes[0])["K"]
    operator = Operator.of(spec, store_files((runtime_file(), *compilation.files)))
    forms = tuple(f for f in ("chunk", "fused_chunk") if f in compilation.derivation.forms)
    setup = Setup(operator, spec, forms, sizes, dtype)
    half = dtype != "float32"
    base = {
        each.kernel: tables.look_up(each.half if half else each.single, gpu.shared >> 10, K)
        for each in tables.tile_tables(tables.load(folder), module.walk)
    }
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "code": operator.folder.name,
        "calls": [name for name, _ in setup.timed()],
        "dtype": dtype,
    }
    name = f"{spec.name}-{gpu.name}-{dtype}-{'x'.join(str(dict(sizes[0])[a]) for a in 'HKV')}"
    journal = Journal(cache_folder() / "tune" / f"{name}.jsonl", about)
    process = Process(setup)
    with Workers(gpu, jobs or default_workers()) as workers, progress() as bars:
        count = 1 + sum(len(candidates(base, step, half, K)) for step in steps(base))
        bar = bars.add_task(f"{spec.name} {dtype}", total=count)

        def tell(now: Progress) -> None:
            text = f"{spec.name} {dtype} {now.step} -{now.gain:.1%}"
            bars.update(bar, description=f"{text:<42}", advance=1)

        prepare = _compiler(workers, setup, gpu, lambda text: bars.update(bar, description=text))
        try:
            prepare((base,))
            return search(base, half, K, journal, process, prepare, budget, tell)
        except ValueError as error:  # not even the shipped tiles are right
            warn(("error", "bold red"), (f": {error}", "bold"))
            raise typer.Exit(Exit.CHECK) from error
        except KeyboardInterrupt:
            say("Interrupted. Nothing is lost: the same command goes on.")
            raise typer.Exit(130) from None
        finally:
            process.close()


def _compiler(
    workers: Workers, setup: Setup, gpu: GPU, tell: Callable[[str], None]
) -> Callable[[tuple[Tiles, ...]], dict[int, str]]:
    """Compiles all that tiles need, and says which of them need no trial, and why."""
    known: dict[Launch, Made] = {}
    calls = (*(call for _, call in setup.timed()), *setup.checked())

    def prepare(options: tuple[Tiles, ...]) -> dict[int, str]:
        tell(f"{setup.operator.name} {setup.dtype}: compiling")
        recorded = [workers.record(setup.operator, calls, tiles) for tiles in options]
        needed = [each.result() for each in recorded]
        new = dict.fromkeys(one for each in needed for one in each if one not in known)
        for done in as_completed([workers.compile(setup.operator, one) for one in new]):
            made = done.result()
            known[made.launch] = made
        reasons = {}
        for i, launches in enumerate(needed):
            why = next((w for w in (_useless(known[one], gpu) for one in launches) if w), "")
            if why:
                reasons[i] = why
        return reasons

    return prepare


def _useless(made: Made, gpu: GPU) -> str:
    """Why a kernel is not worth a trial; empty if it is."""
    if made.error:
        return f"{made.launch.kernel}: {made.error}"
    if made.shared > gpu.shared:
        return f"{made.launch.kernel} needs {made.shared >> 10} KiB of shared memory"
    if made.spilled > SPILLED:
        return f"{made.launch.kernel} spills {made.spilled} bytes"
    return ""


def _conclude(name: str, dtype: str, found: Found) -> None:
    """Print times before and after."""
    screen = Screen(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    screen.add_column(f"{name} {dtype}")
    for title in ("µs before", "µs after"):
        screen.add_column(title, justify="right")
    for call, before in found.before.times.items():
        screen.add_row(call, f"{before:.1f}", f"{found.cost.times[call]:.1f}")
    show(screen)
    over = "" if found.complete else "; the time was over before all were tried"
    say(f"{found.tried} configurations, {found.refused} of them refused{over}")


def _write(walk: str, gpu: GPU, half: bool, K: int, found: Found, folder: Path) -> None:
    """Put what is new into its table."""
    import torch

    from flagen.plan import tables
    from flagen.plan.tables import HALF, SINGLE, Row, Table

    changed = {k: tile for k, tile in found.tiles.items() if tile != found.base[k]}
    if not changed:
        say("nothing is faster than what the table has")
        return
    here: Any = torch.cuda.get_device_name()
    empty = Table(gpu.name, here, gpu.shared >> 10, ())
    known = tables.load(folder)
    table = next((each for each in known if each.shared == gpu.shared >> 10), empty)
    if table.gpu not in (None, here):
        say(("note", "yellow"), f": other rows of {table.name}.json were measured on {table.gpu}")
    for kernel, tile in changed.items():
        width = 1 << (K - 1).bit_length()
        row = Row(walk, kernel, HALF if half else SINGLE, replace(tile, contracted=width))
        table = table.with_row(row)
    path = tables.save(table, folder)
    say(f"wrote {project.shown(path)}: {', '.join(changed)}")
    say("next: flagen build")
