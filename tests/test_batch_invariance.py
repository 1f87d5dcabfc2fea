"""The same bits for a sequence alone, in a batch and packed, once segments are fixed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from generated._runtime import batch_invariant
from generated.retention import chunk_retention


@pytest.fixture(autouse=True)
def fixed_segments() -> Iterator[None]:
    batch_invariant(64)
    yield
    batch_invariant(0)


def forward_and_backward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, do: torch.Tensor, **options: torch.Tensor
) -> list[torch.Tensor]:
    """o and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    o, _ = chunk_retention(*leaves, **options)
    return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def test_alone_in_a_batch_and_packed(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (150, 70, 150)
    parts = [
        [torch.randn(1, T, 2, 16, generator=generator).to(device) for _ in range(4)]
        for T in lengths
    ]
    alone = [forward_and_backward(*part) for part in parts]
    batch = forward_and_backward(
        *(torch.cat([a, b]) for a, b in zip(parts[0], parts[2], strict=True))
    )
    bounds = torch.tensor([0, 150, 220, 370], device=device)
    packed = forward_and_backward(
        *(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)), cu_seqlens=bounds
    )
    for index, result in enumerate(alone):
        start, end = bounds[index].item(), bounds[index + 1].item()
        for mine, others in zip(result, packed, strict=True):
            assert torch.equal(mine, others[:, start:end])
    for row, index in enumerate((0, 2)):
        for mine, others in zip(alone[index], batch, strict=True):
            assert torch.equal(mine[0], others[row])


def test_only_whole_chunks() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        batch_invariant(100)
