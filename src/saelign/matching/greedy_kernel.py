"""The loops of the greedy matching."""

import heapq
from typing import no_type_check

import numba
import numpy as np


# Run-time type checks, as the tests switch them on, cannot be compiled.
@no_type_check
@numba.njit(cache=True, nogil=True)
def take_pairs(
    partners: np.ndarray,
    values: np.ndarray,
    at: np.ndarray,
    truncated: np.ndarray,
    free_a: np.ndarray,
    free_b: np.ndarray,
    pairs: np.ndarray,
    n_pairs: int,
    above: float,
) -> tuple[int, int]:
    """Take pairs, best first, until a row that may be next has nothing left in its list.

    Args:
        partners: For each row its partners, best first; -1 where the list has ended.
        values: How alike they are.
        at: Where each row stands in its list; moved on.
        truncated: Whether a row may have partners that are not in its list.
        free_a: Rows not yet taken; kept up to date.
        free_b: Columns not yet taken; kept up to date.
        pairs: Row and column of each pair taken; filled.
        n_pairs: Pairs taken so far.
        above: Stop at values that are not above this.

    Returns:
        Pairs taken, and the row whose list has run out; -1 when all is done.
    """
    width = partners.shape[1]
    heap = [(np.inf, np.int64(-1))]
    heap.pop()
    for a in range(len(at)):
        if free_a[a]:
            # As the last entry of a list bounds what follows it, so does it where it has run out.
            i = min(at[a], width - 1)
            if at[a] < width or truncated[a]:
                heap.append((-values[a, i], np.int64(a)))
    heapq.heapify(heap)
    while len(heap) > 0 and n_pairs < len(pairs):
        value, a = heapq.heappop(heap)
        if not -value > above:
            break
        i = at[a]
        while i < width and partners[a, i] >= 0 and not free_b[partners[a, i]]:
            i += 1
        moved = i != at[a]
        at[a] = i
        if i == width or partners[a, i] < 0:
            if truncated[a]:
                return n_pairs, a
        elif moved:
            heapq.heappush(heap, (-values[a, i], a))
        else:
            b = partners[a, i]
            free_a[a] = False
            free_b[b] = False
            pairs[n_pairs, 0] = a
            pairs[n_pairs, 1] = b
            n_pairs += 1
    return n_pairs, -1


@no_type_check
@numba.njit(cache=True, nogil=True)
def take_sorted(
    order: np.ndarray, values: np.ndarray, n_a: int, n_b: int, above: float
) -> np.ndarray:
    """Of all pairs in falling order those whose row and column are both still free."""
    free_a, free_b = np.ones(n_a, dtype=np.bool_), np.ones(n_b, dtype=np.bool_)
    taken = np.empty(min(n_a, n_b), dtype=np.int64)
    n_taken = 0
    for pair in order:
        if n_taken == len(taken) or not values[pair] > above:
            break
        a, b = pair // n_b, pair % n_b
        if free_a[a] and free_b[b]:
            free_a[a] = False
            free_b[b] = False
            taken[n_taken] = pair
            n_taken += 1
    return taken[:n_taken]
