"""The codes of the mistakes that `analyze` finds: title, explanation, fix."""

from __future__ import annotations

FG2: dict[str, tuple[str, str, str]] = {
    "FG201": (
        "quadratic in the state",
        "An update multiplies two expressions that both hold a state, as in `S * dot(k, S)`. Every "
        "form rests on updates that are affine in the state, because affine maps compose: that is "
        "what lets a chunk, a segment or a GPU be summarised and joined to the next.",
        "Replace one of the factors by an input, or form the product in the output, of reads.",
    ),
    "FG202": (
        "nonlinear in the state",
        "An update applies a nonlinear function to a running state, or divides by it, as in "
        "`sigmoid(dot(k, S))`. Such a recurrence has no exact parallel form: each token would have "
        "to wait for the one before it.",
        "Apply the function to inputs, or to a read in the output.",
    ),
    "FG203": (
        "frozen state",
        "`frozen(S)` is the state at the start of the chunk. Updates that are nonlinear in a "
        "frozen state (test-time training) form a family of their own, which is not generated yet.",
        "Use `prev(S)`, the state before the step, in an update that is affine in it.",
    ),
    "FG204": (
        "two passes",
        "The output reads a state with something that is made of another read, or takes a softmax "
        "of a read. Then all of the first read must be known before the second pass can begin. "
        "Recurrences of two passes are not generated yet.",
        "Write one spec per pass; the output of the first, with what comes in between, is an input "
        "of the second.",
    ),
    "FG205": (
        "bilinear read",
        "An update contracts both axes of a state, as in `dot(v, dot(k, S))`: a number that "
        "depends on the whole state. No family has such a transition.",
        "Contract one axis in the update. An output may contract the other one too.",
    ),
    "FG206": (
        "matrix used as a whole",
        "The output applies a nonlinear function to a state with two axes, as in `exp(S)`. Outputs "
        "see such a state through reads, which contract one of its axes.",
        "Read the state first: `dot(q, S)`.",
    ),
    "FG207": (
        "division by zero",
        "A divisor is zero whatever the inputs are, because its terms cancel, or a logarithm is "
        "taken of such an expression.",
        "Check the signs in the divisor.",
    ),
    "FG208": (
        "softmax inside a recurrence",
        "A softmax of inputs is a pass over an axis of its own and is not generated yet.",
        "Apply the softmax to the input before the call.",
    ),
}
