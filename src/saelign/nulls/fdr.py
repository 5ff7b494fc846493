"""False-discovery rate over a family of tests."""

import numpy as np
from jaxtyping import Float

SIGNIFICANCE = 0.05
"""A cell beats chance when its q-value is below this."""


def q_values(p_values: Float[np.ndarray, "test"]) -> Float[np.ndarray, "test"]:
    """Benjamini-Hochberg q-values; a NaN p is no test and stays NaN.

    Source: Benjamini and Hochberg (1995), "Controlling the false discovery rate".
    """
    q = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested])]
    scaled = p_values[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
