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


@dataclass(frozen=True, slots=True)
class DecayLines:
    """What the kernel templates print for the decay; what a level does not need is empty."""

    walk_parameters: str = ""
    kernel_parameters: str = ""
    forward: str = ""
    states: str = ""
    gradient_parameters: str = ""
    chunk_gates: Block = NO_LINES
    read_gradients: Block = NO_LINES
    write_gradients: Block = NO_LINES
    gate_gradients: Block = NO_LINES
    value_gradients: Block = NO_LINES
    last_value_gradients: Block = NO_LINES
    before_loop: Block = NO_LINES
    in_loop: Block = NO_LINES
    state: str = ""
    sum_parameters: str = ""
    sum_arguments: str = ""
    segment_decay: Block = NO_LINES
    scan_parameters: str = ""
    scan_sizes: str = ""
    scan_before_loop: Block = NO_LINES
    scan_state: str = ""
    step_before_loop: Block = NO_LINES
    step_before: str = ""
    step_after: Block = NO_LINES
    parallel_columns: Block = NO_LINES
    parallel_rows: Block = NO_LINES
    parallel_diagonal: Block = NO_LINES


def decay_lines(name: str, level: Level, before: bool, bonus: bool) -> DecayLines:
    """The lines for `level`. Constant decays come from the head's index; see `log2_decay`."""
    if level is Level.SCALAR:
        return _scalar(name)
    if level is Level.KEY:
        return _by_channel(name, before, bonus)
    if level is Level.NONE:
        masked = "b_D = tl.where(o_d >= 0, scale, 0.0)"
        return DecayLines(
            before_loop=Block.of(
                f"# [BT, BT]\n{masked}\n"
                "b_read = tl.zeros([BT], dtype=tl.float32) + scale_read\n"
                "b_write = tl.zeros([BT], dtype=tl.float32) + scale_write"
            ),
            state="b_h + ",
            scan_state="b_h + ",
            parallel_diagonal=Block.of(masked),
        )
    if level is Level.CONSTANT:
        masked = "b_D = tl.where(o_d >= 0, scale * tl.exp2(tl.maximum(o_d, 0) * b_g), 0.0)"
        return DecayLines(
            walk_parameters="b_g, ",
            forward=f"{name}_log2_decay(i_h, H), ",
            sum_arguments=f"{name}_log2_decay(i_h, H), ",
            before_loop=Block.of(f"b_g = b_g.to(tl.float32)\n# [BT, BT]\n{masked}"),
            in_loop=Block.of(
                "b_G = tl.minimum(o_t + 1, n) * b_g\n"
                "b_G_n = n * b_g\n"
                "b_read = tl.exp2(tl.where(reverse, b_G_n - b_G, b_G)) * scale_read\n"
                "b_write = tl.exp2(tl.where(reverse, b_G, b_G_n - b_G)) * scale_write"
            ),
            state="b_h * tl.exp2(b_G_n) + ",
            scan_before_loop=Block.of(f"b_g = {name}_log2_decay(i_h, H).to(tl.float32)"),
            scan_state="b_h * tl.exp2(tl.minimum(L, n_t - i_l * L) * b_g) + ",
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
            parallel_diagonal=Block.of(masked.replace("b_g", "b_g.to(tl.float32)")),
        )
    if level in (Level.VALUE, Level.BOTH):
        return DecayLines()
    raise NotImplementedError(f"no kernel lines for a decay that is {level.value}")


def _scalar(name: str) -> DecayLines:
    """A gate g per token and head."""
    return DecayLines(
        walk_parameters="g, h_c, ",
        kernel_parameters="g, ",
        forward="g + r_t, h_c, ",
        states="g + r_t, h_c, ",
        gradient_parameters="dg, ",
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
            "b_D = tl.exp2(b_D) * scale\n"
            "b_read = tl.where(reverse, b_G_n - b_G, b_G).to(tl.float32)\n"
            "b_read = tl.exp2(b_read) * scale_read\n"
            "b_write = tl.where(reverse, b_G, b_G_n - b_G).to(tl.float32)\n"
            "b_write = tl.exp2(b_write) * scale_write"
        ),
        state="b_h * tl.exp2(b_G_n.to(tl.float32)) + ",
        chunk_gates=Block.of(
            "GATE: tl.constexpr = tl.float64 if dtype == tl.float32 else tl.float32\n"
            "b_g = tl.load(g + r_t + o_t * H, mask=m_t, other=0).to(GATE)\n"
            f"b_G = tl.cumsum(b_g, 0) * {LOG2_E}\n"
            f"b_G_n = tl.sum(b_g, 0) * {LOG2_E}"
        ),
        read_gradients=Block.of(
            f"b_dq, b_dg = {name}_read_gradients(b_q, b_k, b_A, b_dq, b_G, PRECISION)"
        ),
        write_gradients=Block.of(
            f"b_dk, b_writes = {name}_write_gradients(\n"
            "    b_q, b_k, b_B, b_dk, b_p, b_G, b_G_n, n_t, PRECISION\n)"
        ),
        gate_gradients=Block.of(
            "b_dg += b_writes\n"
            "p_g = dg + i_b.to(tl.int64) * n_g + r_t + o_t * H\n"
            "tl.store(p_g, b_dg.to(dg.dtype.element_ty), mask=m_t)"
        ),
        value_gradients=Block.of(
            "b_B += tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)\n"
            "b_y = b_k * tl.exp2((b_G_n - b_G).to(tl.float32))[:, None]\n"
            "b_dv += tl.dot(b_y.to(dtype), b_dh, input_precision=PRECISION)"
        ),
        last_value_gradients=Block.of(
            "b_D = (b_G[None, :] - b_G[:, None]).to(tl.float32)\n"
            'b_B *= tl.exp2(tl.where(o_t[:, None] <= o_t[None, :], b_D, float("-inf")))'
        ),
        sum_parameters="g, ",
        sum_arguments="g + r_t, None, ",
        segment_decay=Block.of(
            "if (i_k == 0) & (i_v == 0):\n    tl.store(a + i_s.to(tl.int64) * H + i_h, b_a)"
        ),
        scan_parameters="a, ",
        scan_before_loop=Block.of("r_a = i_s.to(tl.int64) * H + i_h"),
        scan_state="b_h * tl.exp2(tl.load(a + r_a + i_l * H)) + ",
    )


def _by_channel(name: str, before: bool, bonus: bool) -> DecayLines:
    """A gate g per token, head and channel of K; a bonus u per head and channel of K."""
    u = "u + i_h * K, " if bonus else ""
    none = "None, " if bonus else ""
    sums = f"b_g, b_read, b_write, b_n = {name}_sums(g, p_k, m_tk, False, dtype)\n"
    load_u = "b_u = tl.load(u + i_h * K + o_k, mask=m_k, other=0)\n" * bonus
    own = bonus or not before
    times_u = " * b_u[None, :]" if bonus else ""
    own_gradient = (
        "# what a token gives itself\n"
        "b_own = tl.sum(tl.where(o_t[:, None] == o_t[None, :], b_A, 0.0), 1)[:, None]\n"
    )
    bonus_gradient = (
        "p_u = du + (i_c.to(tl.int64) * H + i_h) * K + o_k\n"
        "tl.store(p_u, tl.sum(b_own * b_q * b_k, 0), mask=m_k)\n"
    )
    return DecayLines(
        walk_parameters=f"g, {'u, ' if bonus else ''}h_c, a_c, ",
        kernel_parameters=f"g, {'u, ' if bonus else ''}",
        forward=f"g + r_t * K, {u}h_c, None, ",
        states=f"g + r_t * K, {none}h_c, a_c, ",
        gradient_parameters=f"dg, {'du, ' if bonus else ''}",
        read_gradients=Block.of(
            f"{own_gradient * bonus}{sums}b_dq, b_r, _ = {name}_gradients(\n"
            "    q + p_k, m_tk, b_k, b_A, b_dq, b_read, b_read - b_n[None, :], b_write, b_g, "
            f"o_t {'> 0' if before else '>= 0'}, False, EXACT, PRECISION,\n)  # fmt: skip\n"
            + f"{load_u}b_dq += b_own * b_k{times_u}\n" * bonus
            + bonus_gradient * bonus
        ),
        write_gradients=Block.of(
            "# the gates again: kept, they would cost a tile of registers\n"
            f"{sums}b_dk, b_w, b_s = {name}_gradients(\n"
            "    k + p_k, m_tk, b_q, b_B, b_dk, b_write, b_write, b_read - b_n[None, :], b_g, "
            "o_t < n_t - 1, True, EXACT, PRECISION,\n)  # fmt: skip"
            + f"\n{load_u}b_dk += b_own * b_q{times_u}"
            * bonus
        ),
        gate_gradients=Block.of(
            f"b_dg = {name}_gate_gradients(b_r, b_w, b_s + b_p * tl.exp2(b_n), dtype)\n"
            "tl.store(dg + p_k, b_dg.to(dg.dtype.element_ty), mask=m_tk)"
        ),
        value_gradients=Block.of(
            f"{sums}{load_u}"
            "b_x = b_q * tl.exp2(b_read)\n"
            "b_y = b_k * tl.exp2(b_write)\n"
            f"b_B = {name}_reach(b_B, b_q, b_k, b_x, b_y, b_g, b_n, True, EXACT, PRECISION)\n"
            "b_dv += tl.dot(b_y.to(dtype), b_dh, input_precision=PRECISION)\n"
            + f"b_self += tl.sum(b_q.to(tl.float32) * b_k{times_u}, 1)"
            * own
        ),
        last_value_gradients=Block.of(
            "b_B = tl.where(o_t[:, None] < o_t[None, :], b_B, 0.0)"
            + "\nb_dv += (b_self * scale)[:, None] * b_do" * own
        ),
        sum_parameters="g, ",
        sum_arguments=f"g + r_t * K, {none}None, None, ",
        segment_decay=Block.of(
            "if i_v == 0:\n"
            "    tl.store(a + (i_s.to(tl.int64) * H + i_h) * K + o_k, b_a, mask=o_k < K)"
        ),
        scan_parameters="a, ",
        scan_sizes="K: tl.constexpr, ",
        scan_before_loop=Block.of("r_a = (i_s.to(tl.int64) * H + i_h) * K + o_h // (KV // K)"),
        scan_state="b_h * tl.exp2(tl.load(a + r_a + i_l * (H * K), mask=m_h, other=0)) + ",
    )
