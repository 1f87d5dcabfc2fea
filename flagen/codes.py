"""Every error code: its title, what it means and how to fix it, for `flagen explain CODE`.

FG0xx: the file cannot be read. FG1xx: the spec says something that has no meaning. FG2xx: the
recurrence has no normal form. FG3xx: a form that was asked for does not exist. FG4xx: a build would
overwrite what it must not.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """The long text of an error code."""

    title: str
    explanation: str
    fix: str


LOADING = {
    "FG001": Code(
        "file not found",
        "There is no file at the path that was given.",
        "Check the path. `flagen build` without arguments builds every spec in `specs/`.",
    ),
    "FG002": Code(
        "unreadable file",
        "The path exists, but it is a directory or the system does not let flagen read it.",
        "Name a YAML file that you may read.",
    ),
    "FG003": Code(
        "file too large",
        "A spec is 10 to 30 lines. Files over 64 KiB are refused before they are parsed, so that a "
        "spec from a stranger cannot exhaust the machine.",
        "Remove what does not belong in the spec.",
    ),
    "FG004": Code(
        "not UTF-8 text",
        "The file holds bytes that are not UTF-8: it is in another encoding, or is no text at all.",
        "Save the file as UTF-8.",
    ),
    "FG005": Code(
        "control character",
        "The file holds a NUL or another invisible control character. Such characters hide text "
        "from the reader, and YAML forbids them.",
        "Delete the character at the place shown.",
    ),
    "FG006": Code(
        "YAML syntax",
        "The file is not well-formed YAML 1.2. Frequent causes: a tab in the indentation, a "
        "missing space after a colon, an open bracket, or `: ` within an unquoted text.",
        "Correct the line shown, or put the text in quotes.",
    ),
    "FG007": Code(
        "duplicate key",
        "The same key stands twice in one mapping. Many YAML readers silently take the last one; "
        "flagen does not guess.",
        "Keep one of the two.",
    ),
    "FG008": Code(
        "YAML tag",
        "Tags such as `!!python/object` tell a YAML reader to build arbitrary values. A spec is "
        "plain data and has no use for them.",
        "Remove the tag. To make a value text, put it in quotes.",
    ),
    "FG009": Code(
        "YAML anchor or alias",
        "Anchors (`&x`) and aliases (`*x`) let a small file unfold into a huge one, so a spec has "
        "none. A value that begins with `*` or `&` is read as one, too.",
        "Write the value out, or put the text in quotes.",
    ),
    "FG010": Code(
        "several documents",
        "A file holds one spec; a line `---` begins a second YAML document.",
        "Put each spec in a file of its own.",
    ),
    "FG011": Code(
        "nested too deep",
        "Lists and mappings stand within each other more than 20 levels deep. A spec needs four.",
        "Remove the extra brackets or indentation.",
    ),
    "FG012": Code(
        "empty file",
        "The file holds nothing but blanks and comments.",
        "Start from a spec that works, such as `specs/retention.yaml`.",
    ),
    "FG013": Code(
        "key is no word",
        "A key of a mapping is a list or a mapping itself. Often an unquoted `{{ … }}` causes it.",
        "Use a word as the key.",
    ),
}

PARSING = {
    "FG101": Code(
        "missing key",
        "A spec needs `name`, `inputs`, `state`, `update` and `output`; a tensor written as a "
        "mapping needs `axes`.",
        "Add the key.",
    ),
    "FG102": Code(
        "unknown key",
        "The key means nothing here. Unknown keys are never ignored: a misspelt one would change "
        "what the spec means.",
        "Correct or remove the key; the message lists those that are allowed.",
    ),
    "FG103": Code(
        "wrong kind of value",
        "The value is, for example, a number where text is needed, or a word where a list is. "
        "Values are not converted.",
        "Write what the message asks for; put text that looks like a number in quotes.",
    ),
    "FG104": Code(
        "bad op name",
        "`name` becomes a folder and part of function names such as `chunk_retention`. It is a "
        "lower-case letter, then lower-case letters, digits and `_`, at most 64, and no keyword.",
        "Choose such a name.",
    ),
    "FG105": Code(
        "bad doc",
        "`doc` becomes a docstring of generated code. Backslashes, triple quotes and invisible "
        "characters would change that code or hide text in it.",
        "Write plain text; line breaks are fine.",
    ),
    "FG106": Code(
        "bad name",
        "Inputs and intermediates begin with a lower-case letter, states with any letter; letters, "
        "digits and `_` follow, 64 at most. No name begins with `_`.",
        "Rename it.",
    ),
    "FG107": Code(
        "name is taken",
        "The name would collide with a Python keyword, a function of the language, an axis of the "
        "spec or something that generated code uses: `scale`, `cu_seqlens`, anything that begins "
        "with `i_`, `b_` or `p_`, or `dq` next to `q` (the gradient of `q`).",
        "Rename it.",
    ),
    "FG108": Code(
        "name defined twice",
        "Each name means one thing. Only states may be assigned more than once; an intermediate "
        "that changed its meaning would make the order of reading matter twice.",
        "Give the second one a name of its own.",
    ),
    "FG109": Code(
        "bad axes",
        "Axes are upper-case names. An input is `[T, H, K]`: the token axis `T`, at most one head "
        "axis (`H`, `HV`, `HQ`, `G`), at most one feature axis. Without `T` it is a parameter. The "
        "batch is implicit. A state has at most two feature axes and no others. Every axis must "
        "occur in an input, because that is where its size comes from, or be a product of two "
        "that do, declared under `axes`. Such a product is an axis of states and of what `kron` "
        "makes, not of inputs and outputs.",
        "Write the axes in this order.",
    ),
    "FG110": Code(
        "bad domain",
        'A domain says where values lie: "<= 0", "< 0", ">= 0", "> 0", or `[low, high]` with\n'
        "low < high. It lets the compiler choose faster, equally safe arithmetic.",
        "Use one of these, or remove the key.",
    ),
    "FG111": Code(
        "malformed expression",
        "An operator, a name or a bracket is missing, or there is one too many.",
        "Correct the place shown. A product needs its `*`.",
    ),
    "FG112": Code(
        "unknown symbol",
        "The expression uses a name that nothing before it defines. Known are inputs, decays, "
        "states, `scale`, and what earlier statements assign. In `scale` and in a constant's "
        "`value`, known are axis sizes (`H`) and, for a constant, the indices of its axes (`h`).",
        "Correct the name, or declare it under `inputs`, `decay` or `state`.",
    ),
    "FG113": Code(
        "unknown function",
        "The language has a fixed set of functions. In `scale` and in a constant's `value`, only "
        "exp, log, sqrt, sigmoid, tanh, abs, min and max exist.",
        "Use a function from the list in the message. A product is written with `*`.",
    ),
    "FG114": Code(
        "forbidden syntax",
        "Expressions look like Python but are a small language of their own: numbers, names, "
        "`+ - * / **`, brackets, and functions with arguments by position. Indexing, attributes, "
        "comparisons, conditions, text and keyword arguments do not exist, and nothing is ever "
        "evaluated.",
        "Say it with operators and functions; `min`, `max` and `relu` replace most conditions.",
    ),
    "FG115": Code(
        "expression too long or too deep",
        "An expression has at most 2,000 characters, and at most 100 operators and brackets may "
        "act on each other.",
        "Split it: assign a part to a name in a statement before it.",
    ),
    "FG116": Code(
        "bad number",
        "A number is larger than 10**12, an exponent larger than 64, or a part of the expression "
        "that holds only numbers has no usable value, such as `1 / 0` or `log(-1)`.",
        "Simplify the number.",
    ),
    "FG117": Code(
        "wrong arguments",
        "A function got too many or too few arguments, or one of the wrong sort: `prev` and "
        "`frozen` take the name of a state, `sum`, `mean` and `softmax` a value and an axis.",
        "Correct the arguments.",
    ),
    "FG118": Code(
        "axes that do not fit",
        "`dot(a, b)` sums over the feature axes that `a` and `b` share, so there must be one. "
        "`outer(a, b)` needs arguments that share none. `sum`, `mean` and `softmax` need an axis "
        "that their argument has; tokens and heads cannot be summed over.",
        "Check the axes under `inputs`, or use `*` where nothing is contracted.",
    ),
    "FG119": Code(
        "state would change shape",
        "The new value of a state has an axis that the state does not have.",
        "Contract the axis with `dot` or `sum`, or add it to the state.",
    ),
    "FG120": Code(
        "malformed statement",
        "A statement is `target = expression` with exactly one `=` and one name on its left.",
        "Write `S = S + x` for `S += x`, and several statements as a list.",
    ),
    "FG121": Code(
        "cannot be assigned",
        "Inputs and decays keep their values, and `output` only reads states.",
        "Assign to a new name, or move the statement to `update`.",
    ),
    "FG122": Code(
        "unused name",
        "An input, decay or intermediate is never used. An unused input would be an argument "
        "without a gradient, which is nearly always a forgotten term.",
        "Use it or remove it.",
    ),
    "FG123": Code(
        "unused state",
        "The state has no effect on the output.",
        "Read it in `output`, or remove it.",
    ),
    "FG124": Code(
        "state not updated",
        "`update` must assign every state at least once; otherwise it stays at its initial value.",
        "Add a statement for it. If it never changes, make it an input.",
    ),
    "FG125": Code(
        "output has too many axes",
        "The output is a tensor per token and head with at most one feature axis, such as "
        "`[T, H, V]`.",
        "Read a state with `dot`, or sum over the axis that is too many.",
    ),
    "FG126": Code(
        "bad forms",
        "`forms` lists, once each, some of chunk, fused_chunk, fused_recurrent and parallel. "
        "`recurrent` is short for fused_recurrent. `naive` always exists and is not listed.",
        "Correct the list, or leave the key out to get every form that the mathematics allows.",
    ),
    "FG127": Code(
        "too few or too many",
        "A section is empty, or there are more than eight states.",
        "Add what is missing; merge or remove states.",
    ),
}

ANALYZING = {
    "FG201": Code(
        "quadratic in the state",
        "An update multiplies two expressions that both hold a state, as in `S * dot(k, S)`. Every "
        "form rests on updates that are affine in the state, because affine maps compose: that is "
        "what lets a chunk, a segment or a GPU be summarised and joined to the next.",
        "Replace one of the factors by an input, or form the product in the output, of reads.",
    ),
    "FG202": Code(
        "nonlinear in the state",
        "An update applies a nonlinear function to a running state, or divides by it, as in "
        "`sigmoid(dot(k, S))`. Such a recurrence has no exact parallel form: each token would have "
        "to wait for the one before it.",
        "Apply the function to inputs, or to a read in the output.",
    ),
    "FG203": Code(
        "frozen state",
        "`frozen(S)` is the state at the start of the chunk. Updates that are nonlinear in a "
        "frozen state (test-time training) form a family of their own, which is not generated yet.",
        "Use `prev(S)`, the state before the step, in an update that is affine in it.",
    ),
    "FG204": Code(
        "two passes",
        "The output reads a state with something that is made of another read, or takes a softmax "
        "of a read. Then all of the first read must be known before the second pass can begin. "
        "Recurrences of two passes are not generated yet.",
        "Write one spec per pass; the output of the first, with what comes in between, is an input "
        "of the second.",
    ),
    "FG205": Code(
        "bilinear read",
        "An update contracts both axes of a state, as in `dot(v, dot(k, S))`: a number that "
        "depends on the whole state. No family has such a transition.",
        "Contract one axis in the update. An output may contract the other one too.",
    ),
    "FG206": Code(
        "matrix used as a whole",
        "The output applies a nonlinear function to a state with two axes, as in `exp(S)`. Outputs "
        "see such a state through reads, which contract one of its axes.",
        "Read the state first: `dot(q, S)`.",
    ),
    "FG207": Code(
        "division by zero",
        "A divisor is zero whatever the inputs are, because its terms cancel, or a logarithm is "
        "taken of such an expression.",
        "Check the signs in the divisor.",
    ),
    "FG208": Code(
        "softmax inside a recurrence",
        "A softmax of inputs is a pass over an axis of its own and is not generated yet.",
        "Apply the softmax to the input before the call.",
    ),
    "FG209": Code(
        "kron of a state",
        "`kron` pairs the features of inputs. A state, or a read of one, cannot be its argument: "
        "the recurrence would not be affine, or its output would need another pass.",
        "Take `kron` of inputs, and contract it with a state: `dot(kron(q, q, F), S)`.",
    ),
}

DERIVING = {
    "FG301": Code(
        "no kernels for this recurrence",
        "The spec is right and its recurrence was recognised, but flagen has no templates yet for "
        "its family, its decay or its output. Nothing falls back to a slower form in silence.",
        "`flagen explain SPEC` shows what was recognised and which part is not covered.",
    ),
    "FG302": Code(
        "form not possible",
        "`forms` asks for a form that this recurrence does not have: the mathematics rules it out, "
        "or flagen has no kernels for it.",
        "Remove the form from `forms`, or leave the key out to get every form that exists.",
    ),
}

BUILDING = {
    "FG401": Code(
        "file and name differ",
        "A spec's file is called like its operator: `retention` lies in retention.yaml. Otherwise "
        "a copied spec whose `name` was forgotten would overwrite the operator it was copied from.",
        "Rename the file, or correct `name`.",
    ),
    "FG402": Code(
        "two specs of one name",
        "Two of the specs to build have the same `name`, so they would write the same files.",
        "Rename one, or write it elsewhere with `-o DIR`.",
    ),
    "FG403": Code(
        "edited by hand",
        "A generated file was changed after flagen wrote it: the digest in its header does not fit "
        "its text. `flagen build` leaves such a file, and the rest of its operator, alone.",
        "Move the change to the spec or the template; `flagen build --force` then overwrites it.",
    ),
    "FG404": Code(
        "not a generated file",
        "A file that flagen did not write lies where a generated one belongs.",
        "Move it away, or write elsewhere with `-o DIR`; `flagen build --force` overwrites it.",
    ),
}

CODES: dict[str, Code] = {**LOADING, **PARSING, **ANALYZING, **DERIVING, **BUILDING}
