"""How time and memory are measured. bench/README.md says what the numbers mean."""

from __future__ import annotations

import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

Call = Callable[[], Any]


class Meter(Protocol):
    """What the runner needs; tests have one that needs no GPU."""

    device: str

    def gpu_us(self, call: Call) -> tuple[float, bool]:
        """GPU time of a call; false if the host was too slow to keep the GPU busy."""

    def eager_us(self, call: Call) -> float:
        """Wall time of a call in a steady loop."""

    def peak_mib(self, call: Call) -> float:
        """The most memory that a call holds beyond what was allocated before."""

    def copy_rate(self) -> float:
        """Bytes per second, read and written, of a large copy on the device."""

    def free_bytes(self) -> int:
        """Memory that is left."""


class CudaMeter:
    """Measures on the current CUDA device."""

    device = "cuda"

    def __init__(self) -> None:
        cycles = 20_000_000
        torch.cuda._sleep(cycles)  # clocks rise
        ms = self._between(lambda: torch.cuda._sleep(cycles))
        self.cycles_per_us = cycles / (ms * 1e3)

    def gpu_us(self, call: Call) -> tuple[float, bool]:
        """The median of rounds of calls that all were queued before the first one started."""
        issue, whole = self._rehearse(call)
        calls = 3 if whole > 20_000 else min(50, max(12, int(2000 / whole)))
        rounds = 3 if whole > 20_000 else 5
        with _no_gc():
            while calls:
                for patience in (2, 6):
                    spin = min(400_000, patience * issue * calls + 300)
                    times: list[float] = []
                    while len(times) < rounds and (t := self._queued(call, calls, spin)):
                        times.append(t)
                    if len(times) == rounds:
                        return statistics.median(times), True
                calls //= 3  # the driver queues about a thousand launches, then the host waits
            return statistics.median(self._between(call) * 1e3 for _ in range(3)), False

    def eager_us(self, call: Call) -> float:
        """The median over rounds of calls in a row, each round ended by one synchronisation."""
        _, whole = self._rehearse(call)
        calls = min(200, max(5, int(20_000 / whole)))
        rounds = 3 if whole > 20_000 else 5
        times = []
        with _no_gc():
            for _ in range(rounds):
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                torch.cuda.synchronize()
                times.append((time.perf_counter() - start) * 1e6 / calls)
        return statistics.median(times)

    def peak_mib(self, call: Call) -> float:
        """From the allocator's own count, so fragments and the context are not in it."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def copy_rate(self) -> float:
        """From copies of a quarter of the free memory, at most 2 GiB."""
        size = min(2 << 30, self.free_bytes() // 4)
        source = torch.empty(size, dtype=torch.uint8, device="cuda").fill_(1)
        target = torch.empty_like(source)
        us, _ = self.gpu_us(lambda: target.copy_(source))
        return 2 * size / (us * 1e-6)

    def free_bytes(self) -> int:
        """What the driver has and what the allocator caches."""
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached

    def _rehearse(self, call: Call) -> tuple[float, float]:
        """Microseconds to issue a call, and until it is done, once it is warm."""
        call()
        torch.cuda.synchronize()
        results = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            issued = time.perf_counter()
            torch.cuda.synchronize()
            results.append(((issued - start) * 1e6, (time.perf_counter() - start) * 1e6))
        return min(results)

    def _queued(self, call: Call, calls: int, spin_us: float) -> float | None:
        """Time per call, or None if the spin was over before all calls were queued."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(spin_us * self.cycles_per_us))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        in_time = not start.query()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e3 / calls if in_time else None

    def _between(self, call: Call) -> float:
        """Milliseconds between events around one call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)


class TooSlow(BaseException):
    """A first call that ran past its limit. No Exception: compilers wrap and swallow those."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TooSlow in the block after `seconds`, where the system has such a timer."""
    if not seconds or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlow(f"first call over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _no_gc() -> Iterator[None]:
    """The collector must not run in the middle of a round."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
