"""Exact mean and variance over all n! permutations, in closed form.

They replace the simulation of a null's mean and spread, and cost one pass over the matrices.
"""

import numpy as np
from jaxtyping import Float


def mantel_moments(
    a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"]
) -> tuple[float, float] | None:
    """Mean and standard deviation of Z / (n (n - 1)), Z = sum over i != j of a_ij b_p(i)p(j).

    Args:
        a: Symmetric, with zero diagonal and zero off-diagonal mean.
        b: The same.

    Returns:
        (0, standard deviation); None for n < 4, where the variance has no such form.

    Source: Mantel (1967), "The detection of disease clustering"; form by this package.
    """
    n = len(a)
    if n < 4:
        return None
    a2, b2 = float(np.vdot(a, a)), float(np.vdot(b, b))
    ar, br = float((a.sum(axis=1) ** 2).sum()), float((b.sum(axis=1) ** 2).sum())
    entries = n * (n - 1)
    variance = (
        2 * a2 * b2 / entries
        + 4 * (ar - a2) * (br - b2) / (entries * (n - 2))
        + (2 * a2 - 4 * ar) * (2 * b2 - 4 * br) / (entries * (n - 2) * (n - 3))
    )
    return 0.0, float(np.sqrt(max(variance, 0.0))) / entries


def trace_moments(
    n: int, a: tuple[float, float, float], b: tuple[float, float, float]
) -> tuple[float, float] | None:
    """Mean and variance of tr(A P B P') over all permutation matrices P.

    Args:
        n: Size of the matrices.
        a: Of A, symmetric and doubly centred: its trace, the trace of its square, and the sum of
            its squared diagonal entries.
        b: The same of B.

    Returns:
        (mean, variance); None for n < 4, where the variance has no such form.

    Source: Kazi-Aoual et al. (1995), "Refined approximations to permutation tests for multivariate
    inference".
    """
    if n < 4:
        return None
    (t, t2, s), (u, u2, v) = a, b
    mean = t * u / (n - 1)
    spread = 2 * ((n - 1) * t2 - t**2) * ((n - 1) * u2 - u**2) / ((n - 1) ** 2 * (n + 1) * (n - 2))
    peaked_a = n * (n + 1) * s - (n - 1) * (t**2 + 2 * t2)
    peaked_b = n * (n + 1) * v - (n - 1) * (u**2 + 2 * u2)
    variance = spread + peaked_a * peaked_b / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return mean, max(variance, 0.0)
