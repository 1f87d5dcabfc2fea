"""The lines of a kernel that depend on what the decay depends on.

In each chunk, with G the inclusive sum of log2 decays and G_n its last value: `b_read` scales what
the state gives to row i, `b_write` what column j gives to the state, `b_D` what column j gives to
row i. Exponents are differences that are at most 0; the mask is inside the exponent.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import Level
from flagen.render.environment import Block

NO_LINES = Block(())
LOG2_E = "1.4426950408889634"
_READ = "b_o = tl.dot(b_q, b_h.to(b_q.dtype), input_precision=PRECISION)"
_SCORES = "b_A = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)"


@dataclass(frozen=True, slots=True)
class DecayLines:
    """What the kernel templates print for the decay; what a level does not need is empty."""

    walk_parameters: str = ""
    kernel_parameters: str = ""
    forward: str = ""
    states: str = ""
    before_loop: Block = NO_LINES
    in_loop: Block = NO_LINES
    products: Block = NO_LINES
    within: str = ""
    write: Block = NO_LINES
    sum_parameters: str = ""
    sum_arguments: str = ""
    segment_decay: Block = NO_LINES
    scan_parameters: str = ""
    scan_sizes: str = ""
    scan_before_loop: Block = NO_LINES
    scan_factor: str = ""
    step_before_loop: Block = NO_LINES
    step_before: str = ""
    step_after: Block = NO_LINES
    parallel_columns: Block = NO_LINES
    parallel_rows: Block = NO_LINES
    parallel_diagonal: Block = NO_LINES


def decay_lines(name: str, level: Level, bonus: bool) -> DecayLines:
    """The lines for `level`. Constant decays come from the head's index; see `log2_decay`."""
    if level is Level.SCALAR:
        return _scalar(name)
    if level is Level.KEY:
        return _by_channel(bonus)
    if level is Level.NONE:
        return DecayLines(
            # in this order: forward and backward 174 us in an experiment (H200, bfloat16, B4 T2048
            # H16 D128), 194 in the other
            products=Block.of(f"{_SCORES}\n{_READ}"),
            within="tl.where(o_d >= 0, b_A, 0.0)",
            write=Block.of("b_u = b_v"),
            parallel_diagonal=Block.of("b_D = tl.where(o_d >= 0, scale, 0.0)"),
        )
    if level is Level.CONSTANT:
        masked = "b_D = tl.where(o_d >= 0, {}tl.exp2(tl.maximum(o_d, 0) * {}), 0.0)"
        return DecayLines(
            walk_parameters="b_g, ",
            forward=f"{name}_log2_decay(i_h, H), ",
            sum_arguments=f"{name}_log2_decay(i_h, H), ",
            before_loop=Block.of(
                f"b_g = b_g.to(tl.float32)\n# [BT, BT]\n{masked.format('', 'b_g')}"
            ),
            in_loop=Block.of(
                "b_G = tl.minimum(o_t + 1, n) * b_g\n"
                "b_G_n = n * b_g\n"
                "b_read = tl.exp2(tl.where(reverse, b_G_n - b_G, b_G))\n"
                "b_write = tl.exp2(tl.where(reverse, b_G, b_G_n - b_G))"
            ),
            products=Block.of(f"{_READ} * b_read[:, None]\n{_SCORES}"),
            within="b_A * b_D",
            write=Block.of("b_u = (b_v * b_write[:, None]).to(b_v.dtype)\nb_h *= tl.exp2(b_G_n)"),
            scan_before_loop=Block.of(f"b_g = {name}_log2_decay(i_h, H).to(tl.float32)"),
            scan_factor="tl.exp2(tl.minimum(L, n_t - i_l * L) * b_g)",
            step_before_loop=Block.of(
                "# rounded once: an error here grows with every step\n"
                "decay_before = tl.exp2(tl.where(adjoint, 0.0, b_g)).to(tl.float32)\n"
                "decay_after = tl.exp2(tl.where(adjoint, b_g, 0.0)).to(tl.float32)"
            ),
            step_before="decay_before * ",
            step_after=Block.of("b_h *= decay_after"),
            parallel_columns=Block.of(
                "# from the column to the nearest row of the block\n"
                "o_s = tl.where(reverse, r_c + o_t - (BT - 1), -r_c - o_t)\n"
                "b_A *= tl.exp2(o_s * b_g.to(tl.float32))[None, :]"
            ),
            parallel_rows=Block.of(
                "o_r = tl.where(reverse, BT - 1 - o_t, o_t)\n"
                "b_o *= tl.exp2(o_r * b_g.to(tl.float32))[:, None]"
            ),
            parallel_diagonal=Block.of(masked.format("scale * ", "b_g.to(tl.float32)")),
        )
    if level in (Level.VALUE, Level.BOTH):
        return DecayLines()
    raise NotImplementedError(f"no kernel lines for a decay that is {level.value}")


def _scalar(name: str) -> DecayLines:
    """A gate g per token and head."""
    return DecayLines(
        walk_parameters="g, h_c, ",
        kernel_parameters="g, ",
        forward="g + r_t, None, ",
        before_loop=Block.of(
            "# a sum's rounding is an error of the decay: float32 operands need more digits\n"
            "GATE: tl.constexpr = tl.float64 if k.dtype.element_ty == tl.float32 else tl.float32\n"
            "# loaded a chunk ahead, since the loads of a walk wait for each other otherwise\n"
            "o_g = tl.where(reverse, tl.cdiv(n_t, BT) - 1, 0) * BT + o_t\n"
            "b_next = tl.load(g + o_g.to(tl.int64) * H, mask=(o_g >= 0) & (o_g < n_t), other=0)\n"
            "# in reverse every write decays, out of the range of float16 where decays are strong\n"
            "dtype: tl.constexpr = k.dtype.element_ty\n"
            "WIDE: tl.constexpr = tl.float32 if reverse and dtype == tl.float16 else dtype\n"
            "b_a = 0.0"
        ),
        in_loop=Block.of(
            f"b_g = b_next.to(GATE) * {LOG2_E}\n"
            "o_g = tl.where(reverse, i_c - 1, i_c + 1) * BT + o_t\n"
            "b_next = tl.load(g + o_g.to(tl.int64) * H, mask=(o_g >= 0) & (o_g < n_t), other=0)\n"
            "b_G = tl.cumsum(b_g, 0)\n"
            "b_G_n = tl.sum(b_g, 0)\n"
            "b_a += b_G_n.to(tl.float32)\n"
            "b_D = tl.where(reverse, b_G[None, :] - b_G[:, None], b_G[:, None] - b_G[None, :])\n"
            'b_D = tl.where(o_d >= 0, b_D.to(tl.float32), float("-inf"))\n'
            "b_read = tl.exp2(tl.where(reverse, b_G_n - b_G, b_G).to(tl.float32))\n"
            "b_write = tl.exp2(tl.where(reverse, b_G, b_G_n - b_G).to(tl.float32))"
        ),
        products=Block.of(f"{_READ} * b_read[:, None]\n{_SCORES}"),
        within="b_A * tl.exp2(b_D)",
        write=Block.of(
            "b_u = (b_v * b_write[:, None]).to(WIDE)\nb_h *= tl.exp2(b_G_n.to(tl.float32))"
        ),
        sum_parameters="g, ",
        sum_arguments="g + r_t, None, ",
        segment_decay=Block.of(
            "if (i_k == 0) & (i_v == 0):\n    tl.store(a + i_s.to(tl.int64) * H + i_h, b_a)"
        ),
        scan_parameters="a, ",
        scan_before_loop=Block.of("r_a = i_s.to(tl.int64) * H + i_h"),
        scan_factor="tl.exp2(tl.load(a + r_a + i_l * H))",
    )


def _by_channel(bonus: bool) -> DecayLines:
    """A gate g per token, head and channel of K; a bonus u per head and channel of K."""
    u = "u + i_h * K, " if bonus else ""
    none = "None, " if bonus else ""
    return DecayLines(
        walk_parameters=f"g, {'u, ' if bonus else ''}h_c, a_c, ",
        kernel_parameters=f"g, {'u, ' if bonus else ''}",
        forward=f"g + r_t * K, {u}None, None, ",
        states=f"g + r_t * K, {none}h_c, a_c, ",
        sum_parameters="g, ",
        sum_arguments=f"g + r_t * K, {none}None, None, ",
        segment_decay=Block.of(
            "if i_v == 0:\n"
            "    tl.store(a + (i_s.to(tl.int64) * H + i_h) * K + o_k, b_a, mask=o_k < K)"
        ),
        scan_parameters="a, ",
        scan_sizes="K: tl.constexpr, ",
        scan_before_loop=Block.of("r_a = (i_s.to(tl.int64) * H + i_h) * K + o_h // (KV // K)"),
        scan_factor="tl.exp2(tl.load(a + r_a + i_l * (H * K), mask=m_h, other=0))",
    )
