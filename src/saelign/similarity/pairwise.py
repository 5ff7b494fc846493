"""The compiled loop of measures that compare two K x K matrices under a permutation."""

from typing import no_type_check

import numba
import numpy as np


# Run-time type checks, as the tests switch them on, cannot be compiled.
@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def permuted_sums(a: np.ndarray, b: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """For each permutation p the sum over i, j of a[i, j] b[p[i], p[j]]; both symmetric.

    Reads one row of B at a time, so that the gathering stays within the cache, and only the lower
    triangle, in float64.
    """
    n = len(a)
    totals = np.zeros(len(permutations))
    for s in numba.prange(len(permutations)):
        p = permutations[s]
        below = 0.0
        diagonal = 0.0
        for i in range(n):
            row = b[p[i]]
            partial = 0.0
            for j in range(i):
                partial += np.float64(a[i, j]) * np.float64(row[p[j]])
            below += partial
            diagonal += np.float64(a[i, i]) * np.float64(row[p[i]])
        totals[s] = 2 * below + diagonal
    return totals
