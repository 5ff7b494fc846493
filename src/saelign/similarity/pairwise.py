"""The compiled loops of measures that compare two K x K matrices under a permutation."""

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


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def shared_neighbours(
    near_x: np.ndarray,
    starts: np.ndarray,
    near: np.ndarray,
    alike: np.ndarray,
    first: np.ndarray,
    holders: np.ndarray,
    held: np.ndarray,
    permutations: np.ndarray,
) -> np.ndarray:
    """For each relabelling p, how many of X's neighbours are neighbours in Y, over all pairs.

    Pair i holds partner p[held[i]]. Its k neighbours are the pairs, without i, that hold the
    partners nearest to that one; among pairs that are equally near, the lowest.

    Args:
        near_x: The k neighbours of each pair in X.
        starts: Where the list of each partner begins in `near` and `alike`.
        near: Partners by falling similarity, at least as many as k pairs may need.
        alike: Their similarities.
        first: Where each group begins in `holders`.
        holders: The pairs of each group, rising.
        held: The group of each pair.
        permutations: Relabellings of the partners.
    """
    n_pairs, k = near_x.shape
    totals = np.zeros(len(permutations), dtype=np.int64)
    for s in numba.prange(len(permutations)):
        p = permutations[s]
        group_of = np.empty_like(p)
        for group in range(len(p)):
            group_of[p[group]] = group
        near_in_x = np.full(n_pairs, -1)
        tied = np.empty(n_pairs, dtype=np.int64)
        shared = 0
        for i in range(n_pairs):
            for t in range(k):
                near_in_x[near_x[i, t]] = i
            partner = p[held[i]]
            at, end = starts[partner], starts[partner + 1]
            missing = k
            while missing > 0 and at < end:
                level = alike[at]
                n_groups = 0
                n_tied = 0
                while at < end and alike[at] == level:
                    group = group_of[near[at]]
                    for h in range(first[group], first[group + 1]):
                        if holders[h] != i:
                            tied[n_tied] = holders[h]
                            n_tied += 1
                    n_groups += 1
                    at += 1
                if n_groups > 1 and n_tied > missing:
                    tied[:n_tied].sort()
                for t in range(min(n_tied, missing)):
                    if near_in_x[tied[t]] == i:
                        shared += 1
                missing -= min(n_tied, missing)
        totals[s] = shared
    return totals
