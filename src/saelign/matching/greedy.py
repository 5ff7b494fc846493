"""The paper's greedy matching, exact, from each feature's strongest partners alone."""

import numpy as np
from jaxtyping import Int64

from saelign.correlation import Strongest
from saelign.correlation.strongest import Candidates

N_LISTED = 32
"""Partners that are listed for each feature at first."""

SMALL = 2**18
"""Pairs so few that all of them are sorted."""


def greedy_one_to_one(
    candidates: Candidates,
    features_a: Int64[np.ndarray, "chosen_a"],
    features_b: Int64[np.ndarray, "chosen_b"],
    *,
    listed: Strongest | None = None,
    above: float = -np.inf,
) -> Int64[np.ndarray, "pair 2"]:
    """The pairs taken by repeatedly choosing the most alike that are both still free.

    Exact: the same pairs, in the same order, as sorting all of them; ties go to the lower index of
    A, then of B. Each feature of A waits in a heap with its best free partner among those listed
    for it. What a feature can still get never grows, so the top of the heap is the next pair,
    unless that feature's list has run out: then its partners among what is free are listed anew,
    and those of all others whose lists have nearly run out with them. When few features are left
    all their pairs are sorted.

    Args:
        candidates: The correlations.
        features_a: Features of A to pair, rising.
        features_b: Features of B, rising.
        listed: Their strongest, if that is known already.
        above: Pairs are taken as long as their similarity is above this.

    Source: Lan et al. (2024), section 3, as the text states it (their code keeps the lowest index).
    """
    from saelign.matching.greedy_kernel import take_pairs  # numba: half a second

    n_a, n_b = len(features_a), len(features_b)
    if n_a * n_b <= SMALL:
        return sorted_pairs(candidates, features_a, features_b, above)
    if listed is None:
        listed = candidates.strongest(features_a, features_b, n_best_a=N_LISTED)
    width = listed.partners_a.shape[1]
    partners, values = positions(listed, features_b), listed.similarity_a.copy()
    at = np.zeros(n_a, dtype=np.int64)
    free_a, free_b = np.ones(n_a, dtype=bool), np.ones(n_b, dtype=bool)
    # A list that holds every free partner there was cannot run out of others.
    truncated = np.full(n_a, n_b > width)
    pairs = np.empty((min(n_a, n_b), 2), dtype=np.int64)
    n_pairs = 0
    while True:
        n_pairs, empty = take_pairs(
            partners, values, at, truncated, free_a, free_b, pairs, n_pairs, above
        )
        if empty < 0:
            break
        left_a, left_b = np.flatnonzero(free_a), np.flatnonzero(free_b)
        if len(left_a) * len(left_b) <= SMALL:
            rest = sorted_pairs(candidates, features_a[left_a], features_b[left_b], above)
            return np.concatenate(
                [
                    np.stack([features_a[pairs[:n_pairs, 0]], features_b[pairs[:n_pairs, 1]]], 1),
                    rest,
                ]
            )
        short = n_left(partners[left_a], at[left_a], free_b) <= width // 4
        renewed = left_a[short & truncated[left_a]]
        fresh = candidates.strongest(features_a[renewed], features_b[left_b], n_best_a=width)
        partners[renewed], values[renewed] = positions(fresh, features_b), fresh.similarity_a
        at[renewed] = 0
        truncated[renewed] = len(left_b) > width
    return np.stack([features_a[pairs[:n_pairs, 0]], features_b[pairs[:n_pairs, 1]]], axis=1)


def positions(
    listed: Strongest, features_b: Int64[np.ndarray, "chosen_b"]
) -> Int64[np.ndarray, "row listed"]:
    """The listed partners as positions among the features of B; -1 stays."""
    found = np.searchsorted(features_b, listed.partners_a)
    return np.where(listed.partners_a >= 0, found, -1)


def n_left(
    partners: Int64[np.ndarray, "row listed"],
    at: Int64[np.ndarray, "row"],
    free_b: np.ndarray,
) -> Int64[np.ndarray, "row"]:
    """How many free partners each list still holds."""
    ahead = np.arange(partners.shape[1]) >= at[:, None]
    return (ahead & (partners >= 0) & free_b[partners]).sum(axis=1)


def sorted_pairs(
    candidates: Candidates,
    features_a: Int64[np.ndarray, "chosen_a"],
    features_b: Int64[np.ndarray, "chosen_b"],
    above: float,
) -> Int64[np.ndarray, "pair 2"]:
    """The greedy pairs of few features: all pairs sorted, best first."""
    from saelign.matching.greedy_kernel import take_sorted  # numba: half a second

    blocks = [block for _, block in candidates.blocks(features_a, features_b)]
    if not blocks or len(features_b) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    values = np.concatenate(blocks).astype(np.float64).ravel()
    order = np.argsort(-values, kind="stable")
    taken = take_sorted(order, values, len(features_a), len(features_b), above)
    a, b = np.divmod(taken, len(features_b))
    return np.stack([features_a[a], features_b[b]], axis=1)
