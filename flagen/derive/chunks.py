"""The chunk form of a walk in float64 NumPy: what the kernels compute, for the self-check."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flagen.derive.derivation import Walk

Array = npt.NDArray[np.float64]


def walk_in_chunks(
    walk: Walk,
    tensors: dict[str, Array],
    log_decay: Array,
    scale: float,
    state: Array,
    size: int,
) -> tuple[Array, Array]:
    """The result of `walk`, [T, H, ·], and the state that it leaves, from chunks of `size` tokens.

    `tensors` are [T, H, ·] under the roles' names; `log_decay` is [H] or [T, H]; `state` is
    [H, K, V] as the recurrence has it. With G the inclusive sum of log decays in a chunk, token j
    reaches token i by exp(G_i - G_j), and the state reaches token i by exp(G_i); in reverse by
    exp(G_j - G_i) and exp(G_last - G_i).
    """
    q, k, v = (tensors[role.value] for role in (walk.query, walk.key, walk.value))
    tokens = q.shape[0]
    g = np.broadcast_to(log_decay, q.shape[:2])
    x = np.swapaxes(state, -1, -2) if walk.transposed else state
    result = np.zeros(v.shape)
    starts = range(0, tokens, size)
    for start in reversed(starts) if walk.reverse else starts:
        c = slice(start, min(start + size, tokens))
        G = np.cumsum(g[c], axis=0)  # [C, H]
        D = G[:, None] - G[None]  # [i, j, H]
        reach = np.tril(np.ones(D.shape[:2]))
        if walk.reverse:
            D, reach = -D, reach.T
        A = np.einsum("ihk,jhk->ijh", q[c], k[c]) * np.exp(np.minimum(D, 0)) * reach[..., None]
        read, write = np.exp(G), np.exp(G[-1] - G)
        if walk.reverse:
            read, write = write, read
        inter = np.einsum("ihk,hkv->ihv", q[c] * read[..., None], x)
        result[c] = scale * np.einsum("ijh,jhv->ihv", A, v[c])
        result[c] += inter if walk.reverse else scale * inter
        added = np.einsum("jhk,jhv->hkv", k[c] * write[..., None], v[c])
        x = np.exp(G[-1])[:, None, None] * x + (scale * added if walk.reverse else added)
    return result, np.swapaxes(x, -1, -2) if walk.transposed else x
