"""`flagen warmup`: an operator's kernels, compiled before they are needed."""

from __future__ import annotations

import importlib.util
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Annotated

import typer

from flagen.cli import project, shapes
from flagen.cli.console import Exit, progress, say, usage, warn

if TYPE_CHECKING:
    from flagen.gpus import GPU
    from flagen.rehearsal import Call, Launch, Made, Operator
    from flagen.write import Entry

EXAMPLES = """\b
Examples:
  flagen warmup gla
  flagen warmup gla --shapes 4x2048x16x128,1x16384x16x128 --states
  flagen warmup gla simple_gla --arch sm_90,gfx942 --dtypes bfloat16
"""


def warmup(
    spec: Annotated[list[str], typer.Argument(metavar="SPEC", hidden=True)],
    shape: Annotated[
        str, typer.Option("--shapes", metavar="SHAPE,…", help="BxTxHxD or BxTxHxKxV.")
    ] = "4x2048x16x128",
    dtype: Annotated[
        str, typer.Option("--dtypes", metavar="DTYPE,…", help="bfloat16, float16, float32.")
    ] = "bfloat16",
    arch: Annotated[
        str,
        typer.Option(
            metavar="ARCH,…",
            help="sm_90, gfx942, …; sm_90:114 has 114 multiprocessors. Else this machine's.",
        ),
    ] = "",
    form: Annotated[
        str, typer.Option("--forms", metavar="FORM,…", help="chunk, decode, …; else all.")
    ] = "",
    size: Annotated[
        str, typer.Option(metavar="AXIS=SIZE,…", help="Axes beside those of the shape: HV=32.")
    ] = "",
    input: Annotated[
        str, typer.Option(metavar="NAME=DTYPE,…", help="Inputs in another dtype: g=float32.")
    ] = "",
    states: Annotated[
        bool, typer.Option("--states", help="Also with initial and final states.")
    ] = False,
    packed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Also with N packed sequences.")
    ] = 0,
    jobs: Annotated[int, typer.Option(metavar="N", min=0, help="Processes; 0: by the CPUs.")] = 0,
) -> None:
    """Compile the kernels of specs ahead, into Triton's cache.

    Needs no GPU: a later process on one finds the kernels there. Compiled is what forward and
    backward launch for these sizes. Sizes of heads and the dtype have kernels of their own;
    lengths and batches have not, except that few long sequences are cut into segments.
    """
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise usage(f"warmup compiles kernels, and {package} is not installed")
    from flagen.rehearsal import Workers, default_workers

    wanted = [_operator(each) for each in dict.fromkeys(spec)]
    given = shapes.pairs(size, "--size HV=32")
    kinds = shapes.pairs(input, "--input g=float32")
    shapes.dtypes(",".join(kinds.values()))
    calls = {
        operator.name: _calls(
            forms,
            operator,
            [shapes.sizes(each, given) for each in shapes.listed(shape)],
            shapes.dtypes(dtype),
            kinds,
            (False, True)[: 1 + states],
            (0, packed)[: 1 + bool(packed)],
            shapes.listed(form),
        )
        for operator, forms in wanted
    }
    failed = False
    for gpu in _gpus(shapes.listed(arch)):
        with Workers(gpu, jobs or default_workers()) as workers, progress() as bars:
            for operator, _ in wanted:
                bar = bars.add_task(f"{operator.name} for {gpu.name}", total=None)
                launches = workers.record(operator, calls[operator.name]).result()
                bars.update(bar, total=len(launches))
                made = []
                for each in as_completed([workers.compile(operator, one) for one in launches]):
                    made.append(each.result())
                    bars.advance(bar)
                bars.remove_task(bar)
                failed |= _conclude(operator.name, gpu, made)
    raise typer.Exit(Exit.CHECK if failed else Exit.FINE)


def _operator(argument: str) -> tuple[Operator, tuple[str, ...]]:
    """The operator that a spec says, in the cache, and its forms."""
    from flagen.notebook import store_files
    from flagen.pipeline import Pipeline
    from flagen.rehearsal import Operator
    from flagen.render import runtime_file
    from flagen.write import State, compare

    path = project.find_spec(argument)
    compilation = Pipeline()(path)
    files = (runtime_file(), *compilation.files)
    entries: tuple[Entry, ...] = compare(files, project.output_of(path))
    if any(entry.state not in (State.SAME, State.NEW) for entry in entries):
        where = project.output_of(path) / compilation.spec.name
        warn(("warning", "yellow"), f": {where} is not what {path} says, which is what is compiled")
    forms = (*compilation.derivation.forms, "decode")
    return Operator.of(compilation.spec, store_files(files)), forms


def _calls(
    forms: tuple[str, ...],
    operator: Operator,
    sizes: list[dict[str, int]],
    dtypes: list[str],
    others: dict[str, str],
    states: tuple[bool, ...],
    packed: tuple[int, ...],
    only: list[str],
) -> tuple[Call, ...]:
    """Each form at each size: for training, and for inference."""
    from flagen.rehearsal import Call

    for axis in operator.axes:
        if any(axis not in each for each in sizes):
            raise usage(f"{operator.name} has an axis {axis}", f"--size {axis}=64")
    for each in only:
        if each not in forms:
            raise usage(f"{operator.name} has no form `{each}`", f"it has {', '.join(forms)}")
    return tuple(
        Call(form, tuple(size.items()), dtype, tuple(others.items()), train, with_states, sequences)
        for form in only or forms
        if form != "naive"
        for size in sizes
        for dtype in dtypes
        for with_states in states
        for sequences in packed
        for train in (True, False)
    )


def _gpus(names: list[str]) -> list[GPU]:
    """The GPUs to compile for."""
    from flagen.gpus import find_gpu, this_gpu

    try:
        found = [find_gpu(name) for name in names]
    except ValueError as error:
        raise usage(str(error)) from error
    here = None if found else this_gpu()
    if here is not None:
        return [here]
    if not found:
        raise usage("there is no GPU here", "name one, for example --arch sm_90")
    return found


def _conclude(name: str, gpu: GPU, made: list[Made]) -> bool:
    """Print what became of an operator; whether anything failed."""

    def described(launch: Launch) -> str:
        return f"{name} for {gpu.name}: {launch.kernel}"

    wrong = []
    for each in made:
        if each.error:
            wrong.append(f"{described(each.launch)}: {each.error}")
        elif each.shared > gpu.shared:
            needs = f"{each.shared >> 10} KiB of shared memory, of {gpu.shared >> 10}"
            wrong.append(f"{described(each.launch)} needs {needs}")
    for text in wrong:
        warn(("error", "bold red"), f": {text}")
    known = sum(each.cached for each in made)
    seconds = sum(each.seconds for each in made)
    say(
        (name, "bold"),
        f" for {gpu.name}: {len(made) - known - len(wrong)} kernels compiled, {known} were there",
        (f"  {seconds:.0f} s of work" if known < len(made) else "", "dim"),
    )
    return bool(wrong)
