"""The one loop that has to be compiled: the product of two sparse matrices, kept dense."""

from typing import no_type_check

import numba
import numpy as np


# Run-time type checks, as the tests switch them on, cannot be compiled.
@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def add_cross_products(
    starts_a: np.ndarray,
    tokens_a: np.ndarray,
    values_a: np.ndarray,
    starts_b: np.ndarray,
    features_b: np.ndarray,
    values_b: np.ndarray,
    total: np.ndarray,
) -> None:
    """Add A'B to `total`, where A comes by column (CSC) and B by row (CSR).

    One feature of A at a time: its firing tokens are few, each holds few features of B, and the
    row of `total` they fall into stays in the cache. The cost is the number of co-firings, not
    tokens times features; no sparse result with its sorting is ever built.
    """
    for a in numba.prange(len(starts_a) - 1):
        row = total[a]
        for p in range(starts_a[a], starts_a[a + 1]):
            value = np.float64(values_a[p])
            token = tokens_a[p]
            for q in range(starts_b[token], starts_b[token + 1]):
                row[features_b[q]] += value * np.float64(values_b[q])
