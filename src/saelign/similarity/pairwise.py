"""The compiled loops of measures that compare two K x K matrices under a permutation.

All gather one row of B at a time, so that the gathering stays within the cache. Permutations are
best given in few bytes: the loops read as much of them as of the matrices. On this kind of loop
the gathering instructions of the processor are slower than plain loads; hence sums by four, which
break the chain of additions and are not made into gathers.
"""

from typing import no_type_check

import numba
import numpy as np


# Run-time type checks, as the tests switch them on, cannot be compiled.
@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def permuted_sums(a: np.ndarray, b: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """For each permutation p the sum over i, j of a[i, j] b[p[i], p[j]]; both symmetric.

    Reads only the lower triangle of A, and sums in float64.
    """
    n = len(a)
    totals = np.zeros(len(permutations))
    for s in numba.prange(len(permutations)):
        p = permutations[s]
        below = 0.0
        diagonal = 0.0
        for i in range(n):
            here = a[i]
            row = b[p[i]]
            first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
            by_four = i // 4 * 4
            for j in range(0, by_four, 4):
                first += np.float64(here[j]) * np.float64(row[p[j]])
                second += np.float64(here[j + 1]) * np.float64(row[p[j + 1]])
                third += np.float64(here[j + 2]) * np.float64(row[p[j + 2]])
                fourth += np.float64(here[j + 3]) * np.float64(row[p[j + 3]])
            for j in range(by_four, i):
                first += np.float64(here[j]) * np.float64(row[p[j]])
            below += (first + second) + (third + fourth)
            diagonal += np.float64(here[i]) * np.float64(row[p[i]])
        totals[s] = 2 * below + diagonal
    return totals


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def permuted_code_sums(a: np.ndarray, b: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """For each permutation p the sum over i > j of a[i, j] b[p[i], p[j]]; 16-bit codes, exact."""
    n = len(a)
    totals = np.zeros(len(permutations), dtype=np.int64)
    for s in numba.prange(len(permutations)):
        p = permutations[s]
        total = np.int64(0)
        for i in range(n):
            here = a[i]
            row = b[p[i]]
            partial = np.int64(0)
            for j in range(i):
                partial += np.int64(here[j]) * np.int64(row[p[j]])
            total += partial
        totals[s] = total
    return totals


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def weighted_sums(
    grouped: np.ndarray, b: np.ndarray, counts: np.ndarray, permutations: np.ndarray
) -> np.ndarray:
    """For each permutation p, with b_de for b[p[d], p[e]] and c for `counts`, four sums.

    Returns:
        Rows of the sums over d, e of grouped_de b_de, of c_d c_e b_de, of c_d c_e b_de^2, and over
        d of c_d (sum over e of c_e b_de)^2.
    """
    n = len(grouped)
    sums = np.zeros((len(permutations), 4))
    for s in numba.prange(len(permutations)):
        p = permutations[s]
        for d in range(n):
            here = grouped[d]
            row = b[p[d]]
            product, total, square = 0.0, 0.0, 0.0
            for e in range(n):
                value = np.float64(row[p[e]])
                weighted = counts[e] * value
                product += np.float64(here[e]) * value
                total += weighted
                square += weighted * value
            sums[s, 0] += product
            sums[s, 1] += counts[d] * total
            sums[s, 2] += counts[d] * square
            sums[s, 3] += counts[d] * total * total
    return sums


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def ranked_sums(
    grouped: np.ndarray,
    level: np.ndarray,
    counts: np.ndarray,
    n_levels: int,
    permutations: np.ndarray,
) -> np.ndarray:
    """For each permutation p, ranks of the similarities that then stand between pairs, two sums.

    Levels keep their order whatever p is; how often each stands, and with it its mid-rank, follows
    from who holds which. One pass counts, and sums `grouped`, by level.

    Args:
        grouped: For each two groups the sum of X's heights over the pairs of pairs.
        level: Which of the similarities, by size, each two partners have.
        counts: Pairs in each group.
        n_levels: How many levels there are.
        permutations: Relabellings of the partners.

    Returns:
        Rows of the sums over pairs i > j of X's height times the centred mid-rank, and of the
        latter squared.
    """
    n = len(grouped)
    n_pairs = counts.sum()
    middle = (n_pairs * (n_pairs - 1) / 2 + 1) / 2
    sums = np.zeros((len(permutations), 2))
    for s in numba.prange(len(permutations)):
        p = permutations[s]
        often = np.zeros(n_levels, dtype=np.int64)
        heights = np.zeros(n_levels)
        for d in range(n):
            here = grouped[d]
            row = level[p[d]]
            count = counts[d]
            for e in range(d):
                at = row[p[e]]
                often[at] += count * counts[e]
                heights[at] += here[e]
            at = row[p[d]]
            often[at] += count * (count - 1) // 2
            heights[at] += here[d] / 2  # each two pairs of a group stand twice in it
        before = 0
        product, square = 0.0, 0.0
        for at in range(n_levels):
            rank = before + (often[at] + 1) / 2 - middle
            product += heights[at] * rank
            square += often[at] * rank * rank
            before += often[at]
        sums[s, 0] = product
        sums[s, 1] = square
    return sums


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def group_matrix(matrix: np.ndarray, held: np.ndarray, grouped: np.ndarray) -> None:
    """Add the entries of `matrix` up over the pairs that hold each two partners."""
    n_groups = len(grouped)
    counts = np.zeros(n_groups + 1, dtype=np.int64)
    for i in range(len(held)):
        counts[held[i] + 1] += 1
    starts = np.cumsum(counts)
    order = np.argsort(held, kind="mergesort")
    for d in numba.prange(n_groups):
        row = grouped[d]
        for t in range(starts[d], starts[d + 1]):
            here = matrix[order[t]]
            for j in range(len(held)):
                row[held[j]] += here[j]


@no_type_check
@numba.njit(parallel=True, cache=True, nogil=True)
def find_levels(
    strip: np.ndarray,
    start: int,
    edges: np.ndarray,
    cell_starts: np.ndarray,
    scale: float,
    counts: np.ndarray,
    level: np.ndarray,
    often: np.ndarray,
) -> None:
    """How many edges lie at or below each entry under the diagonal; how often each level stands.

    Entries are looked up by an even grid over the range of the edges, then by halving within the
    cell. An edge of a lower cell is lower and of a higher cell higher, rounding or not.

    Args:
        strip: Rows from `start` on of a symmetric matrix.
        start: The first row.
        edges: Rising, one at least.
        cell_starts: For each cell the edges in lower cells; one cell more than there are.
        scale: Cells for each unit.
        counts: How often each row stands.
        level: The whole matrix of levels, to be written.
        often: Counts by level, a row for each of several workers, to be added to.
    """
    last = len(cell_starts) - 2
    least = edges[0]
    for worker in numba.prange(len(often)):
        tally = often[worker]
        for r in range(worker, len(strip), len(often)):
            i = start + r
            here = strip[r]
            there = level[i]
            for j in range(i):
                value = here[j]
                low, high = 0, 0
                if value >= least:
                    cell = int(min((value - least) * scale, last))
                    low, high = cell_starts[cell], cell_starts[cell + 1]
                    while low < high:
                        middle = (low + high) // 2
                        if edges[middle] <= value:
                            low = middle + 1
                        else:
                            high = middle
                there[j] = low
                tally[low] += counts[i] * counts[j]


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
