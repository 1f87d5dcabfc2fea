"""What `warmup` and `tune` share: the sizes of a call, by the names of axes."""

from __future__ import annotations

from flagen.cli.console import usage

DTYPES = ("bfloat16", "float16", "float32")


def listed(text: str) -> list[str]:
    """The values of an option that takes several, with commas between them."""
    return text.replace(",", " ").split()


def dtypes(text: str) -> list[str]:
    """The element types of an option. Raises typer.Exit for others."""
    found = listed(text)
    for each in found:
        if each not in DTYPES:
            raise usage(f"`{each}` is no dtype of the kernels", f"allowed: {', '.join(DTYPES)}")
    return found


def pairs(text: str, example: str) -> dict[str, str]:
    """The values of an option that are `name=value`. Raises typer.Exit for others."""
    found = {}
    for each in listed(text):
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise usage(f"`{each}` is not NAME=VALUE", f"for example {example}")
        found[name] = value
    return found


def sizes(shape: str, others: dict[str, str]) -> dict[str, int]:
    """Axis sizes of `4x2048x16x128`, B×T×H×D, or B×T×H×K×V; `others` adds or replaces some.

    Axes of heads that are not named are as many as H; D, the width without heads, is H times K.
    Raises typer.Exit.
    """
    try:
        numbers = [int(part) for part in shape.lower().replace("×", "x").split("x")]
        named = {name: int(value) for name, value in others.items()}
    except ValueError:
        numbers, named = [], {}
    if len(numbers) not in (4, 5) or min([*numbers, *named.values()]) < 1:
        raise usage(f"`{shape}` is no shape", "BxTxHxD or BxTxHxKxV, for example 4x2048x16x128")
    B, T, H, K, V = [*numbers, numbers[3]][:5]
    found = {"B": B, "T": T, "H": H, "K": K, "V": V, "D": H * K}
    return {axis: H for axis in ("HV", "HQ", "HK", "G")} | found | named
