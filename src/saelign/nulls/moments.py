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
    spread = mantel_spread(len(a), mantel_sums(a), mantel_sums(b))
    return None if spread is None else (0.0, spread / (len(a) * (len(a) - 1)))


def mantel_sums(a: Float[np.ndarray, "n n"]) -> tuple[float, float]:
    """Sums of the squared entries and of the squared row sums."""
    return float(np.vdot(a, a)), float((a.sum(axis=1) ** 2).sum())


def mantel_spread(n: int, a: tuple[float, float], b: tuple[float, float]) -> float | None:
    """Standard deviation of Z, the sum over i != j of a_ij b_p(i)p(j).

    Args:
        n: Size of the matrices.
        a: Of A, symmetric, with zero diagonal and zero off-diagonal mean: the sums of its squared
            entries and of its squared row sums.
        b: The same of B.

    Returns:
        None for n < 4, where the variance has no such form.

    Source: as `mantel_moments`.
    """
    if n < 4:
        return None
    (a2, ar), (b2, br) = a, b
    entries = n * (n - 1)
    variance = (
        2 * a2 * b2 / entries
        + 4 * (ar - a2) * (br - b2) / (entries * (n - 2))
        + (2 * a2 - 4 * ar) * (2 * b2 - 4 * br) / (entries * (n - 2) * (n - 3))
    )
    return float(np.sqrt(max(variance, 0.0)))


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
