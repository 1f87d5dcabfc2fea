"""The chunk form of a walk in float64 NumPy: what the kernels compute, for the self-check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagen.derive.derivation import Role, Walk

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Chunks:
    """What all walks of a recurrence share. `size` is that of a chunk, in tokens.

    `log_decay` is [T, H, K, V] or what broadcasts to it, `bonus` likewise; `inclusive` as in
    `Operands`.
    """

    log_decay: Array
    bonus: Array | None
    inclusive: bool
    scale: float
    size: int


@dataclass(frozen=True, slots=True)
class Walked:
    """The result of a walk, [T, H, ·], without what tokens give to themselves, and that.

    `state`, [H, K, V], is what the walk leaves; `ends` what it had at each chunk's
    end: forward without what the last token writes.
    """

    result: Array
    own: Array
    state: Array
    ends: dict[int, Array]


def walk_in_chunks(walk: Walk, tensors: dict[Role, Array], chunks: Chunks, state: Array) -> Walked:
    """One walk. With G the inclusive sum of log decays in a chunk and R what a read has seen of it,
    G or G without its own token's, the state reaches read i by exp(R_i), write j reaches the end by
    exp(G_last - G_j), and read i by exp(R_i - G_j). In reverse the same from the other side.
    """
    q, k, v = (tensors[role] for role in (walk.query, walk.key, walk.value))
    x, g, u = state, chunks.log_decay, chunks.bonus
    if walk.transposed:
        x, g = np.swapaxes(x, -1, -2), np.swapaxes(g, -1, -2)
        u = None if u is None else np.swapaxes(u, -1, -2)
    tokens, size, scale = q.shape[0], chunks.size, chunks.scale
    g = np.broadcast_to(g, (tokens, *x.shape))
    result, own, ends = np.zeros(v.shape), np.zeros(v.shape), {}
    starts = range(0, tokens, size)
    for start in reversed(starts) if walk.reverse else starts:
        c = slice(start, min(start + size, tokens))
        G = np.cumsum(g[c], axis=0)  # [C, H, K, V]
        R = G if chunks.inclusive else G - g[c]
        read, write = (G[-1] - G, R) if walk.reverse else (R, G[-1] - G)
        reach = np.tri(len(G), k=-1, dtype=bool)
        D = R[:, None] - G[None]  # [i, j, H, K, V]
        if walk.reverse:
            reach, D = reach.T, np.swapaxes(D, 0, 1)
        D = np.exp(np.where(reach[..., None, None, None], D, -np.inf))
        if walk.reverse:
            ends[c.stop] = np.swapaxes(x, -1, -2) if walk.transposed else x
        inter = np.einsum("ihk,hkv,ihkv->ihv", q[c], x, np.exp(read))
        result[c] = scale * np.einsum("ihk,jhk,jhv,ijhkv->ihv", q[c], k[c], v[c], D)
        result[c] += inter if walk.reverse else scale * inter
        if chunks.inclusive or u is not None:
            weight = 1.0 if u is None else u
            weight = np.broadcast_to(weight, x.shape)
            own[c] = scale * np.einsum("ihk,ihk,ihv,hkv->ihv", q[c], k[c], v[c], weight)
        added = np.einsum("jhk,jhv,jhkv->hkv", k[c], v[c], np.exp(write))
        x = np.exp(G[-1]) * x + (scale * added if walk.reverse else added)
        if not walk.reverse:
            x_last = np.einsum("hk,hv,hkv->hkv", k[c.stop - 1], v[c.stop - 1], np.exp(write[-1]))
            ends[c.stop] = np.swapaxes(x - x_last, -1, -2) if walk.transposed else x - x_last
    return Walked(result, own, np.swapaxes(x, -1, -2) if walk.transposed else x, ends)


def gate_gradient(read: Array, wrote: Array, ends: dict[int, Array], chunks: Chunks) -> Array:
    """The gradient of a log decay, [T, H, D], as `gate_bwd` computes it.

    `read` is q dq and `wrote` k dk, both without what tokens give to themselves; `ends` the product
    of the states of both walks at the end of every window, by token.
    """
    result = np.zeros(read.shape)
    start = 0
    for stop in sorted(ends):
        total = ends[stop]
        for t in reversed(range(start, stop)):
            total = total + read[t] - (wrote[t] if t + 1 < stop else 0)
            result[t] = total if chunks.inclusive else total - read[t]
        start = stop
    return result
