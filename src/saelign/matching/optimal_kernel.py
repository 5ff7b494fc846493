"""The loops of the optimal matching that have to be compiled: an assignment over sparse edges.

A bidder must get one object each, there are no fewer objects than bidders. Everything is an
integer, so that ties are ties, an edge is tight or it is not, and no tolerance decides anything.
"""

from typing import no_type_check

import numba
import numpy as np

_FAR = np.int64(2**62)


@no_type_check
@numba.njit(cache=True, nogil=True)
def _sift_up(heap: np.ndarray, place: np.ndarray, far: np.ndarray, p: int) -> None:
    item = heap[p]
    while p > 0:
        parent = (p - 1) >> 1
        if far[heap[parent]] <= far[item]:
            break
        heap[p] = heap[parent]
        place[heap[p]] = p
        p = parent
    heap[p] = item
    place[item] = p


@no_type_check
@numba.njit(cache=True, nogil=True)
def _pop(heap: np.ndarray, place: np.ndarray, far: np.ndarray, size: int) -> int:
    """Take the nearest object off the heap of `size`; the caller counts one less."""
    top, item = heap[0], heap[size - 1]
    size -= 1
    place[top] = -1
    if size > 0:
        p = 0
        while True:
            child = 2 * p + 1
            if child >= size:
                break
            if child + 1 < size and far[heap[child + 1]] < far[heap[child]]:
                child += 1
            if far[item] <= far[heap[child]]:
                break
            heap[p] = heap[child]
            place[heap[p]] = p
            p = child
        heap[p] = item
        place[item] = p
    return top


@no_type_check
@numba.njit(cache=True, nogil=True)
def assign(
    starts: np.ndarray,
    objects: np.ndarray,
    values: np.ndarray,
    prices: np.ndarray,
    holds: np.ndarray,
    gains: np.ndarray,
) -> bool:
    """Give every bidder an object of its edges so that the sum of values is the largest.

    Primal and dual are kept: gain + price >= value on every edge, equal on the edges that are held,
    and objects that nobody holds are the cheapest ones. First each free bidder bids for what it
    likes best, raising its price to where the second best is as good (the augmenting row reduction
    of Jonker and Volgenant); those left free take the shortest augmenting path. With more objects
    than bidders, one more bidder is thought of that values each object at 0 and holds all that is
    left over; it is never stored, since its gain is minus the lowest price, the floor.

    Args:
        starts: Where the edges of each bidder start (CSR).
        objects: The object of each edge; no object twice for a bidder.
        values: What the bidder would pay at most for it.
        prices: Prices to start from; replaced by the optimal ones. With more objects than bidders,
            no more objects than there are free bidders may be nobody's and above the lowest price.
        holds: The object of each bidder to start from, -1 for none; replaced by the optimal ones.
        gains: Replaced by what each bidder is left with, value less price.

    Returns:
        Whether every bidder has got an object.
    """
    n, m = len(holds), len(prices)
    spare = m > n
    owner = np.full(m, -1, np.int64)
    n_free = 0
    floor = prices.min() if m > 0 else np.int64(0)
    for i in range(n):
        best, held = -_FAR, -_FAR
        for e in range(starts[i], starts[i + 1]):
            gain = values[e] - prices[objects[e]]
            best = max(best, gain)
            if objects[e] == holds[i]:
                held = gain
        gains[i] = best
        if holds[i] >= 0 and held == best:
            owner[holds[i]] = i
        else:
            holds[i] = -1
            n_free += 1
    n_stranded = 0  # nobody's, yet not of the lowest price
    if spare:
        for b in range(m):
            if owner[b] < 0 and prices[b] > floor:
                n_stranded += 1

    waiting = np.empty(n, np.int64)
    for _ in range(2):
        n_waiting = 0
        for i in range(n):
            if holds[i] < 0:
                waiting[n_waiting] = i
                n_waiting += 1
        budget = 6 * n_waiting
        while n_waiting > 0 and budget > 0:
            budget -= 1
            n_waiting -= 1
            i = waiting[n_waiting]
            best, second, b = -_FAR, -_FAR, np.int64(-1)
            for e in range(starts[i], starts[i + 1]):
                gain = values[e] - prices[objects[e]]
                if gain > best or (gain == best and owner[b] >= 0 and owner[objects[e]] < 0):
                    second = best
                    best, b = gain, objects[e]
                elif gain > second:
                    second = gain
            if b < 0:
                return False
            if second == -_FAR:
                second = best
            loser = owner[b]
            if loser >= 0:
                if second == best:
                    continue
                holds[loser] = -1
                waiting[n_waiting] = loser
                n_waiting += 1
            else:
                if spare:
                    if prices[b] > floor:
                        n_stranded -= 1
                    elif n_stranded >= n_free:
                        continue
                n_free -= 1
            owner[b] = i
            holds[i] = b
            prices[b] += best - second
            gains[i] = second

    far = np.full(m, _FAR, np.int64)
    parent = np.empty(m, np.int64)  # the bidder from whom an object was reached; n: the spare one
    heap = np.empty(m, np.int64)
    place = np.full(m, -1, np.int64)
    reached = np.empty(m, np.int64)
    popped = np.empty(m, np.int64)
    for root in range(n):
        if holds[root] >= 0:
            continue
        best = -_FAR
        for e in range(starts[root], starts[root + 1]):
            best = max(best, values[e] - prices[objects[e]])
        gains[root] = best
        n_reached = n_popped = size = 0
        limit, goal = _FAR, np.int64(-1)
        spare_at, spare_far, spare_from = _FAR, _FAR, np.int64(-1)
        bidder, here = np.int64(root), np.int64(0)
        while True:
            for e in range(starts[bidder], starts[bidder + 1]):
                b = objects[e]
                there = here + gains[bidder] + prices[b] - values[e]
                if there >= limit or there >= far[b]:
                    continue
                if far[b] == _FAR:
                    reached[n_reached] = b
                    n_reached += 1
                far[b] = there
                parent[b] = bidder
                if owner[b] >= 0:
                    if place[b] < 0:
                        place[b] = size
                        heap[size] = b
                        size += 1
                    _sift_up(heap, place, far, place[b])
                elif not spare or prices[b] > floor or n_stranded < n_free:
                    limit, goal = there, b
                elif there < spare_far:
                    spare_far, spare_from = there, b
            if spare_far < limit and (size == 0 or spare_far <= far[heap[0]]):
                # The spare bidder gives up what was reached and may take anything instead.
                spare_at, spare_far = spare_far, _FAR
                for b in range(m):
                    there = spare_at + prices[b] - floor
                    if there >= limit or there >= far[b]:
                        if owner[b] < 0 and prices[b] == floor:
                            popped[n_popped] = b
                            n_popped += 1
                        continue
                    if far[b] == _FAR:
                        reached[n_reached] = b
                        n_reached += 1
                    far[b] = there
                    parent[b] = n
                    if owner[b] >= 0:
                        if place[b] < 0:
                            place[b] = size
                            heap[size] = b
                            size += 1
                        _sift_up(heap, place, far, place[b])
                    elif prices[b] > floor:
                        limit, goal = there, np.int64(b)
                    else:
                        popped[n_popped] = b
                        n_popped += 1
            if size == 0 or far[heap[0]] >= limit:
                break
            b = _pop(heap, place, far, size)
            size -= 1
            popped[n_popped] = b
            n_popped += 1
            bidder, here = owner[b], far[b]
        if goal < 0:
            return False
        if prices[goal] > floor:
            n_stranded -= 1
        for p in range(n_popped):
            b = popped[p]
            rise = limit - far[b]
            prices[b] += rise
            if owner[b] >= 0:
                gains[owner[b]] -= rise
        gains[root] -= limit
        n_free -= 1
        b = goal
        while True:
            i = parent[b]
            if i == n:
                owner[b] = -1
                b = spare_from
                continue
            last = holds[i]
            holds[i] = b
            owner[b] = i
            if i == root:
                break
            b = last
        if spare_at < limit:
            floor += limit - spare_at
            n_stranded = 0
            for b in range(m):
                if owner[b] < 0 and prices[b] > floor:
                    n_stranded += 1
        for p in range(n_reached):
            far[reached[p]] = _FAR
        for p in range(size):
            place[heap[p]] = -1
    return True


@no_type_check
@numba.njit(cache=True, nogil=True)
def left_over(
    order: np.ndarray, rows: np.ndarray, columns: np.ndarray, n_a: int, n_b: int
) -> tuple:
    """Mark what the edges, taken greedily in the given order, leave without a partner."""
    free_a, free_b = np.ones(n_a, np.bool_), np.ones(n_b, np.bool_)
    for e in order:
        if free_a[rows[e]] and free_b[columns[e]]:
            free_a[rows[e]] = free_b[columns[e]] = False
    return free_a, free_b
