"""Central differences: what self-checks hold adjoints against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def differences(array: Array, loss: Callable[[Array], float], epsilon: float = 1e-5) -> Array:
    """The gradient of `loss` at `array`."""
    varied, result = array.copy(), np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = varied[index]
        varied[index] = kept + epsilon
        above = loss(varied)
        varied[index] = kept - epsilon
        result[index] = (above - loss(varied)) / (2 * epsilon)
        varied[index] = kept
    return result
