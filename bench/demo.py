"""The demo: check every form of retention, then train a small language model that is built on it.

`make demo` builds `generated/retention` and runs this file. All that it uses of flagen are the five
functions imported below; the rest is an ordinary PyTorch program.
"""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from flagen.ops import (
    chunk_retention,
    fused_chunk_retention,
    fused_recurrent_retention,
    naive_retention,
    parallel_retention,
)

console = Console(highlight=False)


# Is it right? Every form against naive_retention in float64.

FORMS = [chunk_retention, fused_chunk_retention, fused_recurrent_retention, parallel_retention]
LIMIT = 5e-3  # what hand-written libraries allow a retention kernel: RMS error / RMS of the result


def outputs_and_gradients(form, inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a form returns, and the gradients of a fixed function of that."""
    state_dtype = torch.promote_types(dtype, torch.float32)
    inputs = {
        name: x.to(state_dtype if name == "initial_state" else dtype).requires_grad_()
        for name, x in inputs.items()
    }
    stateful = "initial_state" in inputs
    o, state = form(**inputs, **({"output_final_state": True} if stateful else {}))
    outputs = {"o": o} | ({"final_state": state} if stateful else {})
    weights = [torch.arange(x.numel(), device=x.device).sin().view_as(x) for x in outputs.values()]
    loss = sum((x * w).sum() for x, w in zip(outputs.values(), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return outputs | {f"∂{name}": g for name, g in zip(inputs, gradients, strict=True)}


def compare(device: str, seed: int) -> bool:
    """Prints a table of errors; false if one is above the limit."""
    torch.manual_seed(seed)
    B, T, H, K, V = (4, 1000, 4, 100, 72) if device == "cuda" else (2, 67, 2, 20, 24)
    dtypes = [torch.float32, torch.bfloat16] if device == "cuda" else [torch.float32]
    shapes = {
        "q": (B, T, H, K),
        "k": (B, T, H, K),
        "v": (B, T, H, V),
        "initial_state": (B, H, K, V),
    }
    drawn = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    columns = ["o", "final_state", *(f"∂{name}" for name in shapes)]

    good = True
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        table = Table("retention", title=f"{name}: errors relative to naive in float64")
        for column in columns:
            table.add_column(column.replace("_", "\n"), justify="right")
        rounded = {name: x.to(dtype).float() for name, x in drawn.items()}
        for form in [naive_retention, *FORMS]:
            inputs = dict(rounded)
            if "initial_state" not in inspect.signature(form).parameters:
                del inputs["initial_state"]
            reference = outputs_and_gradients(naive_retention, inputs, torch.float64)
            result = outputs_and_gradients(form, inputs, dtype)
            errors = {
                name: ((result[name].double() - exact).norm() / exact.norm()).item()
                for name, exact in reference.items()
            }
            passed = form is naive_retention or all(error < LIMIT for error in errors.values())
            good &= passed
            table.add_row(
                form.__name__.removesuffix("_retention"),
                *(f"{errors[name]:.1e}" if name in errors else "-" for name in columns),
                style="dim" if form is naive_retention else None if passed else "red",
            )
        console.print(table)
    verdict = f"all below {LIMIT}" if good else f"[red]a red line is not below {LIMIT}[/]"
    console.print(f"B={B} T={T} H={H} K={K} V={V}, ragged on purpose: {verdict}.\n")
    return good


# A language model over bytes whose tokens meet in retention and nowhere else.


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding of `[B, T, H, K]`, as in RetNet."""
    frequencies = 10_000 ** -torch.linspace(0, 1, x.shape[-1] // 2, device=x.device)
    angles = (positions[:, None] * frequencies)[:, None]
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class Retention(nn.Module):
    """Multi-head retention with a gate. `state` is all that it remembers of the tokens before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkvg = nn.Linear(width, 4 * width, bias=False)
        self.norm = nn.RMSNorm(width // heads)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, positions: Tensor, state: Tensor | None, keep: bool):
        q, k, v, gate = self.qkvg(x).chunk(4, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v))
        form = fused_recurrent_retention if x.shape[1] == 1 else chunk_retention
        o, state = form(
            rotate(q, positions),
            rotate(k, positions),
            v,
            initial_state=state,
            output_final_state=keep,
        )
        return self.out(self.norm(o).flatten(-2) * F.silu(gate)), state


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(a) * b)


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self, width: int = 192, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.mixers = nn.ModuleList(Retention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(MLP(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 * layers + 1))
        self.head = nn.Linear(width, 256, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor, states=None, start: int = 0, keep: bool = False):
        """`states` and `start` continue an earlier call that was made with `keep`."""
        positions = start + torch.arange(tokens.shape[1], device=tokens.device)
        before, after = states or [None] * len(self.mixers), []
        x = self.embed(tokens)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            mixed, state = mixer(self.norms[2 * i](x), positions, before[i], keep)
            after.append(state)
            x = x + mixed
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x)), after


# Training and sampling.

BATCH, LENGTH, LEARNING_RATE, PASSES = 4, 256, 4e-3, 8


def corpus() -> tuple[Tensor, Tensor]:
    """The language reference that `help()` prints: nine tenths to learn from, the rest to test."""
    from pydoc_data.topics import topics

    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines(keepends=True)
    text = "".join(line for line in lines if not line.lstrip().startswith(("|", "+")))  # no tables
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    return data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]


def unigram_entropy(data: Tensor) -> float:
    """The best loss, in nats, that is possible without looking at the bytes before."""
    p = torch.bincount(data).double() / len(data)
    return torch.special.entr(p).sum().item()


@torch.no_grad()
def held_out_loss(model: LanguageModel, data: Tensor, windows: int | None = None) -> float:
    """Nats per byte; every window starts from an empty state."""
    length = 2 * LENGTH
    data = data[: (len(data) - 1) // length * length + 1]
    tokens, targets = data[:-1].view(-1, length), data[1:].view(-1, length)
    losses = [
        F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten(), reduction="sum")
        for x, y in zip(tokens[:windows].split(8), targets[:windows].split(8), strict=True)
    ]
    return torch.stack(losses).sum().item() / targets[:windows].numel()


def train(model: LanguageModel, train_data: Tensor, test_data: Tensor, seconds: float) -> None:
    """Trains until the time is over, or the text was read `PASSES` times, or Ctrl-C."""
    device = train_data.device.type
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1
    )
    last_step = PASSES * len(train_data) // (BATCH * LENGTH)
    offsets = torch.arange(LENGTH + 1, device=device)
    done, step, start, next_report = 0.0, 0, time.perf_counter(), 0.0
    columns = (
        TextColumn("training"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=1.0, loss="")
        while done < 1:
            rate = min(1, (step + 1) / 20) * (0.51 + 0.49 * math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate
            starts = torch.randint(len(train_data) - LENGTH, (BATCH, 1), device=device)
            window = train_data[starts + offsets]
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits, _ = model(window[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == 1:  # the kernels are compiled now
                start = time.perf_counter()
            done = max((time.perf_counter() - start) / seconds, step / last_step)
            if step % 10 == 0:
                progress.update(bar, completed=done, loss=f"step {step}, loss {loss.item():.2f}")
            if done >= next_report:
                next_report = done + 1 / 6
                nats = held_out_loss(model, test_data, windows=8)
                progress.console.print(f"  step {step:5d}   held-out loss about {nats:.2f} nats")


@torch.no_grad()
def sample(model: LanguageModel, prompt: Tensor, length: int = 400) -> None:
    """Reads the prompt with the chunk form, then writes with the recurrent form, byte by byte."""

    def show(tokens: Tensor) -> str:
        characters = bytes(tokens.tolist()).decode("ascii", "replace")
        return "".join(c if c.isprintable() or c == "\n" else "�" for c in characters)

    console.print(show(prompt), style="bold", end="", markup=False)
    tokens, start = prompt, time.perf_counter()
    logits, states = model(prompt[None], keep=True)
    steps = [logits[0, -1]]
    while len(steps) <= length:
        token = torch.multinomial(F.softmax(steps[-1].float() / 0.7, dim=-1), 1)
        console.print(show(token), end="", markup=False)
        logits, states = model(token[None], states, start=len(tokens), keep=True)
        tokens = torch.cat([tokens, token])
        steps.append(logits[0, -1])
    rate = length / (time.perf_counter() - start)

    at_once, _ = model(tokens[None])
    difference = (at_once[0, len(prompt) - 1 :] - torch.stack(steps)).abs().max().item()
    console.print(f"\n\n{length} bytes at {rate:.0f} per second, each from a state of fixed size.")
    console.print(
        f"The chunk form reads all {len(tokens)} bytes at once; its logits differ by at most"
        f" {difference:.0e}."
    )


def main(
    seconds: Annotated[float, typer.Option(help="How long to train.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="cuda or cpu; without it, the GPU if any.")] = "",
    prompt: Annotated[
        str, typer.Option(help="What the model goes on writing from.")
    ] = "An object ",
    compare_only: Annotated[bool, typer.Option("--compare", help="Only the table.")] = False,
) -> None:
    """Check every form of retention against float64, then train a small language model on it."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if compare_only:
        raise typer.Exit(not compare(device, seed))

    if device == "cuda":
        console.print(f"Runs on {torch.cuda.get_device_name()}, with the Triton kernels.\n")
        good = compare(device, seed)
    else:
        kernels = find_spec("triton") is not None
        console.print(
            "Runs on the CPU. The comparison runs"
            f" {'the Triton kernels in their interpreter' if kernels else 'the plain torch path'},"
            " the training runs the plain torch path of the same functions.\n"
        )
        command = [sys.executable, Path(__file__), "--compare", "--device=cpu", f"--seed={seed}"]
        environment = os.environ | ({"TRITON_INTERPRET": "1"} if kernels else {})
        good = subprocess.run(command, env=environment, check=False).returncode == 0

    # More threads gain little on matrices this small, and lose much where the machine is shared.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train_data, test_data = (part.to(device) for part in corpus())
    model = LanguageModel().to(device)
    entropy = unigram_entropy(test_data)
    console.print(
        f"Trains a model of {sum(p.numel() for p in model.parameters()):,} parameters on"
        f" {len(train_data):,} bytes of Python's language reference;"
        f" {len(test_data):,} bytes are held out."
    )
    try:
        train(model, train_data, test_data, seconds)
    except KeyboardInterrupt:
        console.print("  stopped")
    loss = held_out_loss(model, test_data)
    table = Table("held-out text, per byte", "nats", "bits")
    for name, nats in [("unigram entropy", entropy), ("loss of the model", loss)]:
        table.add_row(name, f"{nats:.3f}", f"{nats / math.log(2):.3f}")
    console.print(
        table, f"The loss is {loss / entropy:.2f} of the unigram entropy. The model writes:\n"
    )
    sample(model, torch.tensor(list(prompt.encode()), device=device))
    raise typer.Exit(not good)


if __name__ == "__main__":
    typer.run(main)
