"""The GPUs that kernels are planned and compiled for, whether or not one is here."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class GPU:
    """An architecture as Triton names it, and the facts that launches depend on.

    `shared`: bytes of shared memory that a program may have. `multiprocessors` differs within an
    architecture; it is that of the largest common model.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    multiprocessors: int
    shared: int


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("sm_80", "cuda", 80, 32, 108, 163 << 10),
        GPU("sm_86", "cuda", 86, 32, 84, 99 << 10),
        GPU("sm_89", "cuda", 89, 32, 142, 99 << 10),
        GPU("sm_90", "cuda", 90, 32, 132, 227 << 10),
        GPU("sm_100", "cuda", 100, 32, 148, 227 << 10),
        GPU("sm_120", "cuda", 120, 32, 188, 99 << 10),
        GPU("gfx942", "hip", "gfx942", 64, 304, 64 << 10),
    )
}


def find_gpu(text: str) -> GPU:
    """The GPU named `sm_90`, or `sm_90:114`: one with 114 multiprocessors. Raises ValueError."""
    name, colon, count = text.strip().partition(":")
    if name not in GPUS:
        raise ValueError(f"`{name}` is no architecture that flagen knows: {', '.join(GPUS)}")
    if not colon:
        return GPUS[name]
    if not count.isdecimal() or int(count) == 0:
        raise ValueError(f"`{text}`: after the colon comes the number of multiprocessors")
    return replace(GPUS[name], multiprocessors=int(count))


def this_gpu() -> GPU | None:
    """The GPU of this machine, as Triton sees it; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    from triton.runtime import driver  # type: ignore[import-untyped]

    target = driver.active.get_current_target()
    facts = driver.active.utils.get_device_properties(torch.cuda.current_device())
    return GPU(
        f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch),
        target.backend,
        target.arch,
        target.warp_size,
        facts["multiprocessor_count"],
        facts["max_shared_mem"],
    )
