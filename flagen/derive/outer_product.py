"""Family "diagonal outer product".

    S[t] = decay S[t-1] + k[t] ⊗ v[t]        o[t] = scale ⟨q[t], S[t]⟩

With X[t] = ∂L/∂S[t], which obeys `X[t] = decay[t+1] X[t+1] + scale q[t] ⊗ do[t]`, the gradients are
reads of S and X:

    dq[t] = scale S[t] do[t]      dk[t] = X[t] v[t]      dv[t] = k[t] X[t]

Each is again a walk of this family: S is written by (k, v) and X, backwards in time, by (q, do). So
the adjoint is the forward with its roles exchanged, and needs no kernel of its own. (The state's
gradient rule: arXiv 2312.06635, appendix; the exchange of roles is ours.)

A gate g[t] scales everything that is written before it and read from it on, so its gradient is the
sum of q[i] · k[j] · (their decay) · do[i] v[j] over the pairs j < t <= i. By where j and i lie,
inside the chunk of t or outside, these are four parts:

    both inside   the sum over s >= t of (q dq - k dk)[s], of what the chunk's tokens give to each
                  other: a pair inside the sum adds and takes the same number
    i inside      the sum over s >= t of (q dq)[s], of what the chunk's entering state S gives
    j inside      the sum over s < t of (k dk)[s], of what the gradient Y at its end gives
    neither       the sum of S Y, decayed by the whole chunk

No part is a difference of large numbers, so dg has the digits of dq and dk however strong the
decays are. (By channel the kernel takes the third as its whole sum less that over s >= t, together
with the others and in more digits than dg keeps; the last token, whose write may be large, is left
out.) A token's own product crosses no gate and is in none of them. For a read before the update
the pairs are j < t < i. By channel the sums leave that channel out.

The sum is the same with q and do, k and v, and the two axes of S exchanged. So a decay along the
axis that reads keep has this gradient with do o for q dq and v dv for k dk; and its forward walk is
that of dq for a decay along the other axis.
"""

from __future__ import annotations

from flagen.derive.derivation import Role, Walk

FORWARD = Walk(Role.Q, Role.K, Role.V, Role.O, reverse=False, transposed=False)

ADJOINT = (
    Walk(Role.DO, Role.V, Role.K, Role.DQ, reverse=False, transposed=True),
    Walk(Role.V, Role.DO, Role.Q, Role.DK, reverse=True, transposed=True),
    Walk(Role.K, Role.Q, Role.DO, Role.DV, reverse=True, transposed=False),
)
