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

    `log_decay` is [T, H, K, 1] or what broadcasts to it, `bonus` likewise, and `log_kept` is
    [T, H, 1, V]; `inclusive` as in `Operands`.
    """

    log_decay: Array
    log_kept: Array
    bonus: Array | None
    inclusive: bool
    scale: float
    size: int


@dataclass(frozen=True, slots=True)
class Walked:
    """The result of a walk, [T, H, ·], without what tokens give to themselves, and that.

    `from_state` is the part of the result that comes from the states that enter chunks. `state`,
    [H, K, V], is what the walk leaves. `ends`, by the token after a chunk, is the state that enters
    it; forward decayed by the whole chunk.
    """

    result: Array
    from_state: Array
    own: Array
    state: Array
    ends: dict[int, Array]


def walk_in_chunks(walk: Walk, tensors: dict[Role, Array], chunks: Chunks, state: Array) -> Walked:
    """One walk.

    With G the inclusive sum of log decays in a chunk and R what a read has seen of it, G or G
    without its own token's, the state reaches read i by exp(R_i), write j reaches the end by
    exp(G_last - G_j), and read i by exp(R_i - G_j). In reverse the same from the other side.
    """
    q, k, v = (tensors[role] for role in (walk.query, walk.key, walk.value))
    x, g, u = state, chunks.log_decay + chunks.log_kept, chunks.bonus
    if walk.transposed:
        x, g = np.swapaxes(x, -1, -2), np.swapaxes(g, -1, -2)
        u = None if u is None else np.swapaxes(u, -1, -2)
    tokens, size, scale = q.shape[0], chunks.size, chunks.scale
    g = np.broadcast_to(g, (tokens, *x.shape))
    result, from_state, own = (np.zeros(v.shape) for _ in range(3))
    ends = {}
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
        entered = x if walk.reverse else np.exp(G[-1]) * x
        ends[c.stop] = np.swapaxes(entered, -1, -2) if walk.transposed else entered
        inter = np.einsum("ihk,hkv,ihkv->ihv", q[c], x, np.exp(read))
        result[c] = scale * np.einsum("ihk,jhk,jhv,ijhkv->ihv", q[c], k[c], v[c], D)
        from_state[c] = inter if walk.reverse else scale * inter
        result[c] += from_state[c]
        if chunks.inclusive or u is not None:
            weight = 1.0 if u is None else u
            weight = np.broadcast_to(weight, x.shape)
            own[c] = scale * np.einsum("ihk,ihk,ihv,hkv->ihv", q[c], k[c], v[c], weight)
        added = np.einsum("jhk,jhv,jhkv->hkv", k[c], v[c], np.exp(write))
        x = np.exp(G[-1]) * x + (scale * added if walk.reverse else added)
    return Walked(result, from_state, own, np.swapaxes(x, -1, -2) if walk.transposed else x, ends)


def gate_gradient(dq: Array, dk: Array, ends: dict[int, Array], chunks: Chunks) -> Array:
    """The gradient of a log decay, [T, H, D], as `outer_product` has it.

    `dq` and `dk`, [2, T, H, D], are q dq and k dk without what tokens give to themselves: from the
    state that enters a chunk, and from its other tokens. `ends` is, by the token after a chunk, the
    product of the states that enter it on both sides, decayed by the whole chunk.
    """
    result = np.zeros(dq.shape[1:])
    start = 0
    for stop in sorted(ends):
        c = slice(start, stop)
        reads, writes = dq[0, c] + dq[1, c], dk[1, c]
        result[c] = np.cumsum((reads - writes)[::-1], 0)[::-1]
        result[c] += np.cumsum(dk[0, c], 0) - dk[0, c] + ends[stop]
        if not chunks.inclusive:
            result[c] -= reads
        start = stop
    return result
