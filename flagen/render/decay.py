"""The lines of a kernel that depend on what the decay depends on.

In each chunk, with G the inclusive sum of log2 decays and G_n its last value: `b_read` scales what
the state gives to row i, `b_write` what column j gives to the state, `b_D` what column j gives to
row i. Exponents are differences that are at most 0; the mask is inside the exponent.
"""

from __future__ import annotations

from dataclasses import dataclass

from flagen.analyze.recurrence import Level
from flagen.render.environment import Block


@dataclass(frozen=True, slots=True)
class DecayLines:
    """What the kernel templates print for the decay."""

    parameter: str
    argument: str
    before_loop: Block
    in_loop: Block
    state: str
    scan_before_loop: Block
    scan_state: str
    step_before_loop: Block
    step_before: str
    step_after: Block
    parallel_columns: Block
    parallel_rows: Block
    parallel_diagonal: Block


def decay_lines(name: str, level: Level) -> DecayLines:
    """The lines for `level`. Constant decays come from the head's index; see `log2_decay`."""
    if level is Level.NONE:
        masked = "b_D = tl.where(o_d >= 0, scale, 0.0)"
        return DecayLines(
            parameter="",
            argument="",
            before_loop=Block.of(
                f"# [BT, BT]\n{masked}\n"
                "b_read = tl.zeros([BT], dtype=tl.float32) + scale_read\n"
                "b_write = tl.zeros([BT], dtype=tl.float32) + scale_write"
            ),
            in_loop=Block.of(""),
            state="b_h + ",
            scan_before_loop=Block.of(""),
            scan_state="b_h + ",
            step_before_loop=Block.of(""),
            step_before="",
            step_after=Block.of(""),
            parallel_columns=Block.of(""),
            parallel_rows=Block.of(""),
            parallel_diagonal=Block.of(masked),
        )
    if level is Level.CONSTANT:
        masked = "b_D = tl.where(o_d >= 0, scale * tl.exp2(tl.maximum(o_d, 0) * b_g), 0.0)"
        return DecayLines(
            parameter="b_g, ",
            argument=f"{name}_log2_decay(i_h, H), ",
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
    raise NotImplementedError(f"no kernel lines for a decay that is {level.value}")
