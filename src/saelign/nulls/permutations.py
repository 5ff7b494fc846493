"""Random relabellings of B's features, plain or among features that fire as often."""

import numpy as np
from jaxtyping import Float, Int

NULLS = ("shuffle", "rate_matched")
"""shuffle: any relabelling. rate_matched: only among features that fire about as often."""


def rate_strata(firing_rates: Float[np.ndarray, "partner"]) -> Int[np.ndarray, "partner"]:
    """The stratum of each feature's firing rate, rising from 0, ties by position; sizes even.

    Deciles, or strata of ten features where there are more than a hundred. Within the deciles of
    many features rates still differ so much that a firing-rate component is taken for shared
    meaning: planted at 6 % of a row's square it is significant at 0.05 in 37 % of trials with 400
    pairs and in 59 % with 800 (`pc1`), against 5 % with strata of ten. Smaller ones would leave
    more features with their own partner, and so more of the true score in the null. Below 20
    features there are two in a stratum, since one alone could not move.
    """
    n = len(firing_rates)
    n_strata = max(1, min(max(10, n // 10), n // 2))
    strata = np.empty(n, dtype=np.int64)
    order = np.argsort(firing_rates, kind="stable")
    for stratum, members in enumerate(np.array_split(order, n_strata)):
        strata[members] = stratum
    return strata


def draw_permutations(
    n: int,
    n_permutations: int,
    *,
    rng: np.random.Generator,
    strata: Int[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "shuffle n"]:
    """Uniform random permutations of n, within strata if given.

    Args:
        n: How many things are permuted.
        n_permutations: How many permutations to draw.
        rng: Where randomness comes from.
        strata: A label for each of the n; things move only among those of the same label.
    """
    permutations = np.tile(np.arange(n), (n_permutations, 1))
    if strata is None:
        return rng.permuted(permutations, axis=1)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        permutations[:, members] = rng.permuted(permutations[:, members], axis=1)
    return permutations
