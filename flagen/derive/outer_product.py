"""Family "diagonal outer product".

    S[t] = decay S[t-1] + k[t] ⊗ v[t]        o[t] = scale ⟨q[t], S[t]⟩

With X[t] = ∂L/∂S[t], which obeys `X[t] = decay[t+1] X[t+1] + scale q[t] ⊗ do[t]`, the gradients are
reads of S and X:

    dq[t] = scale S[t] do[t]      dk[t] = X[t] v[t]      dv[t] = k[t] X[t]

Each is again a walk of this family: S is written by (k, v) and X, backwards in time, by (q, do). So
the adjoint is the forward with its roles exchanged, and needs no kernel of its own. (The state's
gradient rule: arXiv 2312.06635, appendix; the exchange of roles is ours.)
"""

from __future__ import annotations

from flagen.derive.derivation import Role, Walk

FORWARD = Walk(Role.Q, Role.K, Role.V, Role.O, reverse=False, transposed=False)

ADJOINT = (
    Walk(Role.DO, Role.V, Role.K, Role.DQ, reverse=False, transposed=True),
    Walk(Role.V, Role.DO, Role.Q, Role.DK, reverse=True, transposed=True),
    Walk(Role.K, Role.Q, Role.DO, Role.DV, reverse=True, transposed=False),
)
