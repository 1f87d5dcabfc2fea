"""A kernel with the hazard that `hazards` looks for; it is compiled, and never run."""

import triton
import triton.language as tl


@triton.jit
def product_and_sum(a, b, c, s, n, B: tl.constexpr):
    """c = a b and s = the sum of b: one tile for the matrix unit and for registers."""
    o = tl.arange(0, B)
    b_c = tl.zeros([B, B], dtype=tl.float32)
    b_s = tl.zeros([B], dtype=tl.float32)
    for i in range(n):
        b_a = tl.load(a + o[:, None] * (n * B) + i * B + o[None, :])
        b_b = tl.load(b + (i * B + o)[:, None] * B + o[None, :])
        b_c += tl.dot(b_a, b_b)
        b_s += tl.sum(b_b.to(tl.float32), 0)
    tl.store(c + o[:, None] * B + o[None, :], b_c)
    tl.store(s + o, b_s)


@triton.jit
def product_alone(a, b, c, n, B: tl.constexpr):
    """c = a b: the same loop without the hazard."""
    o = tl.arange(0, B)
    b_c = tl.zeros([B, B], dtype=tl.float32)
    for i in range(n):
        b_a = tl.load(a + o[:, None] * (n * B) + i * B + o[None, :])
        b_b = tl.load(b + (i * B + o)[:, None] * B + o[None, :])
        b_c += tl.dot(b_a, b_b)
    tl.store(c + o[:, None] * B + o[None, :], b_c)
